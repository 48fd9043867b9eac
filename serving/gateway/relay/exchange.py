"""Exchange: one call and its answer, from the engine's first byte to the sink's last: how far it has got, what it has cost."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from serving.errors import InvalidRequest
from serving.gateway.admission.estimates import Rates
from serving.gateway.answers.shaper import Assembly, Shaper
from serving.gateway.dialects import shapes
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.dialect import ChunkStream, Stream
from serving.gateway.http.asgi import Header
from serving.gateway.nouns import CallRecord, Failure, Handover, InterTokenLatency, Usage
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay import events, metering
from serving.gateway.relay.continuation import NO_NOTES, Continuation
from serving.gateway.relay.losses import Losses
from serving.gateway.relay.metering import ChunkMeter, Meter
from serving.gateway.relay.retries import Retries
from serving.gateway.relay.sink import Sink

STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx and its kind would hold chunks back otherwise.
    (b"x-accel-buffering", b"no"),
]
#: Bytes of a whole answer that are written at once.
PIECE_BYTES = 64 * 1024
#: Characters of text in a whole answer that is put together from a stream: four times the longest contexts.
ASSEMBLED_CHARS_MAX = 4 * 1024 * 1024
#: Bytes that such a character takes of the gateway's memory, log probabilities as Python's objects being the most: 22 MiB of 4 Mi.
ASSEMBLED_CHAR_BYTES = 6

JSON_HEADERS: list[Header] = [(b"content-type", b"application/json")]

#: vLLM's own, for chat, completions, responses and messages (0.32). A client's never gets to an engine.
PRIORITY_HEADER = "X-Vllm-Priority"

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Misshapen(Exception):
    """An engine's answer cannot be read as one of its route. Never leaves this room."""


def _no_matter() -> None:
    return None


def _no_matter_what(_: Usage) -> None:
    return None


