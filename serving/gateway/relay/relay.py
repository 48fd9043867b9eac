"""Relay: one call to one engine and its bytes back, untouched but for usage nobody asked for.

Until the first byte of an answer went out, a replica that fails is replaced; after it,
the stream ends in an error event.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress

import aiohttp

from serving.config import Timeouts
from serving.errors import EngineFailed, EngineTimedOut, NoReplicaReady
from serving.gateway.dialects.calls import Call
from serving.gateway.dialects.routes import StreamKind
from serving.gateway.fleet import router
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.sources import bearer
from serving.gateway.http.asgi import Header, Responder
from serving.gateway.ledger.ledger import Usage
from serving.gateway.observe.gaps import Gaps
from serving.gateway.observe.tracing import Trace
from serving.gateway.passage import Failure, Passage
from serving.gateway.relay import events, metering, translation
from serving.gateway.relay.metering import Meter, Rates
from serving.gateway.relay.translation import ENGINE_FAILED, Blame
from serving.secret import PlaneSecret

#: Replicas that may fail under one call before the call itself is suspected of killing them.
FAILURES_MAX = 3
#: Seconds before a replica that could not take a call is asked again.
PAUSE_S = 0.25
#: Bytes of an engine's error body that are read.
ERROR_BYTES_MAX = 64 * 1024
#: Seconds in which an engine closes an answer whose end it has sent.
REST_S = 1.0
#: Seconds an idle connection is kept: below the 5 s after which vLLM's server closes it.
IDLE_CONNECTION_S = 2.0

_STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx and its kind would hold chunks back otherwise.
    (b"x-accel-buffering", b"no"),
]

log = logging.getLogger(__name__)


class AttemptFailed(Exception):
    """Another replica may try. Never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Exchange:
    """One call and its answer: how far it has got, what it has cost."""

    def __init__(self, call: Call, responder: Responder, trace: Trace, clock: Callable[[], float]) -> None:
        self.call = call
        self.responder = responder
        self.trace = trace
        self.replica_id: str | None = None
        self.first_byte_at: float | None = None
        #: Seconds it waited for a replica, and whether it had to.
        self.waited_s = 0.0
        self.was_held = False
        self.failures: Counter[str] = Counter()
        self.lost = 0
        self._bytes_passed = 0
        self._keep_alives = 0
        self._gaps = Gaps()
        self._last_byte_at = 0.0
        self._clock = clock
        self._meter: Meter | None = None
        self._sent_at = 0.0

    @property
    def retries(self) -> int:
        return self.failures.total()

    def passage(self) -> Passage:
        """What passed, for the metrics."""
        return Passage(
            was_held=self.was_held,
            bytes_passed=self._bytes_passed,
            keep_alives=self._keep_alives,
            gaps=self._gaps if self.call.is_streamed else None,
            failures=self.failures,
            lost=self.lost,
        )

    @property
    def has_content(self) -> bool:
        """Bytes of an answer went out; comments that keep a connection alive do not count."""
        return self.first_byte_at is not None

    @property
    def events_passed(self) -> int:
        return self._meter.events_passed if self._meter else 0

    def begin(self, replica_id: str, rates: Rates) -> Meter:
        """An engine gets the call now."""
        self.replica_id = replica_id
        self._sent_at = self._clock()
        self._meter = metering.meter_for(self.call, rates)
        return self._meter

    @contextmanager
    def held(self) -> Iterator[None]:
        """It waits for a replica while inside."""
        self.was_held = True
        held_at = self._clock()
        try:
            yield
        finally:
            self.waited_s += self._clock() - held_at

    def forget(self) -> None:
        """That engine did nothing the client can be billed for."""
        self._meter = None

    def usage(self) -> Usage:
        """Tokens so far: exact once the engine has said so, else estimated."""
        return self._meter.usage(self._clock() - self._sent_at) if self._meter else Usage()

    def learn(self) -> None:
        if self._meter:
            self._meter.learn(self._clock() - self._sent_at)

    async def keep_alive(self) -> None:
        self._keep_alives += 1
        if not self.responder.is_started:
            await self.responder.start(200, _STREAM_HEADERS)
        await self.responder.write(events.KEEP_ALIVE)

    async def write(self, data: bytes, headers: list[Header]) -> None:
        now = self._clock()
        if self.first_byte_at is None:
            self.first_byte_at = now
            if not self.responder.is_started:
                await self.responder.start(200, headers)
        else:
            self._gaps.observe(now - self._last_byte_at)
        self._bytes_passed += len(data)
        await self.responder.write(data)
        # When it was written: while the client does not read, its engine is not slow.
        self._last_byte_at = self._clock()


def session(timeouts: Timeouts, tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """The one client session of a gateway; how long an answer may take is the relay's matter."""
    connect = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.engine_connect_s)
    # As many connections as there are calls, not kept long enough to go stale.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, ssl=tls or True)
    return aiohttp.ClientSession(connector=connector, timeout=connect, cookie_jar=aiohttp.DummyCookieJar())


