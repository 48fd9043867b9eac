"""Load testers: what guidellm and aiperf send is served. Neither is installed: the page of clients says why."""

from __future__ import annotations

import tempfile
from pathlib import Path

from serving.gateway.nouns import Right
from tests.gateway.world import running_gateway
from tests.scripted_engine import MODEL, ScriptedEngine

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

#: `aiperf/endpoints/openai_chat.py` of 0.13.0, with `--streaming` and no number of output tokens.
OF_AIPERF: dict[str, object] = {
    "messages": [{"role": "user", "content": "A long prompt."}],
    "model": MODEL,
    "stream": True,
    "stream_options": {"include_usage": True},
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


async def test_what_aiperf_sends_is_served() -> None:
    """It reads the numbers of tokens from one last chunk."""
    with tempfile.TemporaryDirectory() as home:
        async with ScriptedEngine() as engine, running_gateway(Path(home), (engine.url,)) as world:
            answer = await world.post("/v1/chat/completions", OF_AIPERF)
    events = [event for event in answer.body.split(b"\n\n") if event]
    assert events.pop() == b"data: [DONE]"
    assert b'"choices":[]' in events[-1]
    assert [b'"usage":{' in event for event in events] == [False] * (len(events) - 1) + [True]
