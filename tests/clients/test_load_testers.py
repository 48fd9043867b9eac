"""Load testers: aiperf and guidellm run with their own settings."""

from __future__ import annotations

import asyncio
import json
import os
import sysconfig
import tempfile
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving.gateway.nouns import Right
from tests.clients import environments
from tests.clients.performance import MAX_BODY_BYTES, SCRIPTS
from tests.gateway.world import World, running_gateway
from tests.scripted_engine import DONE, MODEL, Script, ScriptedEngine, chat_stream

ENGINE_ERROR = b'data: {"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}\n\n'

#: `guidellm/backends/openai/request_handlers.py` of 0.8.1, for a data set with a number of output tokens.
OF_GUIDELLM: dict[str, object] = {
    "model": MODEL,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "max_completion_tokens": 2,
    "stop": None,
    "ignore_eos": True,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "A long prompt."}]}],
}


async def test_what_guidellm_sends_is_served() -> None:
    """It asks for `/health` with its key before it begins, and counts tokens from the usage of every chunk."""
    with tempfile.TemporaryDirectory() as home:
        async with ScriptedEngine() as engine, running_gateway(Path(home), (engine.url,)) as world:
            world.key = world.registry.create_key("acme", allowed=[Right.IGNORE_EOS])
            assert (await world.ask("GET", "/health")).status == 200
            answer = await world.post("/v1/chat/completions", OF_GUIDELLM)
            assert answer.status == 200
            sent = engine.received[-1].body
    assert (sent["ignore_eos"], sent["max_completion_tokens"]) == (True, 2)
    events = [event for event in answer.body.split(b"\n\n") if event]
    assert events.pop() == b"data: [DONE]"
    assert all(b'"usage":{' in event for event in events)


@pytest.mark.long
async def test_guidellm_counts_every_answer() -> None:
    """A benchmark of six streams, two at a time: all of them complete, with the tokens that the engine said."""
    with tempfile.TemporaryDirectory() as home:
        async with (
            ScriptedEngine() as engine,
            running_gateway(Path(home), (engine.url,), max_body_bytes=MAX_BODY_BYTES) as world,
        ):
            world.key = world.registry.create_key("acme", allowed=[Right.IGNORE_EOS])
            await _run_guidellm(world, Path(home))
            assert all(it.body["ignore_eos"] is True for it in engine.received)
        (benchmark,) = json.loads((Path(home) / "guidellm.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (6, 0, 0)
    assert {it["output_tokens"] for it in benchmark["requests"]["successful"]} == {2}


async def _run_guidellm(world: World, home: Path) -> None:
    python = environments.python("guidellm")
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    backend = f"kind=openai_http,target={world.url},model={MODEL},api_key={world.key}"
    for command in (
        (python, SCRIPTS / "byte_tokenizer.py", "tokenizer"),
        (
            python, SCRIPTS / "guidellm_run.py", sysconfig.get_path("purelib"), "run", "--disable-progress",
            "--backend", backend, "--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=6",
            "--tokenizer", "kind=hf_auto,model=./tokenizer", "--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=2",
            "--output", "kind=json,path=guidellm.json",
        ),
    ):  # fmt: skip
        await _ran(command, env, home)


@pytest.mark.long
async def test_aiperf_counts_an_error_event_and_no_other() -> None:
    """A benchmark of six streams, the third of which fails after its first words."""
    cut = Script([*chat_stream(["Hi", "!"])[:2], ENGINE_ERROR, DONE])
    with tempfile.TemporaryDirectory() as home:
        async with (
            ScriptedEngine() as engine,
            running_gateway(Path(home), (engine.url,), max_body_bytes=MAX_BODY_BYTES) as world,
        ):
            hi = Script(chat_stream(["Hi", "!"]))
            engine.say(hi, hi, cut, hi, hi, hi)
            await _run_aiperf(world, Path(home))
        assert _counts(Path(home)) == (5, 1)


async def _run_aiperf(world: World, home: Path) -> None:
    python = environments.python("aiperf")
    # Its own time-out is for idle machines: a dozen services start at once.
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "AIPERF_SERVICE_REGISTRATION_TIMEOUT": "200"}
    for command in (
        (python, SCRIPTS / "byte_tokenizer.py", "tokenizer"),
        (
            python.parent / "aiperf", "profile", "--model", MODEL, "--url", world.url, "--api-key", world.key,
            "--endpoint-type", "chat", "--streaming", "--tokenizer", "./tokenizer", "--request-count", "6",
            "--concurrency", "1", "--ui", "none",
        ),
    ):  # fmt: skip
        await _ran(command, env, home)


async def _ran(command: Sequence[object], env: dict[str, str], home: Path) -> None:
    arguments = map(str, command)
    process = await asyncio.create_subprocess_exec(*arguments, env=env, cwd=home, stdout=PIPE, stderr=STDOUT)
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode(errors="replace")[-2000:]


def _counts(home: Path) -> tuple[float, float]:
    """Requests that it counts as answered, and as failed."""
    (report,) = home.rglob("profile_export_aiperf.json")
    seen = json.loads(report.read_text())
    return seen["request_count"]["avg"], seen["error_request_count"]["avg"]
