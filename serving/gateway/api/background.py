"""Background: calls whose client does not wait for them (`background: true`): each runs on after its request, on the same metered path.

The request is answered once the call is within its limits and stored as `queued`. What ends it ends in the database: this gateway's
end, another's `cancel`, and at this gateway's death whoever notices that. Nothing is run a second time.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import msgspec

from serving.errors import ApiError, EngineTimedOut, GatewayFull, InvalidRequest, StoreUnavailable
from serving.gateway.api.visit import Visit
from serving.gateway.dialects.call import Call
from serving.gateway.identity.changes import Kind, News
from serving.gateway.nouns import CallRecord, ClientLeft
from serving.gateway.observe.recorder import Written
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay import events
from serving.gateway.relay.exchange import STREAM_HEADERS
from serving.gateway.store.tables import RUNNING
from serving.gateway.stored import keeping, memory, running
from serving.gateway.stored.memory import Memory
from serving.gateway.stored.running import Running
from serving.gateway.stored.shelf import Kept, New
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
        #: A client has ended it, by this gateway or another.
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.task is not None:
            self.task.cancel()


class Background:
    """All of one gateway's."""

    def __init__(
        self,
        kept: Memory,
        settle: Callable[[CallRecord, Written, Trace, BaseException | None], None],
        open_request: Callable[[], AbstractContextManager[None]],
        gateway_id: str,
        *,
        total_s: float,
        calls_max: int,
        keep_alive_s: float,
    ) -> None:
        self._memory = kept
        self._settle = settle
        self._open_request = open_request
        self._gateway_id = gateway_id
        self._total_s = total_s
        self._calls_max = calls_max
        self._keep_alive_s = keep_alive_s
        self._runs: dict[str, _Run] = {}
        self._checks: set[asyncio.Task[None]] = set()

    def running(self) -> frozenset[str]:
        """The responses that run here now."""
        return frozenset(self._runs)

    async def serve(self, visit: Visit, call: Call, turn: Turn, perform: Perform) -> None:
        """Let a call run, and answer its request; raises what refuses the call."""
        run = await self._begun(visit, call, turn, perform)
        if call.is_streamed:
            await self._follow_here(visit, run.output, -1)
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
            error = ClientLeft() if run.is_cancelled and isinstance(raised, asyncio.CancelledError) else raised
            if not run.accepted.is_set():
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
        if isinstance(error, ClientLeft):
            document = run.shell | {"status": "cancelled"}
        else:
            document = running.failed(run.shell, error if isinstance(error, ApiError) else None)
        ending = asyncio.ensure_future(self._end(run.new, running.encoded(document)))
        try:
            # This gateway may be stopping: what is begun is finished.
            await asyncio.shield(ending)
        except ApiError as unkept:
            log.error("response %s: its end could not be kept: %s", run.new.id, unkept.code)
        finally:
            run.output.fail(document)

    async def _end(self, new: New, response: bytes) -> None:
        """Keep how it ended, and what of its stream was not kept before; a database that is away is asked again for a while."""
        run = self._runs.get(new.id)
        for pause_s in (*END_PAUSES_S, None):
            try:
                if run is not None and run.output.is_streamed:
                    await self._keep_new_events(run.output)
                await self._memory.done(self._memory.shelf.end, new, response, keeping.status_of(response))
                return
            except StoreUnavailable:
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

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
        """Stop what other gateways have ended."""
        if news.changes is None:
            if self._runs:
                check = asyncio.create_task(self._check())
                self._checks.add(check)
                check.add_done_callback(self._checks.discard)
            return
        for change in news.changes:
            if change.kind == Kind.RESPONSE:
                self.stop(change.subject)

    async def _check(self) -> None:
        mine = [run.new.id for run in self._runs.values() if run.accepted.is_set()]
        with suppress(StoreUnavailable):
            for gone in set(mine) - await self._memory.done(self._memory.shelf.runs, mine):
                self.stop(gone)

    async def stream(self, visit: Visit, kept: Kept, tenant_id: str, after: int) -> None:
        """Answer with a response's events behind number `after`, and with those to come."""
        if not kept.is_background:
            raise InvalidRequest(
                "Only responses that were made in the background can be streamed again.", param="stream"
            )
        if not kept.is_streamed:
            raise InvalidRequest(
                "Only responses that were made with 'stream': true can be streamed again.", param="stream"
            )
        run = self._runs.get(kept.id)
        if run is not None:
            await self._follow_here(visit, run.output, after)
        else:
            await self._follow_elsewhere(visit, kept, tenant_id, after)

    async def _follow_here(self, visit: Visit, output: Running, after: int) -> None:
        responder = visit.responder
        async with visit.request.cancel_when_client_leaves(responder):
            await responder.start(200, STREAM_HEADERS)
            place = 0
            while True:
                is_over, found = output.is_over, output.behind(place)
                place += len(found)
                block = b"".join(event for number, event in found if number > after)
                if block:
                    await responder.write(block)
                elif is_over:
                    return await responder.finish()
                else:
                    await self._wait(visit, output)

    async def _wait(self, visit: Visit, output: Running) -> None:
        count = len(output.events)
        await output.changed(self._keep_alive_s)
        if len(output.events) == count and not output.is_over:
            await visit.responder.write(events.KEEP_ALIVE)

    async def _follow_elsewhere(self, visit: Visit, kept: Kept, tenant_id: str, after: int) -> None:
        shelf, responder = self._memory.shelf, visit.responder
        looks = 0
        async with visit.request.cancel_when_client_leaves(responder):
            while True:
                pieces = await self._memory.done(shelf.events, tenant_id, kept.id, after)
                found = [it for piece in pieces for it in running.numbered(piece) if it[0] > after]
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
                kept = await self._memory.done(shelf.get, tenant_id, kept.id)
            await self._finish_elsewhere(visit, kept, after)

    async def _finish_elsewhere(self, visit: Visit, kept: Kept, after: int) -> None:
        """The last event, which is made of the response as it was kept."""
        number = await self._memory.done(self._memory.shelf.last_number, kept.id) + 1
        if not visit.responder.is_started:
            await visit.responder.start(200, STREAM_HEADERS)
        last = running.last_event(msgspec.json.decode(kept.response), number) if number > after else b""
        await visit.responder.finish(last)

    async def close(self) -> None:
        """Cut off what runs, say so in the database, and let go of the threads that ask it."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        self._memory.close()