class Relay:
    """Shared by all calls of a gateway."""

    def __init__(
        self,
        client: aiohttp.ClientSession,
        fleet: Fleet,
        demands: Demands,
        timeouts: Timeouts,
        secret: PlaneSecret | None,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._fleet = fleet
        self._demands = demands
        self._timeouts = timeouts
        self._secret = secret
        self._clock = clock
        self._turn = 0
        self._rates: dict[str, Rates] = {}

    async def relay(self, exchange: Exchange) -> None:
        """Answer a call. Raises ApiError; the responder knows how far the answer had got."""
        call, model = exchange.call, exchange.call.model
        rates = self._rates.get(model) or Rates()
        prompt_tokens = rates.prompt_tokens(call) if call.route.is_billed else 0
        if self._fleet.lists(model):  # other names are a client's, and without number
            self._demands.arrive(self._fleet.base_of(model), prompt_tokens, rates.output_tokens(call))
        is_woken = self._fleet.may_sleep(model) and not self._fleet.candidates(model)
        deadline = self._clock() + (self._timeouts.wake_wait_s if is_woken else self._timeouts.replica_wait_s)
        seen: set[tuple[str, Failure]] = set()
        failures = 0
        while failures < FAILURES_MAX:
            suspects = {replica_id for replica_id, _ in seen}
            replica = await self._next_replica(exchange, suspects, deadline, prompt_tokens)
            try:
                with self._fleet.committed(replica.replica_id):
                    return await self._attempt(replica, exchange)
            except AttemptFailed as attempt:
                exchange.forget()
                exchange.failures[attempt.failure] += 1
                log.warning("replica %s: attempt %s", replica.replica_id, attempt.failure)
                exchange.lost += self._take_note(replica.replica_id, attempt.failure, seen)
                failures += attempt.failure in (Failure.BROKEN, Failure.ERRORED)
                if attempt.failure is Failure.BUSY and self._clock() >= deadline:
                    raise NoReplicaReady(f"The model '{model}' is busy; try again soon.", retry_after_s=5) from None
        raise EngineFailed(ENGINE_FAILED)

    def _take_note(self, replica_id: str, failure: Failure, seen: set[tuple[str, Failure]]) -> bool:
        """Remember an attempt that failed; was the replica lost by it?"""
        # A connection that breaks once may have gone stale while idle; twice, and nobody is there.
        is_gone = failure is Failure.BROKEN and (replica_id, failure) in seen
        is_lost = is_gone or failure is Failure.REFUSED
        if is_lost:
            self._fleet.report_lost(replica_id)
        seen.add((replica_id, failure))
        return is_lost

    async def _next_replica(
        self, exchange: Exchange, suspects: set[str], deadline: float, prompt_tokens: int
    ) -> router.Candidate:
        """The best replica not suspected, else a suspected one after a pause, else whichever becomes ready in time."""
        model = exchange.call.model
        self._turn += 1
        while True:
            candidates = self._fleet.candidates(model)
            fresh = [candidate for candidate in candidates if candidate.replica_id not in suspects]
            if fresh:
                return router.rank(fresh, self._turn)[0]
            with exchange.held():
                if candidates:
                    await asyncio.sleep(PAUSE_S)
                    return router.rank(candidates, self._turn)[0]
                await self._fleet.wait_until_ready(model, deadline, prompt_tokens)

    async def _attempt(self, replica: router.Candidate, exchange: Exchange) -> None:
        call = exchange.call
        meter = exchange.begin(replica.replica_id, self._rates.setdefault(call.model, Rates()))
        try:
            with exchange.trace.attempt(replica.replica_id) as context:
                async with self._posted(replica.url + call.route.path, call, context) as response:
                    if response.status != 200:
                        await self._refused(response, exchange)
                    elif call.is_streamed:
                        await self._stream(response.content, exchange, meter)
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
    async def _posted(self, url: str, call: Call, context: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **bearer(self._secret), **context}
        # A whole answer's headers come with its end, a stream's at once.
        async with asyncio.timeout(self._timeouts.engine_silence_s if call.is_streamed else None):
            response = await self._client.post(url, data=call.body, headers=headers, allow_redirects=False)
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

    async def _stream(self, content: aiohttp.StreamReader, exchange: Exchange, meter: Meter) -> None:
        splitter = events.Splitter()
        endings = metering.ENDINGS[exchange.call.route.streams]
        has_ended = False
        while data := await self._read(content, exchange):
            block = splitter.feed(data)
            if not block:
                continue
            failed = events.find_error(block)
            if failed is not None:
                await self._pass_on(failed[0], exchange, meter)
                self._raise_in_stream(failed[1], exchange)
            has_ended = any(ending in block for ending in endings)
            # Clients close the connection when they have read it, which is no leaving.
            exchange.responder.is_whole = has_ended
            await self._pass_on(block, exchange, meter)
            if has_ended:
                await self._pass_rest(content, splitter, exchange, meter)
                break
        if not has_ended:
            raise self._broken(exchange)
        exchange.learn()
        await exchange.responder.finish()

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
        call = exchange.call
        if call.route.streams is StreamKind.CHUNKS and not call.wants_continuous_usage:
            block = events.without_usage(block, keeps_final=call.wants_usage)
        if block:
            await exchange.write(block, _STREAM_HEADERS)

    def _raise_in_stream(self, data: bytes, exchange: Exchange) -> None:
        error = translation.in_stream(data, exchange.call)
        if isinstance(error, EngineFailed) and not exchange.has_content:
            raise AttemptFailed(Failure.ERRORED)
        if not exchange.has_content:
            exchange.forget()
        raise error

    async def _read(self, content: aiohttp.StreamReader, exchange: Exchange) -> bytes:
        """The next bytes, b"" at the end; while none come the client hears that we are alive."""
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
        await exchange.responder.finish()


def _silent() -> EngineTimedOut:
    return EngineTimedOut("The engine sent nothing for too long.")
