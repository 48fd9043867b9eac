"""Exchange: how far an answer has got and what it has cost, put into the record once."""

from __future__ import annotations

import pytest

from serving.errors import GatewayFull, InvalidRequest
from serving.gateway.admission.estimates import Rates
from serving.gateway.admission.memory import Memory, Share
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.http.asgi import Responder
from serving.gateway.nouns import CallRecord, Failure, Usage
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay.continuation import Continuation
from serving.gateway.relay.events import KEEP_ALIVE
from serving.gateway.relay.exchange import ASSEMBLED_CHAR_BYTES, ASSEMBLED_CHARS_MAX, STREAM_HEADERS, Exchange
from tests.clock import Clock
from tests.gateway.asgi import Wire
from tests.gateway.calls import call
from tests.scripted_engine import chat_answer, chat_stream


class One:
    """An exchange, its clock, its client's end and its record."""

    def __init__(self, *, is_streamed: bool) -> None:
        self.clock, self.wire = Clock(), Wire()
        self.record = CallRecord(request_id="r", started_at=self.clock.now, is_streamed=is_streamed)
        self.rates = Rates()
        responder = Responder(self.wire.send, "r")
        one = call(CHAT, stream=is_streamed)
        self.share = Share(Memory(1024 * 1024))
        self.exchange = Exchange(one, responder, self.record, Trace(), self.clock, self.share.take)


async def test_a_comment_is_no_content() -> None:
    """It keeps a connection alive and starts the answer; the first byte is still to come, and bytes are not counted."""
    one = One(is_streamed=True)
    await one.exchange.keep_alive()
    assert one.wire.status == 200 and one.wire.body == KEEP_ALIVE and not one.exchange.has_content
    one.clock.advance(2)
    await one.exchange.write(b"data: 1\n\n", STREAM_HEADERS)
    one.exchange.settle()
    assert len(one.wire.sent) == 3  # the answer began once
    assert (one.record.first_byte_at, one.record.bytes_relayed, one.record.keep_alives) == (one.clock.now, 9, 1)


def test_an_engines_first_output_is_told_once() -> None:
    """Then its prompt is computed; an event that only announces the answer says nothing of that. Another attempt begins anew."""
    one, told = One(is_streamed=True), []
    one.exchange.on_output = lambda: told.append(len(told))
    stream = RESPONSES.stream
    assert stream is not None
    one.exchange.look_for_output(b"event: response.created\ndata: {}\n\n", stream)
    assert not one.exchange.has_output and told == []
    one.exchange.look_for_output(b"event: response.output_item.added\ndata: {}\n\n", stream)
    assert one.exchange.has_output and told == [0]
    one.exchange.begin("another", one.rates)
    assert not one.exchange.has_output


async def test_gaps_count_between_pieces() -> None:
    """Two gaps of three pieces, from when one was taken to when the next one came."""
    one = One(is_streamed=True)
    for gap_s in (5.0, 0.5, 0.25):
        one.clock.advance(gap_s)
        await one.exchange.write(b"x", STREAM_HEADERS)
    one.exchange.settle()
    assert one.record.inter_token is not None
    assert (sum(one.record.inter_token.counts), one.record.inter_token.total_s) == (2, 0.75)


async def test_a_whole_answer_has_no_gaps() -> None:
    """Its pieces are the network's."""
    one = One(is_streamed=False)
    await one.exchange.write(b"{", [])
    await one.exchange.write(b"}", [])
    one.exchange.settle()
    assert one.record.inter_token is None and one.record.bytes_relayed == 2


async def test_an_attempt_that_gave_nothing_is_not_billed() -> None:
    """What failed is counted by its kind; the engine after it is the one that counts."""
    one = One(is_streamed=False)
    one.exchange.begin("a", one.rates).scan(chat_answer("Hi"))
    one.exchange.fail(Failure.ERRORED)
    one.exchange.fail(Failure.BUSY)
    assert one.record.retries == 2 and one.record.failures == {Failure.ERRORED: 1, Failure.BUSY: 1}
    one.exchange.settle()
    assert one.record.usage == Usage() and one.record.replica_id == "a"
    meter = one.exchange.begin("b", one.rates)
    meter.scan(chat_answer("Hi"))
    meter.close()
    one.exchange.settle()
    assert one.record.usage == Usage(7, 2) and one.record.replica_id == "b"


