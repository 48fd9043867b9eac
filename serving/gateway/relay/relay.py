"""Relay: one call to one engine and its bytes back, untouched but for usage that the client did not ask for.

Until the first byte of an answer went out, a replica that fails is replaced; after it, the stream ends in an error event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import aiohttp

from serving.config import Timeouts
from serving.errors import EngineFailed, EngineTimedOut
from serving.gateway.admission.admission import Ticket
from serving.gateway.admission.estimates import Estimates
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.dialect import Stream
from serving.gateway.fleet.router import Candidate
from serving.gateway.fleet.sources import bearer
from serving.gateway.http.asgi import Header
from serving.gateway.http.upstream import Upstream
from serving.gateway.nouns import Failure
from serving.gateway.relay import events, translation
from serving.gateway.relay.exchange import STREAM_HEADERS, Exchange
from serving.gateway.relay.metering import Meter
from serving.gateway.relay.translation import ENGINE_FAILED, Blame
from serving.secret import PlaneSecret

#: Replicas that may fail under one call before the call itself is suspected of killing them.
FAILURES_MAX = 3
#: Bytes of an engine's error body that are read.
ERROR_BYTES_MAX = 64 * 1024
#: Seconds in which an engine closes an answer whose end it has sent.
REST_S = 1.0

log = logging.getLogger(__name__)


class AttemptFailed(Exception):
    """Another replica may try. Never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Relay:
    """Shared by all calls of a gateway."""

    def __init__(
        self,
        upstream: Upstream,
        estimates: Estimates,
        timeouts: Timeouts,
        secret: PlaneSecret | None,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._estimates = estimates
        self._timeouts = timeouts
        self._secret = secret
        self._clock = clock

    async def relay(self, exchange: Exchange, ticket: Ticket) -> None:
        """Answer an admitted call. Raises ApiError; the sink knows how far the answer had got."""
        try:
            await self._relay(exchange, ticket)
        finally:
            exchange.settle()

    async def _relay(self, exchange: Exchange, ticket: Ticket) -> None:
        seen: set[tuple[str, Failure]] = set()
        failures = 0
        while failures < FAILURES_MAX:
            async with ticket.replica({replica_id for replica_id, _ in seen}) as replica:
                try:
                    return await self._attempt(replica, exchange)
                except AttemptFailed as attempt:
                    failure = attempt.failure
            exchange.fail(failure)
            log.warning("replica %s: attempt %s", replica.replica_id, failure)
            if _is_lost(replica.replica_id, failure, seen):
                ticket.report_lost(replica.replica_id)
            seen.add((replica.replica_id, failure))
            failures += failure in (Failure.BROKEN, Failure.ERRORED)
            if failure is Failure.BUSY:
                ticket.require_time()
        raise EngineFailed(ENGINE_FAILED)

    async def _attempt(self, replica: Candidate, exchange: Exchange) -> None:
        call, session = exchange.call, self._upstream.session
        meter = exchange.begin(replica.replica_id, self._estimates.kept(call.model))
        try:
            with exchange.trace.attempt(replica.replica_id) as context:
                async with self._posted(session, replica.url + call.dialect.path, call, context) as response:
                    if response.status != 200:
                        await self._refused(response, exchange)
                    elif call.is_streamed and call.dialect.stream:
                        await self._stream(response.content, call.dialect.stream, exchange, meter)
                    else:
                        await self._whole(response, exchange, meter)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise AttemptFailed(Failure.REFUSED) from None
        except aiohttp.ClientError:
            raise self._broken(exchange) from None
        except TimeoutError:
            raise _silent() from None

    def _broken(self, exchange: Exchange) -> EngineFailed | AttemptFailed:
        return EngineFailed(ENGINE_FAILED) if exchange.has_content else AttemptFailed(Failure.BROKEN)

    @asynccontextmanager
    async def _posted(
        self, session: aiohttp.ClientSession, url: str, call: Call, context: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **bearer(self._secret), **context}
        # A whole answer's headers come with its end, a stream's at once.
        async with asyncio.timeout(self._timeouts.engine_silence_s if call.is_streamed else None):
            response = await session.post(url, data=call.body, headers=headers, allow_redirects=False)
        try:
            yield response
        except BaseException:
            # Closing the connection is what makes the engine stop at once.
            response.close()
            raise
        else:
            response.release()

    async def _refused(self, response: aiohttp.ClientResponse, exchange: Exchange) -> None:
        whose = translation.blame(response.status)
        if whose is Blame.BUSY:
            raise AttemptFailed(Failure.BUSY)
        if whose is Blame.REPLICA:
            raise AttemptFailed(Failure.ERRORED)
        body = await response.content.read(ERROR_BYTES_MAX)
        exchange.forget()
        raise translation.refusal(response.status, body, exchange.call)

    async def _stream(self, content: aiohttp.StreamReader, stream: Stream, exchange: Exchange, meter: Meter) -> None:
        splitter = events.Splitter()
        has_ended = False
        while data := await self._read(content, exchange):
            block = splitter.feed(data)
            if not block:
                continue
            failed = events.find_error(block)
            if failed is not None:
                await self._pass_on(failed[0], exchange, meter)
                self._raise_in_stream(failed[1], exchange)
            has_ended = any(ending in block for ending in stream.endings)
            # Clients close the connection when they have read it, which is no leaving.
            exchange.sink.is_whole = has_ended
            await self._pass_on(block, exchange, meter)
            if has_ended:
                await self._pass_rest(content, splitter, exchange, meter)
                break
        if not has_ended:
            raise self._broken(exchange)
        exchange.learn()
        await exchange.sink.finish()

    async def _pass_rest(
        self, content: aiohttp.StreamReader, splitter: events.Splitter, exchange: Exchange, meter: Meter
    ) -> None:
        """What follows the end, such as a last [DONE]: it comes at once, or is not missed."""
        while data := await self._rest(content):
            if block := splitter.feed(data):
                await self._pass_on(block, exchange, meter)

    async def _rest(self, content: aiohttp.StreamReader) -> bytes:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(REST_S):
                return await content.readany()
        return b""

    async def _pass_on(self, block: bytes, exchange: Exchange, meter: Meter) -> None:
        meter.scan(block)
        if exchange.strips_usage:
            block = events.without_usage(block, keeps_final=exchange.call.wants_usage)
        if block:
            await exchange.write(block, STREAM_HEADERS)

    def _raise_in_stream(self, data: bytes, exchange: Exchange) -> None:
        error = translation.in_stream(data, exchange.call)
        if isinstance(error, EngineFailed) and not exchange.has_content:
            raise AttemptFailed(Failure.ERRORED)
        if not exchange.has_content:
            exchange.forget()
        raise error

    async def _read(self, content: aiohttp.StreamReader, exchange: Exchange) -> bytes:
        """The next bytes, b"" at the end; while none come the client gets keep-alives."""
        if data := content.read_nowait():
            return data
        silent_since = self._clock()
        while True:
            try:
                async with asyncio.timeout(self._timeouts.keep_alive_s):
                    return await content.readany()
            except TimeoutError:
                if self._clock() - silent_since >= self._timeouts.engine_silence_s:
                    raise _silent() from None
                await exchange.keep_alive()

    async def _whole(self, response: aiohttp.ClientResponse, exchange: Exchange, meter: Meter) -> None:
        length = response.headers.get("Content-Length")
        headers: list[Header] = [(b"content-type", b"application/json")]
        if length is not None:
            headers.append((b"content-length", length.encode("ascii")))
        async for data in response.content.iter_any():
            meter.scan(data)
            await exchange.write(data, headers)
        if not exchange.has_content:
            raise AttemptFailed(Failure.BROKEN)
        meter.close()
        exchange.learn()
        await exchange.sink.finish()


def _silent() -> EngineTimedOut:
    return EngineTimedOut("The engine sent nothing for too long.")


def _is_lost(replica_id: str, failure: Failure, seen: set[tuple[str, Failure]]) -> bool:
    """Is the replica gone, by this failure and those before it?"""
    # A connection that breaks once may have gone stale while idle; one that breaks twice has no server behind it.
    return failure is Failure.REFUSED or (failure is Failure.BROKEN and (replica_id, failure) in seen)
