"""Relay: one call to one engine and its bytes back, untouched but for usage that the client did not ask for.

Until the first byte of an answer went out, a replica that fails is replaced; after it, the stream ends in an error event.
A status of 200 alone is no answer: a stream must begin, and a whole answer must be, as its route says (`dialects/shapes`).
Whole answers are held until they are complete (`held`); a larger one goes out once it is past the bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count

from serving.config import GatewaySettings
from serving.errors import ApiError, EngineFailed, EngineTimedOut
from serving.gateway.admission.admission import Ticket
from serving.gateway.admission.estimates import Estimates
from serving.gateway.dialects import shapes
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.dialect import EventStream, Stream
from serving.gateway.fleet.router import Candidate
from serving.gateway.fleet.sources import bearer
from serving.gateway.http.connections import ConnectionBroken, NotConnected, Reply
from serving.gateway.http.upstream import Upstream
from serving.gateway.nouns import Failure
from serving.gateway.relay import events, translation
from serving.gateway.relay.continuation import Continuation, Misaligned
from serving.gateway.relay.departure import Departure
from serving.gateway.relay.exchange import JSON_HEADERS, Exchange, Misshapen
from serving.gateway.relay.held import Held, Room
from serving.gateway.relay.losses import Losses
from serving.gateway.relay.metering import Meter
from serving.gateway.relay.passage import Passage, Reminder
from serving.gateway.relay.prefill import Prefill
from serving.gateway.relay.progress import Progress
from serving.gateway.relay.retries import Retries
from serving.gateway.relay.translation import ENGINE_FAILED, Blame
from serving.secret import PlaneSecret

#: Replicas that may fail under one call before the call itself is suspected of killing them.
FAILURES_MAX = 3
#: Failures that the call itself may have caused.
SUSPICIOUS = frozenset({Failure.BROKEN, Failure.ERRORED, Failure.MALFORMED, Failure.EJECTED})
#: Failures that make a replica an outlier; a busy one works, and an ejected one is out already.
HELD_AGAINST = SUSPICIOUS - {Failure.EJECTED} | {Failure.REFUSED}
#: Failures whose retry costs no budget: of a refused connection no engine had work, and a drain is no failure of the fleet.
FREE = frozenset({Failure.REFUSED, Failure.DRAINED})
#: Bytes of an engine's error body that are read.
ERROR_BYTES_MAX = 64 * 1024
#: Seconds in which an engine says that a request is at fault.
REFUSAL_S = 5.0
#: Seconds in which an engine closes an answer whose end it has sent; its connection is then used again.
REST_S = 1.0

log = logging.getLogger(__name__)


class AttemptFailed(Exception):
    """Another replica may try. Never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Unsaid(Exception):
    """A stream gave nothing and broke off without the engine's words for it. Never leaves this module.

    `otherwise` is what it comes to if the request is not at fault.
    """

    def __init__(self, otherwise: Exception) -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise


class Relay:
    """Shared by all calls of a gateway."""

    def __init__(
        self,
        upstream: Upstream,
        estimates: Estimates,
        settings: GatewaySettings,
        secret: PlaneSecret | None,
        clock: Callable[[], float],
        prefill: Prefill | None = None,
    ) -> None:
        """With `prefill` long prompts are computed by engines of their own."""
        self._prefill = prefill
        self._upstream = upstream
        self._estimates = estimates
        self._timeouts = settings.timeouts
        self._retries = Retries(settings.retries.share)
        self._losses = Losses(clock)
        self._continues = settings.continuation
        self._hands_on = settings.continuation and settings.hand_on_drains
        self._secret = secret
        self._clock = clock
        self._room = Room()
        self._progress = Progress(upstream, secret, clock)

    async def relay(self, exchange: Exchange, ticket: Ticket) -> None:
        """Answer an admitted call. Raises ApiError; the sink knows how far the answer had got."""
        try:
            await self._relay(exchange, ticket)
        finally:
            exchange.settle()

    async def _relay(self, exchange: Exchange, ticket: Ticket) -> None:
        exchange.on_output = ticket.begun
        exchange.urgency = ticket.urgency
        seen: set[tuple[str, Failure]] = set()
        failures = 0
        self._retries.arrive(exchange.call.model)
        if self._continues:
            exchange.may_continue()
        for retry in count(1):
            replica = await ticket.replica({replica_id for replica_id, _ in seen})
            try:
                with ticket.committed(replica.replica_id):
                    await self._attended(replica, ticket, exchange)
                return
            except AttemptFailed as attempt:
                failure = attempt.failure
            exchange.fail(failure)
            if exchange.has_content:
                ticket.renew()
            log.warning("request %s: attempt at replica %s: %s", exchange.request_id, replica.replica_id, failure)
            if failure in HELD_AGAINST:
                ticket.report_failed(replica.replica_id)
            if _is_lost(replica.replica_id, failure, seen):
                ticket.report_lost(replica.replica_id)
            seen.add((replica.replica_id, failure))
            failures += failure in SUSPICIOUS
            if failures >= FAILURES_MAX:
                raise EngineFailed(ENGINE_FAILED)
            self._require_retry(failure, ticket, exchange)
            await asyncio.sleep(self._retries.pause_s(retry))

    def _require_retry(self, failure: Failure, ticket: Ticket, exchange: Exchange) -> None:
        """Raise the call's error when it may not be tried again: its time is over, or its model's retry budget is.

        A stream that has begun owes none to the loss of its replica, as far as losses are covered.
        """
        if failure is Failure.BUSY:
            ticket.require_time()
        if failure in FREE or (failure in SUSPICIOUS and exchange.is_covered(self._losses, ticket.count_ready())):
            return
        if exchange.take_retry(self._retries):
            return
        if failure is Failure.BUSY:
            raise ticket.busy()
        raise EngineFailed(ENGINE_FAILED)

    async def _judged(self, replica: Candidate, ticket: Ticket, exchange: Exchange) -> None:
        """One attempt, whose end is held for or against its replica. One that another replica may replace is judged there."""
        exchange.transfer = b""
        # A stream that goes on has tokens behind its prompt, which are the engine's to compute.
        if self._prefill is not None and not exchange.has_content:
            exchange.transfer = await self._prefill.handed_over(exchange, ticket.need, replica)
        try:
            await self._attempt(replica, exchange)
        except (EngineFailed, EngineTimedOut):
            ticket.report_failed(replica.replica_id)
            raise
        except ApiError:
            ticket.report_served(replica.replica_id)
            raise
        ticket.report_served(replica.replica_id)

    async def _attended(self, replica: Candidate, ticket: Ticket, exchange: Exchange) -> None:
        """One attempt, which ends once its cell has ejected the replica, or drains it and another can go on with the stream; and,
        where a whole answer is waited for, once the engine has made nothing for `engine_silence_s`.
        """
        departure = Departure(
            exchange, hands_on=self._hands_on, is_another_ready=partial(ticket.is_another_ready, replica.replica_id)
        )
        silence = None
        if not (exchange.call.is_streamed or exchange.call.is_assembled):
            silence = self._progress.watch(replica.url, self._timeouts.engine_silence_s, departure.silence)
        ticket.watch(replica.replica_id, departure.look)
        try:
            async with departure:
                await self._judged(replica, ticket, exchange)
        except TimeoutError:
            if not departure.is_due:
                raise
            if departure.is_silent:
                raise _silent() from None
            raise _lost(exchange, departure.why or Failure.EJECTED) from None
        finally:
            ticket.unwatch(replica.replica_id, departure.look)
            if silence is not None:
                silence.cancel()

    async def _attempt(self, replica: Candidate, exchange: Exchange) -> None:
        try:
            await self._tried(replica, exchange)
        except Unsaid as unsaid:
            await self._require_sound(replica, exchange)
            raise unsaid.otherwise from None

    async def _require_sound(self, replica: Candidate, exchange: Exchange) -> None:
        """Raise the engine's refusal of a call, asked whole: its typed streams do not have the words (RLY-23)."""
        call = exchange.call.asked_whole()
        with suppress(NotConnected, ConnectionBroken, TimeoutError):
            async with asyncio.timeout(REFUSAL_S):
                with await self._posted(replica, call, {}) as reply:
                    if reply.status != 200 and translation.blame(reply.status) is Blame.REQUEST:
                        await self._refused(reply, exchange)

    async def _tried(self, replica: Candidate, exchange: Exchange) -> None:
        call = exchange.call
        rates = self._estimates.kept(call.model, call.dialect.path)
        meter = exchange.begin(replica.replica_id, rates, replica.context_tokens)
        try:
            with (
                exchange.trace.attempt(replica.replica_id) as context,
                await self._posted(
                    replica,
                    call.with_transfer(exchange.transfer),
                    {**context, **exchange.urging()},
                    exchange.continuation,
                ) as reply,
            ):
                if reply.status != 200:
                    await self._refused(reply, exchange)
                elif (call.is_streamed or call.is_assembled) and call.dialect.stream:
                    await self._stream(reply, call.dialect.stream, exchange)
                else:
                    await self._whole(reply, exchange, meter)
        except NotConnected:
            raise _lost(exchange, Failure.REFUSED) from None
        except Misaligned:
            log.error(
                "request %s: replica %s went on with the stream in another way than it began",
                exchange.request_id,
                replica.replica_id,
            )
            raise EngineFailed(ENGINE_FAILED) from None
        except ConnectionBroken:
            raise self._broken(exchange) from None
        except Misshapen:
            raise (EngineFailed(ENGINE_FAILED) if exchange.has_content else AttemptFailed(Failure.MALFORMED)) from None
        except TimeoutError:
            raise _silent() from None

    def _broken(self, exchange: Exchange) -> EngineFailed | AttemptFailed | Unsaid:
        failed = _lost(exchange, Failure.BROKEN)
        if exchange.has_content:
            return failed
        is_typed = isinstance(exchange.call.dialect.stream, EventStream)
        return Unsaid(failed) if exchange.has_begun and is_typed else failed

    async def _posted(
        self, replica: Candidate, call: Call, context: Mapping[str, str], continuation: Continuation | None = None
    ) -> Reply:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **bearer(self._secret), **context}
        body = call.body
        if continuation is not None:
            headers, body = headers | continuation.headers(), continuation.body(body)
        # A whole answer's headers come with its end, a stream's at once.
        limit_s = self._timeouts.engine_silence_s if call.is_streamed or call.is_assembled else None
        return await self._upstream.post(replica.url + call.dialect.path, body, headers, limit_s)

    async def _refused(self, reply: Reply, exchange: Exchange) -> None:
        whose = translation.blame(reply.status)
        if whose is Blame.BUSY:
            raise AttemptFailed(Failure.BUSY)
        if whose is Blame.REPLICA:
            raise AttemptFailed(Failure.ERRORED)
        if exchange.has_content:
            # It was asked to go on with what another engine took.
            raise EngineFailed(ENGINE_FAILED)
        body = await reply.beginning(ERROR_BYTES_MAX, REFUSAL_S)
        exchange.forget()
        raise translation.refusal(reply.status, body, exchange.call)

    async def _stream(self, reply: Reply, stream: Stream, exchange: Exchange) -> None:
        splitter = events.Splitter()
        passage = Passage(exchange, stream, splitter)
        while block := await self._next_events(reply, splitter, exchange, passage):
            block = exchange.without_notes(block)
            if not block:
                continue
            failed = events.find_error(block)
            whole = block if failed is None else failed[0]
            end = events.find_end(whole, stream.endings)
            if end is not None:
                # Clients close the connection when they have read it, which is no leaving.
                exchange.sink.is_whole = True
                await self._pass_on(whole[:end], stream, exchange)
                exchange.learn()
                await exchange.finish()
                return await self._drop_rest(reply)
            await self._pass_on(whole, stream, exchange)
            if exchange.is_over:
                # The engine's connection, not read to its end, is closed on the way out: that stops it.
                return await exchange.finish()
            if failed is not None:
                self._raise_in_stream(failed[1], exchange)
        raise self._broken(exchange)

    async def _drop_rest(self, reply: Reply) -> None:
        """What follows the end is not part of the answer; an engine that goes on is cut off."""
        with suppress(ConnectionBroken, TimeoutError):
            async with asyncio.timeout(REST_S):
                async for _ in reply.pieces():
                    pass

    async def _pass_on(self, block: bytes, stream: Stream, exchange: Exchange) -> None:
        if not exchange.has_begun:
            block = events.without_comments(block)
            if block and not stream.opening.match(block):
                raise AttemptFailed(Failure.MALFORMED)
            exchange.has_begun = bool(block)
        if not exchange.has_output:
            exchange.look_for_output(block, stream)
        if data := exchange.rendered(block):
            await exchange.pass_on(data)

    def _raise_in_stream(self, data: bytes, exchange: Exchange) -> None:
        error = translation.in_stream(data, exchange.call)
        if isinstance(error, EngineFailed):
            raise _lost(exchange, Failure.ERRORED)
        if exchange.has_content:
            raise error
        exchange.forget()
        raise Unsaid(error) if translation.is_wrapped(data) else error

    async def _next_events(
        self, reply: Reply, splitter: events.Splitter, exchange: Exchange, passage: Passage
    ) -> bytes:
        """The next whole events that `passage` leaves, b"" at the end; while none are whole the client gets keep-alives."""
        silent_since = alive_at = self._clock()
        while not reply.is_over:
            if not (data := reply.read_nowait()):
                await self._wait(reply, exchange, passage, alive_at)
                silent_since, alive_at = max(silent_since, exchange.passed_at), max(alive_at, exchange.passed_at)
                data = reply.read_nowait()
            if data and (block := splitter.feed(data)):
                return block
            now = self._clock()
            if now - silent_since >= self._timeouts.engine_silence_s:
                raise _silent()
            if now - alive_at >= self._timeouts.keep_alive_s:
                await exchange.keep_alive()
                alive_at = self._clock()
        return b""

    async def _wait(self, reply: Reply, exchange: Exchange, passage: Passage, alive_at: float) -> None:
        """Return when there is something that `passage` leaves, or when it is time for a keep-alive."""

        def left_s() -> float:
            return max(alive_at, exchange.passed_at) + self._timeouts.keep_alive_s - self._clock()

        with Reminder(left_s, reply.wake):
            await reply.wait(passage.take)

    async def _whole(self, reply: Reply, exchange: Exchange, meter: Meter) -> None:
        with self._room.answer() as held:
            if await _filled(held, reply):
                await self._pass_whole(bytes(held.body), exchange, meter)
            else:
                await self._pass_large(bytes(held.body), reply, exchange, meter)
        await exchange.finish()

    async def _pass_whole(self, body: bytes, exchange: Exchange, meter: Meter) -> None:
        if not shapes.is_answer(body, exchange.call.dialect.answer):
            raise AttemptFailed(Failure.MALFORMED)
        meter.scan(body)
        meter.close()
        exchange.learn()
        await exchange.write_whole(exchange.shaped_whole(body))

    async def _pass_large(self, beginning: bytes, reply: Reply, exchange: Exchange, meter: Meter) -> None:
        """An answer for which there is no room: it goes on as it comes, and breaks off where its engine does."""
        if not shapes.may_be_answer(beginning):
            raise AttemptFailed(Failure.MALFORMED)
        headers = list(JSON_HEADERS)
        # An engine's length counts the bytes before they were decoded.
        if (length := reply.headers.get("content-length")) and "content-encoding" not in reply.headers:
            headers.append((b"content-length", length.encode("ascii")))
        meter.scan(beginning)
        await exchange.write(beginning, headers)
        while not reply.is_over:
            data = await reply.read(self._timeouts.engine_silence_s)
            if not data and not reply.is_over:
                raise _silent()
            meter.scan(data)
            await exchange.write(data, headers)
        meter.close()
        exchange.learn()


async def _filled(held: Held, reply: Reply) -> bool:
    """Take in the whole answer; False once there is no room for it."""
    while not reply.is_over:
        if not (piece := reply.read_nowait()):
            await reply.wait()
        elif not held.take(piece):
            return False
    return True


def _lost(exchange: Exchange, failure: Failure) -> AttemptFailed | EngineFailed:
    """What the loss of a replica comes to: another one's turn, or the end of a stream that none can go on with."""
    return AttemptFailed(failure) if exchange.can_move else EngineFailed(ENGINE_FAILED)


def _silent() -> EngineTimedOut:
    return EngineTimedOut("The engine sent nothing for too long.")


def _is_lost(replica_id: str, failure: Failure, seen: set[tuple[str, Failure]]) -> bool:
    """Is the replica gone, by this failure and those before it?"""
    # A connection that breaks once may have gone stale while idle; one that breaks twice has no server behind it.
    return failure is Failure.REFUSED or (failure is Failure.BROKEN and (replica_id, failure) in seen)
