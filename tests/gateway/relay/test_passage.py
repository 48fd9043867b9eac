"""Passage: what goes on in the turn in which it comes is what the relay's plain path makes of it, byte for byte."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import GatewaySettings
from serving.errors import ApiError
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.estimates import Estimates
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chat_answers import ChatShaper
from serving.gateway.answers.chunk_answers import without_usage
from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.call import Call
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.http.asgi import Header
from serving.gateway.http.upstream import Upstream
from serving.gateway.nouns import CallRecord, Usage
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay import events
from serving.gateway.relay.exchange import Exchange
from serving.gateway.relay.passage import Reminder
from serving.gateway.relay.relay import Relay
from tests.clock import Clock
from tests.gateway.answers import recorded_answers
from tests.gateway.calls import call
from tests.gateway.fleet.reports import answer, report
from tests.scripted_engine import (
    DONE,
    Script,
    ScriptedEngine,
    chat_stream,
    completion_stream,
    error_body,
    event,
    messages_stream,
    responses_stream,
)

WORDS = ["Hel", "lo ", 'data: [DONE]\n\n"', "event: error\n", '{"error"', "\u00e9\u4e16", "x" * 500]
_CREATED, _IN_PROGRESS, *_DELTAS = responses_stream(WORDS)
_ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
_ADDED = {"type": "response.output_item.added", "output_index": 0, "sequence_number": 2, "item": _ITEM}
STREAMS = {
    "/v1/chat/completions": chat_stream(WORDS),
    "/v1/completions": [*completion_stream([(0, word) for word in WORDS]), b"data: [DONE]\n\n"],
    "/v1/responses": [_CREATED, _IN_PROGRESS, event("response.output_item.added", _ADDED), *_DELTAS],
    "/v1/messages": messages_stream(WORDS),
}
ERROR = b"data: %b\n\n" % error_body(500, "boom", "InternalServerError")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


#: What a client says when it is asked whether it takes more at once: the plain path is that of one that never does.
NEVER, ALWAYS = (False,), (True,)


class Page:
    """Takes an answer; at once or not as `readiness` says again and again, like a client that now and then reads slowly."""

    def __init__(self, readiness: Sequence[bool]) -> None:
        self.is_whole = False
        self.waited_s = 0.0
        self.status: int | None = None
        self.text = b""
        self.written_now = 0
        self._readiness = itertools.cycle(readiness)

    @property
    def is_started(self) -> bool:
        return self.status is not None

    @property
    def takes_now(self) -> bool:
        return next(self._readiness)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        self.status = status

    def write_now(self, body: bytes) -> None:
        self.text += body
        self.written_now += 1

    async def write(self, body: bytes) -> None:
        self.text += body

    async def finish(self, body: bytes = b"") -> None:
        self.text += body

    def cut(self) -> None: ...


def cut(stream: bytes, ends: Iterable[int]) -> list[bytes]:
    """The same bytes in other pieces: some events together, some in two, some borders in the middle."""
    borders = sorted({end for end in ends if 0 < end < len(stream)})
    return [stream[start:end] for start, end in zip([0, *borders], [*borders, None], strict=True)]


@st.composite
def shuffled(draw: st.DrawFn, stream: Sequence[bytes]) -> list[bytes]:
    """What an engine may write of this stream: its middle in any order, events of it twice or not at all, an error anywhere; as events
    or cut anywhere.
    """
    first, *middle, last_but_one, last = stream
    middle = draw(st.lists(st.sampled_from([*middle, ERROR]), max_size=len(middle)) | st.just(middle))
    said = [first, *middle, last_but_one, last]
    whole = b"".join(said)
    return draw(st.just(said) | st.lists(st.integers(1, len(whole) - 1), max_size=20).map(lambda it: cut(whole, it)))


async def relayed(one: Call, writes: Sequence[bytes], readiness: Sequence[bool]) -> tuple[Page, tuple[object, ...]]:
    """The client's page, and all that may not depend on the path."""
    clock, record = Clock(), CallRecord(request_id="r", started_at=0.0)
    page = Page(readiness)
    demands, estimates, upstream = Demands(clock), Estimates(), Upstream(5.0)
    fleet, settings = Fleet([], demands, clock, clock), GatewaySettings()
    admission = Admission(fleet, demands, estimates, settings, clock)
    relay = Relay(upstream, estimates, settings, None, clock)
    error = ""
    async with ScriptedEngine() as engine, upstream.opened():
        engine.improvise = lambda *_: Script(writes)
        fleet.take(answer(report("a", url=engine.url)), clock.now)
        try:
            ticket = await admission.admit(one, record)
            await relay.relay(Exchange(one, page, record, Trace(), clock, lambda _: None), ticket)
        except ApiError as raised:
            error = f"{type(raised).__name__}: {raised.message}"
    return page, (page.text, page.is_whole, error, record.usage, record.bytes_relayed, record.failures)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        *((path, {}) for path in STREAMS),
        ("/v1/chat/completions", {"stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
        ("/v1/chat/completions", {"tools": [TOOL]}),
    ],
)
async def test_events_that_come_one_by_one_are_the_same(path: str, fields: dict[str, object]) -> None:
    """As engines send them, words that look like the stream's own included; all but the beginning and the end go at once."""
    one = call(DIALECTS[path], stream=True, **fields)
    plain, expected = await relayed(one, STREAMS[path], NEVER)
    page, found = await relayed(one, STREAMS[path], ALWAYS)
    assert found == expected and expected[2] == ""
    assert plain.written_now == 0 and page.written_now >= 2


