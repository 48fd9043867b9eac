"""Departure: a call leaves its replica early when that has failed, and hands a stream on when it drains."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.gateway.dialects import chat
from serving.gateway.http.asgi import Responder
from serving.gateway.nouns import Failure
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay.departure import Departure
from serving.gateway.relay.exchange import Exchange
from serving.wire import DirectoryAnswer, Listed, ReplicaReport, ReplicaState
from tests.gateway.asgi import Wire
from tests.gateway.calls import call, record
from tests.gateway.fleet.directory import Directory
from tests.gateway.relay.streams import STREAMED
from tests.gateway.world import CHAT, World, running_gateway, until
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, chat_stream, noted

STREAM = chat_stream(["Once", " upon", " a", " time"])


def says(leaving: ScriptedEngine, state: ReplicaState, staying: ScriptedEngine | None = None) -> DirectoryAnswer:
    """A cell in which one replica is in this state and the other, if any, is ready."""
    reports = [ReplicaReport("leaving", MODEL, leaving.url, state)]
    reports += [ReplicaReport("staying", MODEL, staying.url, ReplicaState.READY)] if staying else []
    return DirectoryAnswer("a", "1", True, tuple(Listed(report, 0.0) for report in reports))


async def read(world: World, begun: asyncio.Event) -> bytes:
    """A streamed answer; `begun` is set when its first text has come."""
    response = await world.client.post(
        world.url + "/v1/chat/completions", json=CHAT | STREAMED, headers=world.headers()
    )
    body = b""
    while chunk := await response.content.readany():
        body += chunk
        if b"upon" in body:
            begun.set()
    return body


async def drained(
    tmp_path: Path, *, hand_on: bool, is_noted: bool = True, is_alone: bool = False
) -> tuple[bytes, int, int]:
    """What a client gets of a stream whose replica begins to drain, which calls the other replica got, and how many were cut off."""
    events = noted(STREAM) if is_noted else STREAM
    async with ScriptedEngine() as leaving, ScriptedEngine() as staying, Directory() as directory:
        directory.says = says(leaving, ReplicaState.READY)
        async with running_gateway(tmp_path, directories=(directory.url,), hand_on_drains=hand_on) as world:
            leaving.say(Script(events[:3], ending=Ending.HANG))
            staying.say(Script(events))
            begun = asyncio.Event()
            reading = asyncio.create_task(read(world, begun))
            await begun.wait()
            directory.says = says(leaving, ReplicaState.DRAINING, None if is_alone else staying)
            if hand_on and is_noted and not is_alone:
                body = await asyncio.wait_for(reading, 15)
            else:
                await asyncio.wait([reading], timeout=0.5)
                body = b"" if not reading.done() else reading.result()
                reading.cancel()
            await until(lambda: leaving.aborted == 1)
            return body, len(staying.received), leaving.aborted


async def test_a_stream_is_handed_on(tmp_path: Path) -> None:
    """Its replica is left within seconds, and its client gets every word once."""
    body, calls, aborted = await drained(tmp_path, hand_on=True)
    assert body.endswith(b"data: [DONE]\n\n") and (calls, aborted) == (1, 1)
    assert [body.count(word) for word in (b'"Once"', b'" upon"', b'" a"', b'" time"')] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("hand_on", "is_noted", "is_alone"),
    [(False, True, False), (True, False, False), (True, True, True)],
    ids=["not asked for", "cannot go on", "no other replica"],
)
async def test_a_stream_stays_where_it_is(tmp_path: Path, hand_on: bool, is_noted: bool, is_alone: bool) -> None:
    """Draining is no failure: the replica waits for it."""
    body, calls, _ = await drained(tmp_path, hand_on=hand_on, is_noted=is_noted, is_alone=is_alone)
    assert (body, calls) == (b"", 0)


async def test_a_replica_that_was_taken_out_is_not_called_silent() -> None:
    """Though the time for its silence is over in the same turn: its call goes on elsewhere."""
    answer = Responder(Wire().send, "r")
    exchange = Exchange(call(chat.CHAT), answer, record(), Trace(), lambda: 0.0, lambda _: None)
    departure = Departure(exchange, hands_on=False, is_another_ready=lambda: True)

    async def attempt() -> None:
        async with departure:
            departure.look(ReplicaState.FAILED)
            departure.silence()
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        await attempt()
    assert (departure.is_due, departure.why, departure.is_silent) == (True, Failure.EJECTED, False)