@pytest.mark.parametrize(("n", "resumed", "words"), [(1, 0, None), (3, 0, "choices=3"), (1, 2, "continued")])
async def test_what_an_engine_counts_otherwise_is_said(n: int, resumed: int, words: str | None) -> None:
    """It counts a prompt for each of its answers; and one that goes on with a stream counts what its client had as prompt."""
    record = CallRecord(request_id="r", started_at=0.0)
    sent, share = Responder(Wire().send, "r"), Share(Memory(1024 * 1024))
    exchange = Exchange(call(CHAT, n=n, temperature=1), sent, record, Trace(), Clock(), share.take)
    exchange.settle()
    assert record.counted_apart is None
    exchange.begin("a", Rates())
    if resumed:
        exchange.continuation = Continuation(share.take)
        exchange.continuation.resumed = resumed
    exchange.settle()
    assert record.counted_apart == words


@pytest.mark.parametrize(("seconds", "tokens"), [(0.1, 2), (10.0, 200)])
async def test_an_answer_that_was_cut_is_estimated_by_its_time(seconds: float, tokens: int) -> None:
    """Taken when the exchange settles: 20 tokens a second until something was learned."""
    one = One(is_streamed=False)
    one.exchange.begin("a", one.rates)
    one.clock.advance(seconds)
    one.exchange.settle()
    assert one.record.usage.completion_tokens == tokens
    assert one.record.usage.estimated_by == "bytes_sent_time_elapsed"


async def test_only_a_complete_answer_teaches() -> None:
    """Its exact usage improves the estimates of later calls."""
    one = One(is_streamed=True)
    meter = one.exchange.begin("a", one.rates)
    meter.scan(b"".join(chat_stream(["a"])[:2]))
    one.exchange.learn()
    assert one.rates == Rates()
    meter.scan(b"".join(chat_stream(["a"])[2:]))
    one.clock.advance(1)
    one.exchange.learn()
    assert one.rates != Rates()


def test_before_an_engine_has_the_call_nothing_has_happened() -> None:
    """An exchange that ends in the waiting room costs nothing."""
    one = One(is_streamed=True)
    one.exchange.learn()
    one.exchange.settle()
    assert (one.exchange.events_passed, one.record.usage, one.record.first_byte_at) == (0, Usage(), None)


async def test_an_answer_that_is_put_together_is_bounded_and_gets_no_comments() -> None:
    """Its client sees nothing before its end, and one that is too long for that is told to ask for a stream."""
    one = One(is_streamed=False)
    whole = call(CHAT, stop="never")
    exchange = Exchange(whole, Responder(one.wire.send, "r"), one.record, Trace(), one.clock, lambda _: None)
    exchange.begin("a", one.rates)
    await exchange.keep_alive()
    (chunk,) = [event for event in chat_stream(["x" * (ASSEMBLED_CHARS_MAX // 2)]) if b"xxx" in event]
    await exchange.pass_on(chunk)
    await exchange.pass_on(chunk)
    with pytest.raises(InvalidRequest, match="ask for a stream"):
        await exchange.pass_on(chunk)
    assert whole.is_assembled and one.wire.sent == []


async def test_an_answer_that_is_put_together_counts_as_held() -> None:
    """Of all calls together no more is kept than the gateway's bound; past it the call may be tried again."""
    one = One(is_streamed=False)
    whole = call(CHAT, stop="never")
    exchange = Exchange(whole, Responder(one.wire.send, "r"), one.record, Trace(), one.clock, one.share.take)
    exchange.begin("a", one.rates)
    (chunk,) = [event for event in chat_stream(["x" * 100_000]) if b"xxx" in event]
    await exchange.pass_on(chunk)
    assert one.share.held_bytes == 100_000 * ASSEMBLED_CHAR_BYTES
    with pytest.raises(GatewayFull):
        await exchange.pass_on(chunk)
    assert one.wire.sent == []