async def _is_the_same(path: str, data: st.DataObject) -> None:
    writes = data.draw(shuffled(STREAMS[path]))
    one = call(DIALECTS[path], stream=True)
    _, expected = await relayed(one, writes, NEVER)
    for readiness in (ALWAYS, data.draw(st.lists(st.booleans(), min_size=1))):
        assert (await relayed(one, writes, readiness))[1] == expected


@pytest.mark.parametrize("path", STREAMS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
async def test_any_stream_is_the_same(path: str, data: st.DataObject) -> None:
    """Cut anywhere, events in any order, twice or not at all, errors among them, a client that reads slowly."""
    await _is_the_same(path, data)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", STREAMS)
@settings(max_examples=2000, deadline=None, database=None)
@given(data=st.data())
async def test_many_more_streams_are_the_same(path: str, data: st.DataObject) -> None:
    """Others at each run."""
    await _is_the_same(path, data)


@pytest.mark.parametrize("name", sorted(path.stem for path in recorded_answers.RECORDED.glob("*.sse")))
async def test_recorded_streams_are_the_same(name: str) -> None:
    """vLLM's own bytes, as they came and cut anywhere."""
    api = name.split("-")[1]
    path = next(path for path in STREAMS if path.endswith(api) or (api == "chat" and "chat" in path))
    one = call(DIALECTS[path], stream=True)
    said = recorded_answers.stream(name)
    whole = b"".join(said)
    for writes in (said, cut(whole, random.Random(name).sample(range(len(whole)), 20))):
        _, expected = await relayed(one, writes, NEVER)
        assert (await relayed(one, writes, ALWAYS))[1] == expected


PIECES = (
    *(b'"', b"{", b"}", b"},", b"\n", b"\n\n", b"error", b"data: {", b'"choices":[],', b'"tool_calls":[', b"[DONE]"),
    *(b',"usage":{', b',"usage":null', b'"finish_reason":null,"token_ids":null}]', b',"token_ids":null', b"}}\n\n"),
    *(b'data: {"error":{}}\n\n', b"data: [DONE]\n\n", b"event: error\n", b'"stop_reason":null', b": comment\n"),
)


def test_a_short_cut_is_never_another_way() -> None:
    """Chunks in which anything stands anywhere are either left to the plain path or come out as they do there."""
    draw = random.Random(1)
    chunks = [*STREAMS["/v1/chat/completions"][1:-2], *recorded_answers.stream("tiny-chat-reasoned")[2:20]]
    shortened = 0
    for _ in range(20_000):
        chunk = bytearray(draw.choice(chunks))
        for _ in range(draw.randrange(3)):
            at = draw.randrange(len(chunk))
            chunk[at : at + draw.choice((0, 0, 1, 8))] = draw.choice(PIECES)
        found = without_usage(bytes(chunk))
        if found is not None:
            shortened += 1
            assert events.are_ordinary(bytes(chunk), (DONE,)) and b'"choices":[],"usage":' not in chunk
            plain = ChatShaper(Asked(), Usage).events(bytes(chunk))
            assert found == events.without_usage(plain, keeps_final=False)
    assert 5_000 < shortened < 15_000


async def test_a_reminder_looks_again_while_time_is_left() -> None:
    """What moves the end does not touch the timer; once left it says nothing."""
    left, reminded = [0.0, 0.005, 0.0, 0.0], asyncio.Event()
    with Reminder(lambda: left.pop(0), reminded.set):
        await asyncio.wait_for(reminded.wait(), 5)
    assert left == [0.0]
    reminded.clear()
    with Reminder(lambda: 0.0, reminded.set):
        pass
    await asyncio.sleep(0.01)
    assert not reminded.is_set()
