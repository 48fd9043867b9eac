"""`serving batch run`: a file of calls in, a file of answers out; started again it goes on, and what is wrong is a sentence."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from serving.gateway.cli.batching import Away, Service
from serving.gateway.policies import Policy
from tests.gateway.api.test_batches import ANSWER, line
from tests.gateway.world import World, until
from tests.scripted_engine import Script, ScriptedEngine


@pytest.fixture
async def storing(world: World) -> World:
    await world.bound(Policy(store_responses=True))
    return world


async def started(world: World, *arguments: str) -> asyncio.subprocess.Process:
    environment = dict(os.environ) | {"OPENAI_API_KEY": world.key, "SERVING_HOME": str(world.store.home)}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving", "batch", "run", *arguments, "--url", f"{world.url}/v1"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def said(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


async def test_a_run_that_was_interrupted_goes_on(storing: World, engine: ScriptedEngine, tmp_path: Path) -> None:
    """It finds its batch again, shows how far that has got, and writes answers and errors beside each other."""
    gate = asyncio.Event()
    engine.improvise = lambda path, body: Script([ANSWER], content_type="application/json", gate=gate)
    calls, target = tmp_path / "calls.jsonl", tmp_path / "answers.jsonl"
    calls.write_bytes(line("a") + line("b", temperature=-1) + line("c"))
    first = await started(storing, str(calls), "--output", str(target))
    await until(lambda: engine.running > 0, timeout_s=60)
    first.kill()
    await first.communicate()
    gate.set()
    code, out, errors = await said(await started(storing, str(calls), "--output", str(target)))

    assert (code, out) == (0, "completed: 2 of 3 calls answered, 1 failed.\n"), errors
    assert "was begun before and goes on" in errors and "completed: 3 of 3 done, 1 failed" in errors
    answers = [json.loads(it) for it in target.read_text().splitlines()]
    assert [it["custom_id"] for it in answers] == ["a", "c"]
    assert json.loads((tmp_path / "answers.errors.jsonl").read_text())["line"] == 2
    assert len(engine.received) == 2
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".batch")]


async def test_what_is_wrong_is_a_sentence(storing: World, tmp_path: Path) -> None:
    """And exit code 1: a file that is no batch, one whose lines are wrong, none at all."""
    no_calls, wrong = tmp_path / "no.jsonl", tmp_path / "wrong.jsonl"
    no_calls.write_text("hello\n")
    wrong.write_bytes(line("a") + line("a"))
    nowhere = ("--output", str(tmp_path / "none" / "answers.jsonl"))
    for words, *arguments in (
        ("does not begin with a call", str(no_calls)),
        ("line 2: The custom_id 'a' for this request is a duplicate of another request.", str(wrong)),
        ("cannot be read: no such file or directory", str(tmp_path / "none.jsonl")),
        ("answers.jsonl cannot be written: no such file or directory", str(wrong), *nowhere),
    ):
        code, out, errors = await said(await started(storing, *arguments))
        assert code == 1 and out == "" and words in errors and "Traceback" not in errors
        assert not (words.startswith("answers") and "Uploading" in errors)


async def test_what_breaks_off_is_not_written(tmp_path: Path) -> None:
    """A gateway that dies while it sends a file is away, as one that does not answer: it is asked again, and the target left alone."""

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf a li")
        writer.close()

    async with await asyncio.start_server(break_off, "127.0.0.1", 0) as server:
        service = Service(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "key")
        for ask in (lambda: service.download("file-1", tmp_path / "answers.jsonl"), lambda: service.find("batch_1")):
            with pytest.raises(Away, match="breaks off"):
                await asyncio.to_thread(ask)
    assert not (tmp_path / "answers.jsonl").exists()
