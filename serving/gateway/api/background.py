"""Background: calls whose client does not wait for them (`background: true`): each runs on after its request, on the same metered path.

The request is answered once the call is within its limits and stored as `queued`. What ends it ends in the database: this gateway's
end, another's `cancel`, and at this gateway's death whoever notices that. A key that is revoked ends what it runs, and so does a tenant
that is disabled. Nothing is run a second time.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import msgspec

from serving.errors import (
    ApiError,
    EngineTimedOut,
    GatewayFull,
    InvalidRequest,
    RequestTimedOut,
    ResourceNotFound,
    StoreUnavailable,
    Unauthenticated,
)
from serving.gateway.api.visit import Visit
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.responses import error_event
from serving.gateway.identity.changes import Change, Kind, News
from serving.gateway.nouns import Caller, CallRecord, ClientLeft
from serving.gateway.observe.recorder import Written
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay import events
from serving.gateway.relay.exchange import STREAM_HEADERS
from serving.gateway.store.tables import RUNNING
from serving.gateway.stored import keeping, memory, running
from serving.gateway.stored.memory import Memory
from serving.gateway.stored.running import Running
from serving.gateway.stored.shelf import Kept, New, Standing
from serving.gateway.stored.turn import Turn

#: Seconds between two pieces of a stream that are kept: what another gateway's clients of it lag behind.
PIECE_S = 0.5
#: Seconds between two looks at a stream that another gateway runs, while a client follows it here.
LOOK_S = 0.5
#: Seconds between attempts to keep how one ended: an answer is not lost by an outage of half a minute.
END_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
#: Seconds in which calls that are cut off at this gateway's end say so in the database.
CLOSE_S = 5.0

log = logging.getLogger(__name__)


class Stage(msgspec.Struct, frozen=True):
    """Where a call that runs in the background writes to, and whom it tells how far it is."""

    sink: Running
    #: It is within its limits.
    accepted: Callable[[], Awaitable[None]]
    #: It has a replica.
    begun: Callable[[], Awaitable[None]]


#: Relays a call to the stage's sink.
Perform = Callable[[Stage], Awaitable[None]]


class _Run:
    """One of this gateway's."""

    def __init__(self, visit: Visit, new: New, shell: dict[str, Any], output: Running) -> None:
        self.visit = visit
        self.new = new
        self.shell = shell
        self.output = output
        self.accepted = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        #: A client has ended it, by this gateway or another; or why its caller may call no more.
        self.is_cancelled = False
        self.withdrawn: ApiError | None = None

    def cancel(self, why: ApiError | None = None) -> None:
        # Told once, by a request and by the feed of changes: how it ends is being kept meanwhile.
        if self.is_cancelled:
            return
        self.is_cancelled, self.withdrawn = True, why
        if self.task is not None:
            self.task.cancel()

    def error(self, raised: BaseException) -> BaseException:
        """What has ended it, where this was raised."""
        if not (self.is_cancelled and isinstance(raised, asyncio.CancelledError)):
            return raised
        return self.withdrawn or ClientLeft()

    def ending(self, error: BaseException) -> dict[str, Any]:
        """The response, ended by this."""
        if self.is_cancelled and isinstance(error, ClientLeft | Unauthenticated):
            return running.cancelled(self.shell, self.withdrawn)
        return running.failed(self.shell, error if isinstance(error, ApiError) else None)


