"""Load testers: aiperf runs, and what guidellm sends is served. The page of clients says why that is not installed."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from asyncio.subprocess import PIPE, STDOUT
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
        (python, SCRIPTS / "aiperf_tokenizer.py", "tokenizer"),
        (
            python.parent / "aiperf", "profile", "--model", MODEL, "--url", world.url, "--api-key", world.key,
            "--endpoint-type", "chat", "--streaming", "--tokenizer", "./tokenizer", "--request-count", "6",
            "--concurrency", "1", "--ui", "none",
        ),
    ):  # fmt: skip
        process = await asyncio.create_subprocess_exec(*command, env=env, cwd=home, stdout=PIPE, stderr=STDOUT)
        printed, _ = await process.communicate()
        assert process.returncode == 0, printed.decode(errors="replace")[-2000:]


def _counts(home: Path) -> tuple[float, float]:
    """Requests that it counts as answered, and as failed."""
    (report,) = home.rglob("profile_export_aiperf.json")
    seen = json.loads(report.read_text())
    return seen["request_count"]["avg"], seen["error_request_count"]["avg"]
