"""Running: what a call in the background has made is there for followers, in order and once."""

from __future__ import annotations

import asyncio

import pytest

from serving.errors import EngineFailed, GatewayFull, InvalidRequest, RateLimitExceeded
from serving.gateway.answers import framing
from serving.gateway.stored import keeping, running
from serving.gateway.stored.running import Running
from tests.gateway.stored.speaking import message, stream


class Ended:
    """What was kept at the end, and how many events followers had then."""

    def __init__(self) -> None:
        self.response: bytes | None = None
        self.events = 0
        self.output: Running

    async def __call__(self, response: bytes) -> None:
        self.response, self.events = response, len(self.output.events)


def output(*, is_streamed: bool) -> tuple[Running, Ended]:
    ended = Ended()
    ended.output = Running("resp_1", "t1", is_streamed=is_streamed, end=ended)
    return ended.output, ended


async def test_followers_have_events_as_they_come_and_the_last_once_it_is_kept() -> None:
    """Each with its number; comments are none. What comes in one write with the last goes before it."""
    sink, ended = output(is_streamed=True)
    *events, before, last = stream([message("one")])
    await sink.write(b": keep-alive\n\n")
    for event in events:
        await sink.write(event)
    waiting = asyncio.create_task(sink.changed(60))
    await asyncio.sleep(0)
    sink.is_whole = True
    await sink.write(before + last)
    await waiting

    assert [number for number, _ in sink.behind(0, keeping.RESPONSE_BYTES_MAX)] == list(range(len(events) + 2))
    assert ended.events == len(events) + 1 and sink.is_over and sink.last_number == len(events) + 1
    assert running.numbered(b"".join(event for _, event in sink.events)) == sink.events


async def test_a_stream_begins_before_any_engine_has_it() -> None:
    """It is told to be made, and to wait; the engine's events are numbered behind that, its own beginning left out."""
    sink, ended = output(is_streamed=True)
    *events, before, last = stream([message('"sequence_number":7')])
    sink.open({"status": "queued"})
    for event in events:
        await sink.write(event)
    sink.is_whole = True
    await sink.write(before + last)

    told = [framing.read(event) or {} for _, event in sink.events]
    kinds = [(framing.read(event) or {})["type"] for event in (*events, before, last)]
    assert [it["type"] for it in told] == ["response.created", "response.queued", *kinds[1:]]
    assert [it["sequence_number"] for it in told] == [number for number, _ in sink.events] == list(range(len(told)))
    assert told[1]["response"] == {"status": "queued"} and ended.response is not None
    assert '"sequence_number":7' in str(told[5])


async def test_a_whole_answer_is_kept_when_it_is_finished() -> None:
    """And bounded."""
    sink, ended = output(is_streamed=False)
    await sink.start(200, [])
    await sink.write(b"{}")
    await sink.finish()
    assert (ended.response, sink.is_over, sink.status) == (b"{}", True, 200)
    with pytest.raises(InvalidRequest):
        await sink.write(bytes(keeping.RESPONSE_BYTES_MAX))


async def test_events_past_the_bound_are_not_kept_but_the_last() -> None:
    """A client that comes back learns how it ended."""
    sink, _ = output(is_streamed=True)
    large = b'data: {"sequence_number":%d}%s\n\n'
    sink.write_now(large % (0, b" " * (running.EVENT_BYTES_MAX - 100)))
    sink.write_now(large % (1, b" " * 200))
    sink.fail(running.last_event(running.failed({}, None), sink.last_number + 1))
    assert [number for number, _ in sink.events] == [0, 1] and b"response.failed" in sink.events[-1][1]


async def test_what_is_kept_is_held_no_more_once_it_is_over() -> None:
    """But for its end, as far as that is small; what is not kept stays."""
    sink, _ = output(is_streamed=True)
    event = b'data: {"sequence_number":%d}' + b" " * 1000 + b"\n\n"
    for number in range(200):
        sink.write_now(event % number)
    sink.kept = 100
    sink.fail(event % 200)

    assert (sink.count, sink.last_number, sink.has(99), sink.has(100)) == (201, 200, False, True)
    sink.kept = 201
    sink.close()
    assert sum(len(event) for _, event in sink.events) < running.TAIL_BYTES
    assert [number for number, _ in sink.behind(199, 0)] == [199] and sink.behind(201, 1) == []


async def test_its_end_is_told_without_memory() -> None:
    """Followers learn of a failure that want of memory was, and nothing is taken that no one gives back."""
    sink, ended = output(is_streamed=True)
    *events, last = stream([message("one")])
    taken: list[int] = []
    sink.take_memory = taken.append
    for event in events:
        await sink.write(event)

    def full(count: int) -> None:
        raise GatewayFull("full")

    sink.take_memory = full
    sink.is_whole = True
    with pytest.raises(GatewayFull):
        await sink.write(last)
    assert ended.response is None and sum(taken) == sum(map(len, events))
    sink.fail(running.last_event(running.failed({}, None), sink.last_number + 1))
    assert sink.is_over and b"response.failed" in sink.events[-1][1]


def test_a_failure_has_openais_code() -> None:
    """A limit, the request, or the service."""
    errors = [RateLimitExceeded("x"), InvalidRequest("x"), EngineFailed("x"), None]
    codes = [running.failed({}, error)["error"] for error in errors]
    assert [it["code"] for it in codes if isinstance(it, dict)] == [
        "rate_limit_exceeded",
        "invalid_prompt",
        "server_error",
        "server_error",
    ]