class Background:
    """All of one gateway's."""

    def __init__(
        self,
        kept: Memory,
        settle: Callable[[CallRecord, Written, Trace, BaseException | None], None],
        open_request: Callable[[], AbstractContextManager[None]],
        as_now: Callable[[str, str], Awaitable[Caller]],
        gateway_id: str,
        *,
        total_s: float,
        calls_max: int,
        keep_alive_s: float,
    ) -> None:
        self._memory = kept
        self._settle = settle
        self._open_request = open_request
        self._as_now = as_now
        self._gateway_id = gateway_id
        self._total_s = total_s
        self._calls_max = calls_max
        self._keep_alive_s = keep_alive_s
        self._runs: dict[str, _Run] = {}
        self._checks: set[asyncio.Task[None]] = set()

    def running(self) -> frozenset[str]:
        """The responses that run here now."""
        return frozenset(self._runs)

    async def serve(self, visit: Visit, call: Call, turn: Turn, perform: Perform, take: Callable[[int], None]) -> None:
        """Let a call run, and answer its request; raises what refuses the call. `take` takes the memory that its client needs."""
        run = await self._begun(visit, call, turn, perform)
        if call.is_streamed:
            await self._follow(visit, run.output, -1, take)
        else:
            await visit.responder.whole(200, running.encoded(run.shell))

    async def _begun(self, visit: Visit, call: Call, turn: Turn, perform: Perform) -> _Run:
        if len(self._runs) >= self._calls_max:
            raise GatewayFull("Too many responses run in the background; please try again.", retry_after_s=1)
        new, shell = memory.new(turn, self._gateway_id, is_streamed=call.is_streamed), turn.shell(call)
        output = Running(new.id, turn.caller.tenant_id, is_streamed=call.is_streamed, end=partial(self._end, new))
        run = self._runs[new.id] = _Run(visit, new, shell, output)
        run.task = asyncio.create_task(self._run(run, perform), name=new.id)
        accepted = asyncio.create_task(run.accepted.wait())
        try:
            await asyncio.wait((run.task, accepted), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not run.accepted.is_set():
                run.cancel()
            raise
        finally:
            accepted.cancel()
        if not run.accepted.is_set():
            # It raises what refused it.
            await run.task
        return run

    async def _run(self, run: _Run, perform: Perform) -> None:
        error: BaseException | None = None
        keeping_events = asyncio.create_task(self._keep_events(run.output)) if run.output.is_streamed else None
        try:
            with self._open_request():
                await self._performed(run, perform)
        except BaseException as raised:
            error = run.error(raised)
            if not run.accepted.is_set():
                if run.withdrawn is not None:
                    raise run.withdrawn from None
                raise
            await self._failed(run, error)
        finally:
            self._runs.pop(run.new.id, None)
            if keeping_events is not None:
                keeping_events.cancel()
            if run.accepted.is_set():
                self._settle(run.visit.record, run.output, run.visit.trace, error)
            error = None

    async def _performed(self, run: _Run, perform: Perform) -> None:
        async def accepted() -> None:
            await self._memory.done(self._memory.shelf.put, run.new, running.encoded(run.shell), "queued")
            if run.output.is_streamed:
                run.output.open(run.shell)
            run.visit.is_handed_over = True
            run.accepted.set()

        async def begun() -> None:
            await self._memory.done(self._memory.shelf.advance, run.new.id, "in_progress")

        try:
            async with asyncio.timeout(self._total_s):
                await perform(Stage(run.output, accepted, begun))
        except TimeoutError:
            raise EngineTimedOut("The response took too long.") from None

    async def _failed(self, run: _Run, error: BaseException) -> None:
        """Say in the database that it came to nothing; where that is away, this gateway's death will be noticed instead."""
        if not isinstance(error, ApiError | ClientLeft | asyncio.CancelledError):
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("response %s: unforeseen %s at\n%s", run.new.id, type(error).__name__, place)
        document = run.ending(error)
        last = running.last_event(document, run.output.last_number + 1)
        ending = asyncio.ensure_future(self._ended(run, document))
        try:
            # This gateway may be stopping: what is begun is finished.
            told = await asyncio.shield(ending)
            last = last if told is None else told
        except ApiError as unkept:
            log.error("response %s: its end could not be kept: %s", run.new.id, unkept.code)
        finally:
            run.output.fail(last)

    async def _ended(self, run: _Run, document: dict[str, Any]) -> bytes | None:
        """Keep how it ended. Of one that was ended or deleted before, the last event of its stream, which says so."""
        if await self._end(run.new, running.encoded(document)) or not run.output.is_streamed:
            return None
        number = run.output.last_number + 1
        try:
            kept = await self._memory.done(self._memory.shelf.get, run.output.tenant_id, run.new.id)
        except ResourceNotFound as gone:
            return error_event(gone, run.visit.responder.request_id, number)
        return running.last_event(msgspec.json.decode(kept.response), number)

    async def _end(self, new: New, response: bytes) -> bool:
        """Keep how it ended, and what of its stream was not kept before; a database that is away is asked again for a while.

        False where it was ended or deleted before.
        """
        run = self._runs.get(new.id)
        for pause_s in (*END_PAUSES_S, None):
            try:
                if run is not None and run.output.is_streamed:
                    await self._keep_new_events(run.output)
                return await self._memory.done(self._memory.shelf.end, new, response, keeping.status_of(response))
            except StoreUnavailable:
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
        return False

    async def _keep_events(self, output: Running) -> None:
        """Keep what is new of a stream, every now and then, until it is over: its last event is made anew."""
        while True:
            await output.changed(self._total_s)
            await asyncio.sleep(PIECE_S)
            if output.is_over:
                return
            with suppress(StoreUnavailable):
                await self._keep_new_events(output)

    async def _keep_new_events(self, output: Running) -> None:
        async with output.keeping:
            waiting = output.unkept()
            if waiting:
                first, last = waiting[0][0], waiting[-1][0]
                block = b"".join(event for _, event in waiting)
                keep = self._memory.shelf.keep_events
                await self._memory.done(keep, output.tenant_id, output.id, first, last, block)
                output.kept += len(waiting)

    async def cancel(self, tenant_id: str, response_id: str) -> Kept:
        """End a response, whichever gateway runs it. Raises ResourceNotFound, and InvalidRequest where it ran for a client that waited."""
        kept = await self._memory.done(self._memory.shelf.cancel, tenant_id, response_id)
        self.stop(response_id)
        return kept

    def stop(self, response_id: str) -> None:
        """The response is over, or gone, in the database."""
        if (run := self._runs.get(response_id)) is not None:
            run.cancel()

    def follow(self, news: News) -> None:
        """Stop what other gateways have ended, and what runs for those who may call no more."""
        if news.changes is None:
            if self._runs:
                self._begin(self._check())
        else:
            for change in news.changes:
                if change.kind == Kind.RESPONSE:
                    self.stop(change.subject)
        for run in self._runs.values():
            if news.changes is None or any(_concerns(change, run.new.caller) for change in news.changes):
                self._begin(self._require_right(run))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        check = asyncio.create_task(work)
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    async def _check(self) -> None:
        mine = [run.new.id for run in self._runs.values() if run.accepted.is_set()]
        with suppress(StoreUnavailable):
            for gone in set(mine) - await self._memory.done(self._memory.shelf.runs, mine):
                self.stop(gone)

    async def _require_right(self, run: _Run) -> None:
        """End it where its caller may call no more; where that cannot be known now, it runs on."""
        caller = run.new.caller
        try:
            await self._as_now(caller.tenant_id, caller.key_id)
        except Unauthenticated as refused:
            run.cancel(refused)
        except StoreUnavailable:
            return

    async def stream(
        self, visit: Visit, found: Standing, tenant_id: str, after: int, take: Callable[[int], None]
    ) -> None:
        """Answer with a response's events behind number `after`, and with those to come; `take` takes the memory that it needs."""
        if not found.is_background:
            raise InvalidRequest(
                "Only responses that were made in the background can be streamed again.", param="stream"
            )
        if not found.is_streamed:
            raise InvalidRequest(
                "Only responses that were made with 'stream': true can be streamed again.", param="stream"
            )
        run = self._runs.get(found.id)
        try:
            # None runs longer: a client that is still there then does not read.
            async with asyncio.timeout(self._total_s):
                if run is not None:
                    await self._follow(visit, run.output, after, take)
                else:
                    await self._follow_elsewhere(visit, found, tenant_id, after, take)
        except TimeoutError:
            raise RequestTimedOut("The answer was not read in time.") from None

    async def _follow(self, visit: Visit, output: Running, after: int, take: Callable[[int], None]) -> None:
        """Events from this gateway's memory, and what is no longer there from the database, as at any other."""
        behind = await self._follow_here(visit, output, after)
        if behind is not None:
            found = await self._memory.done(self._memory.shelf.standing, output.tenant_id, output.id)
            await self._follow_elsewhere(visit, found, output.tenant_id, behind, take)

    async def _follow_here(self, visit: Visit, output: Running, after: int) -> int | None:
        """None at the end of the stream; the number of the last event that was written, where those behind it are gone from memory."""
        responder = visit.responder
        visit.error_event = lambda error: error_event(error, responder.request_id, after + 1)
        async with visit.request.cancel_when_client_leaves(responder):
            await responder.start(200, STREAM_HEADERS)
            place = 0
            while output.has(place):
                is_over, found = output.is_over, output.behind(place, keeping.PIECE_BYTES)
                place += len(found)
                wanted = [(number, event) for number, event in found if number > after]
                if wanted:
                    after = wanted[-1][0]
                    await responder.write(b"".join(event for _, event in wanted))
                elif not found and is_over:
                    await responder.finish()
                    return None
                elif not found:
                    await self._wait(visit, output)
        return after

    async def _wait(self, visit: Visit, output: Running) -> None:
        count = output.count
        await output.changed(self._keep_alive_s)
        if output.count == count and not output.is_over:
            await visit.responder.write(events.KEEP_ALIVE)

    async def _follow_elsewhere(
        self, visit: Visit, kept: Standing, tenant_id: str, after: int, take: Callable[[int], None]
    ) -> None:
        shelf, responder = self._memory.shelf, visit.responder
        visit.error_event = lambda error: error_event(error, responder.request_id, after + 1)
        looks, taken = 0, 0
        async with visit.request.cancel_when_client_leaves(responder):
            while True:
                pieces = await self._memory.done(shelf.events, tenant_id, kept.id, after)
                # The most that is held at once; written, it is given to the next pieces.
                size = sum(map(len, pieces))
                take(max(0, size - taken))
                taken = max(taken, size)
                found = [it for piece in pieces for it in running.numbered(piece) if it[0] > after]
                del pieces
                if not found and kept.status not in RUNNING:
                    break
                if not responder.is_started:
                    await responder.start(200, STREAM_HEADERS)
                if found:
                    after, looks = found[-1][0], 0
                    await responder.write(b"".join(event for _, event in found))
                    continue
                looks += 1
                await asyncio.sleep(LOOK_S)
                if looks * LOOK_S >= self._keep_alive_s:
                    looks = 0
                    await responder.write(events.KEEP_ALIVE)
                kept = await self._memory.done(shelf.standing, tenant_id, kept.id)
            await self._finish_elsewhere(visit, tenant_id, kept.id, after, take)

    async def _finish_elsewhere(
        self, visit: Visit, tenant_id: str, response_id: str, after: int, take: Callable[[int], None]
    ) -> None:
        """The last event, which is made of the response as it was kept."""
        shelf, responder = self._memory.shelf, visit.responder
        number = await self._memory.done(shelf.last_number, response_id) + 1
        response = (await self._memory.done(shelf.get, tenant_id, response_id)).response
        take(len(response))
        if not responder.is_started:
            await responder.start(200, STREAM_HEADERS)
        last = running.last_event(msgspec.json.decode(response), number) if number > after else b""
        del response
        for piece in keeping.pieces(last):
            await responder.write(piece)
        await responder.finish()

    async def close(self) -> None:
        """Cut off what runs, say so in the database, and let go of the threads that ask it."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        self._memory.close()


def _concerns(change: Change, caller: Caller) -> bool:
    """May a change have taken a caller's right to call?"""
    if change.kind == Kind.KEY:
        return change.subject == caller.key_id
    return change.kind == Kind.TENANT and change.subject == caller.tenant_id
