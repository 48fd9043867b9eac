"""Silence: clients get comments while an engine says nothing, and one that says nothing for too long is given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.gateway.relay.held import ANSWER_BYTES_MAX
from tests.gateway.relay.streams import STREAMED, behind_a_comment, data_of
from tests.gateway.world import QUICK, running_gateway, until
from tests.scripted_engine import (
    DONE,
    Ending,
    Script,
    ScriptedEngine,
    chat_answer,
    chat_stream,
)


async def test_an_engine_silent_within_a_large_answer_is_given_up(tmp_path: Path) -> None:
    """It goes on as it comes, so it breaks off there, within `engine_silence_s`."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    head = chat_answer("x" * 2 * ANSWER_BYTES_MAX)[: ANSWER_BYTES_MAX + 1]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script([head], ending=Ending.HANG))
        with pytest.raises(Exception, match=r"payload|disconnect|transfer"):
            await world.chat()
        await until(lambda: engine.aborted == 1)


async def test_bytes_without_a_border_are_bridged_too(tmp_path: Path) -> None:
    """An event that comes in drops keeps no connection alive: the client gets comments until it is whole."""
    first, *rest = chat_stream(["Hi"])
    pieces = [first[at : at + 8] for at in range(0, len(first), 8)]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([*pieces, *rest], pace_s=0.02))
        answer = await world.chat(**STREAMED)
    assert answer.body.startswith(b": keep-alive\n\n") and b"Hi" in answer.body and answer.body.endswith(DONE)


async def test_silence_is_bridged_by_comments(tmp_path: Path) -> None:
    """While an engine thinks, headers and comments keep proxies from cutting the stream; the answer follows."""
    gate = asyncio.Event()
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(chat_stream(["Hi"]), gate=gate))
        response, rest = await behind_a_comment(world, gate)
    assert response.headers["content-type"].startswith("text/event-stream") and b"Hi" in rest


async def test_a_silent_engine_is_given_up(tmp_path: Path) -> None:
    """A wedged engine ends in a time-out that is said, not in a stream that never ends."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.HANG))
        answer = await world.chat(**STREAMED)
        await until(lambda: engine.aborted == 1)
    assert data_of(answer.body)[-1]["error"]["code"] == "engine_timeout"  # type: ignore[index]


async def test_an_engine_that_never_answers_a_stream_is_given_up(tmp_path: Path) -> None:
    """An engine that takes a call and does not even send headers is as wedged as one that falls silent later."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(is_mute=True))
        answer = await world.chat(**STREAMED)
        await until(lambda: engine.aborted == 1)
    assert (answer.status, answer.error["code"], len(engine.received)) == (504, "engine_timeout", 1)
    assert answer.error["message"] == "The engine sent nothing for too long."


async def test_a_call_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """No request outlives `request_total_s`, and the engine stops working on it."""
    timeouts = QUICK.model_copy(update={"request_total_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(ending=Ending.HANG, content_type="application/json"))
        answer = await world.chat()
        await until(lambda: engine.aborted == 1)
    assert answer.status == 504 and answer.error["code"] == "engine_timeout"


async def test_a_whole_answer_that_never_comes_is_given_up(tmp_path: Path) -> None:
    """An engine that counts no token for so long is as wedged as one whose stream falls silent."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(is_mute=True), Script([chat_answer("Hi")[:20]], ending=Ending.HANG))
        answers = [await world.chat(), await world.chat()]
        await until(lambda: engine.aborted == 2)
    assert [(answer.status, answer.error["code"]) for answer in answers] == [(504, "engine_timeout")] * 2