def _reads_answer(read: Callable[Concatenate[Exchange, P], T]) -> Callable[Concatenate[Exchange, P], T]:
    """What an engine said is taken apart in `read`, key by key: raises Misshapen where it lacks one or has another kind of value."""

    @wraps(read)
    def guarded(exchange: Exchange, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(exchange, *args, **kwargs)
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            # Its text may quote the answer; where it was raised says enough.
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.warning(
                "request %s: an answer in no shape of its route: %s in %s",
                exchange.request_id,
                type(error).__name__,
                place.name,
            )
            raise Misshapen from None

    return guarded


class Exchange:
    """Filled in by the relay. What is counted per chunk is kept here and goes into the record once, in `settle`."""

    def __init__(
        self,
        call: Call,
        sink: Sink,
        record: CallRecord,
        trace: Trace,
        clock: Callable[[], float],
        take: Callable[[int], None],
    ) -> None:
        """`take` takes bytes of memory for this call; it raises GatewayFull when all calls have too many."""
        self.call = call
        self.sink = sink
        self.trace = trace
        #: Chunks carry usage that the gateway asked for and the client did not.
        self.strips_usage = (
            isinstance(call.dialect.stream, ChunkStream) and call.is_streamed and not call.wants_continuous_usage
        )
        self._record = record
        self._clock = clock
        self._take = take
        self._first_byte_at: float | None = None
        self._last_byte_at = 0.0
        #: When events were last passed on in the turn in which they came, on the clock.
        self.passed_at = -math.inf
        self._bytes_relayed = 0
        self._keep_alives = 0
        self._inter_token = InterTokenLatency()
        self._meter: Meter | None = None
        #: The engine's stream has begun as its API's do.
        self.has_begun = False
        #: Called when an engine has made the first token of a stream.
        self.on_output: Callable[[], None] = _no_matter
        self.has_output = False
        #: Called with what the answer has cost, once, before its last bytes go out.
        self.on_end: Callable[[Usage], None] = _no_matter_what
        self._has_ended = False
        #: Where the engine that has the call gets its prompt's KV from; empty where it computes the prompt itself.
        self.transfer = b""
        #: Its number in an engine's own queue, where lower ones go first.
        self.urgency = 0
        #: The client has some of what the engine makes, and nothing of it waits here.
        self._is_under_way = False
        self._shaper: Shaper | None = None
        self._assembly: Assembly | None = None
        self._sent_at = 0.0
        #: What another engine needs to go on with the stream; None where none may.
        self.continuation: Continuation | None = None
        #: What the client had, by its meter, when an engine was lost that another was to follow.
        self._had = Usage()
        self._events_had = 0

    @property
    def request_id(self) -> str:
        return self._record.request_id

    def urging(self) -> dict[str, str]:
        """The header that tells an engine its number; engines take 0 where there is none, and some know no other."""
        return {PRIORITY_HEADER: str(self.urgency)} if self.urgency else {}

    def may_continue(self) -> None:
        """Another engine may go on with this stream, if its engine says what it needs for that."""
        if self.call.is_streamed and self.call.dialect.stream and self.call.sequences == 1:
            self.continuation = Continuation(self._take)

    @property
    def can_move(self) -> bool:
        """Another engine can take the call over: the client has nothing of it, or that engine can go on behind what it has."""
        return not self.has_content or (self.continuation is not None and self.continuation.can_go_on)

    @property
    def has_content(self) -> bool:
        """Bytes of an answer went out; comments that keep a connection alive do not count."""
        return self._first_byte_at is not None

    @property
    def has_all(self) -> bool:
        """The engine is no longer needed: the client has everything, or a whole answer is being handed to it."""
        return self.sink.is_whole or (self.has_content and not self.call.is_streamed)

    @property
    def events_passed(self) -> int:
        return max(self._meter.events_passed if self._meter else 0, self._events_had)

    def begin(self, replica_id: str, rates: Rates, context_tokens: int = 0) -> Meter:
        """An engine gets the call now; `context_tokens` is its context, 0 where that is not known."""
        self._record.replica_id = replica_id
        self._sent_at = self._clock()
        self.sink.is_whole = False
        self._meter = meter = metering.meter_for(self.call, rates, context_tokens)
        self.has_begun = self.has_output = self._is_under_way = False
        if self.continuation is not None:
            self.continuation.begin()
        dialect = self.call.dialect
        self._shaper = dialect.shaper(self.call.asked, lambda: meter.usage(self._clock() - self._sent_at))
        self._assembly = dialect.assembly() if self.call.is_assembled and dialect.assembly else None
        return meter

    def made_tokens(self) -> int:
        """Output tokens that engines have made of it so far, as far as is known. For every second, not for every token."""
        usage = self._meter.usage(self._clock() - self._sent_at) if self._meter else Usage()
        return max(usage.completion_tokens, self._had.completion_tokens)

    def look_for_output(self, block: bytes, stream: Stream) -> None:
        """Tell of the first of an engine's events that holds something it made."""
        if stream.has_output(block):
            self.has_output = True
            self.on_output()

    def fail(self, failure: Failure) -> None:
        """The attempt gave the client nothing, or nothing that another engine cannot go on from."""
        if self.has_content and self._meter is not None:
            usage = self._meter.usage(self._clock() - self._sent_at)
            self._had = max(self._had, usage, key=lambda it: it.completion_tokens)
            self._events_had = self.events_passed
        self.forget()
        self._record.failures[failure] += 1

    def count_handover(self, handover: Handover) -> None:
        """Another engine was asked to compute the prompt."""
        self._record.handovers[handover] += 1

    def is_covered(self, losses: Losses, replicas: int) -> bool:
        """Whether this is a stream that goes on at no cost of the model's budget; `replicas` of the model are ready."""
        replica_id = self._record.replica_id
        return (
            self.has_content
            and replica_id is not None
            and losses.cover(self.call.model, replica_id, self._sent_at, replicas)
        )

    def take_retry(self, retries: Retries) -> bool:
        """Whether the model's budget has room for one more attempt, which is counted either way."""
        is_granted = retries.take(self.call.model)
        self._record.retries_granted += is_granted
        self._record.is_retry_refused = not is_granted
        return is_granted

    def forget(self) -> None:
        """That engine did nothing the client can be billed for."""
        self._meter = None

    def without_notes(self, block: bytes) -> bytes:
        """An engine's whole events without what it says of their tokens."""
        return block if self.continuation is None else self.continuation.received(block)

    @property
    def is_over(self) -> bool:
        """The client has its answer, though the engine goes on."""
        return self._shaper is not None and self._shaper.is_over

    @property
    def takes_now(self) -> bool:
        """May ordinary events go on in the turn in which they come? Nothing may then be left for afterwards."""
        if not self._is_under_way:
            # Once it is, it stays so until another engine has the call.
            self._is_under_way = (
                self.has_content
                and self.has_output
                and self._assembly is None
                and not self.call.asked.stops
                and not (self.continuation and self.continuation.is_repeating)
            )
        return self._is_under_way and self.sink.takes_now

    def rendered(self, block: bytes) -> bytes:
        """What the client gets for whole events, which the meter sees; raises Misshapen."""
        if self._meter is not None:
            self._meter.scan(block)
        block = self.shaped(block)
        return events.without_usage(block, keeps_final=self.call.wants_usage) if self.strips_usage else block

    def _rendered_ordinary(self, event: bytes) -> bytes | None:
        """The same for one chunk in the middle of a chat, at a third of the cost; None, and nothing is done, for any other."""
        if not (
            self.strips_usage and self.call.sequences == 1 and self._shaper and isinstance(self._meter, ChunkMeter)
        ):
            return None
        chunk = self._shaper.ordinary(event)
        if chunk is not None:
            self._meter.see(event)
        return chunk

    @_reads_answer
    def shaped(self, block: bytes) -> bytes:
        """What the client gets for whole events that the meter has seen."""
        if self._shaper is None or self._meter is None:
            return block
        block = self._shaper.events(block)
        if self._shaper.is_over:
            self._meter.conclude(block)
            # A client that closes now has its answer.
            self.sink.is_whole = True
        return block

    @_reads_answer
    def shaped_whole(self, body: bytes) -> bytes:
        """What the client gets for a whole answer."""
        return body if self._shaper is None else self._shaper.whole(body)

    def learn(self) -> None:
        """The answer is complete: let its exact usage improve later estimates."""
        if self._meter:
            self._meter.learn(self._clock() - self._sent_at)

    def settle(self) -> None:
        """Put what was counted into the record; usage is exact once the engine has said it, else estimated."""
        record = self._record
        record.first_byte_at = self._first_byte_at
        record.bytes_relayed = self._bytes_relayed
        record.keep_alives = self._keep_alives
        record.inter_token = self._inter_token if self.call.is_streamed else None
        usage = self._meter.usage(self._clock() - self._sent_at) if self._meter else Usage()
        # An engine that was to go on, and was lost before it got there, has seen less than its client.
        is_less = usage.estimated_by is not None or self._meter is None
        record.usage = self._had if is_less and self._had.completion_tokens > usage.completion_tokens else usage
        record.continuations = self.continuation.resumed if self.continuation else 0
        record.counted_apart = self._counted_apart() if self._meter else None
        # It asks this exchange what has been counted: a circle that only the garbage collector would find, the call's body in it.
        self._shaper = None

    def _counted_apart(self) -> str | None:
        """Why the engine's own counters have more than the record's usage, though that is exact; None: they have not."""
        words = [
            # Engines count a prompt once for each of its answers.
            f"choices={self.call.choices}" if self.call.choices > 1 else "",
            "continued" if self._record.continuations else "",
            # Ours matched a stop string: its engine goes on for some tokens.
            "stopped_here" if self.is_over else "",
        ]
        return ",".join(word for word in words if word) or None

    async def keep_alive(self) -> None:
        if not self.call.is_streamed:
            # A whole answer has no room for comments.
            return
        self._keep_alives += 1
        if not self.sink.is_started:
            await self.sink.start(200, STREAM_HEADERS)
        await self.sink.write(events.KEEP_ALIVE)

    async def pass_on(self, block: bytes) -> None:
        """Events for the client: sent on, or put together."""
        if self._assembly is None:
            self._foresee_end(is_last=self.sink.is_whole)
            lacking = block if self.continuation is None else self.continuation.lacking(block)
            return await self.write(lacking, STREAM_HEADERS) if lacking else None
        before = self._assembly.held_chars
        self._put_together(self._assembly, block)
        if self._assembly.held_chars > ASSEMBLED_CHARS_MAX:
            raise InvalidRequest("The answer is too long to be given whole; ask for a stream.", param="stream")
        self._take((self._assembly.held_chars - before) * ASSEMBLED_CHAR_BYTES)
        return None

    def pass_on_now(self, block: bytes, stream: Stream) -> bool:
        """Ordinary events for the client, of an exchange that `takes_now`; False, and nothing is done, for others."""
        continuation = self.continuation
        notes: Sequence[bytes] = NO_NOTES
        if continuation is not None:
            if not block.endswith(events.BORDER):
                return False
            block, notes = continuation.parted(block)
        data = self._rendered_ordinary(block)
        if data is None:
            if not events.are_ordinary(block, stream.endings):
                return False
            data = self.rendered(block)
        if continuation is not None:
            continuation.keep(notes)
            data = continuation.lacking(data)
        self.passed_at = now = self._clock()
        if data:
            self._inter_token.observe(now - self._last_byte_at)
            self._bytes_relayed += len(data)
            self._last_byte_at = now
            self.sink.write_now(data)
        return True

    async def finish(self) -> None:
        """The answer is complete."""
        if self._assembly is not None:
            await self.write_whole(self._assembled(self._assembly))
        await self.sink.finish()

    @_reads_answer
    def _put_together(self, assembly: Assembly, block: bytes) -> None:
        assembly.add(block)

    @_reads_answer
    def _assembled(self, assembly: Assembly) -> bytes:
        body = assembly.body()
        if not shapes.is_answer(body, self.call.dialect.answer):
            raise ValueError("events that make no answer")
        return body

    async def write_whole(self, body: bytes) -> None:
        """A whole answer, in pieces: what a client has not read waits here, where all such bytes are counted together."""
        self._foresee_end(is_last=True)
        headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
        for start in range(0, len(body), PIECE_BYTES):
            await self.write(body[start : start + PIECE_BYTES], headers)

    def _foresee_end(self, *, is_last: bool) -> None:
        """Tell of the answer's cost where what is written next is, or may be, the last of it."""
        meter = self._meter
        if meter is not None and not self._has_ended and (is_last or meter.is_exact):
            self._has_ended = True
            self.on_end(meter.usage(self._clock() - self._sent_at))

    async def write(self, data: bytes, headers: list[Header]) -> None:
        if self._first_byte_at is None:
            if not self.sink.is_started:
                await self.sink.start(200, headers)
            self._first_byte_at = self._clock()
        else:
            self._inter_token.observe(self._clock() - self._last_byte_at)
        self._bytes_relayed += len(data)
        await self.sink.write(data)
        # When it was written: while the client does not read, its engine is not slow.
        self._last_byte_at = self._clock()
