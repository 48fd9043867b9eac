"""Runner: the batches that this gateway runs. It takes those that no gateway has, and those of gateways that died.

No clocks are compared: a gateway has died when its sign of life was unchanged at several of our own looks in a row. A gateway in
whose database no batch is open looks for none; it is woken by the note of the transaction that makes one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from serving.errors import StoreUnavailable, VaultFailed
from serving.gateway.identity.changes import Kind, News
from serving.gateway.observe.backlog import COMPLETED, FAILED, Backlog
from serving.gateway.stored.batches.batches import Batch, LeaseLost, Sign, Status
from serving.gateway.stored.batches.shift import LOSSES_MAX, Shift, Tools

#: Seconds between two looks while batches are open, each with a sign of life for those that run here.
LOOK_S = 5.0
#: Looks at an unchanged sign of life after which its gateway counts as dead: with LOOK_S half a minute.
LOOKS_MAX = 6
#: Looks for which a new batch is left to a gateway that runs others already.
LEFT_LOOKS = 2
#: Batches that one gateway runs at a time: each has a piece of its file and a window of its lines in memory.
SHIFTS_MAX = 32
#: Seconds between two looks for what has expired.
SWEEP_S = 600.0
#: Seconds that calls at engines have to end when the gateway stops.
STOP_S = 5.0
#: Seconds until a batch is taken again whose shift has failed here.
FAILED_S = 30.0

log = logging.getLogger(__name__)


def rest_of(swept_at: float, now: float, least_s: float) -> float:
    """Seconds until files are swept again, whatever wakes a gateway meanwhile; at least `least_s`, where a sweep has just failed."""
    return max(least_s, swept_at + SWEEP_S - now)


def _lines_of(shift: Shift) -> dict[str, int]:
    return {COMPLETED: shift.done_count - shift.failed_count, FAILED: shift.failed_count}


class Runner:
    """Runs batches until it is cancelled. `clock` is in seconds since the epoch, that of the tools is monotonic."""

    def __init__(
        self,
        tools: Tools,
        owner: str,
        has_died: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
        look_s: float = LOOK_S,
    ) -> None:
        self._tools = tools
        self._owner = owner
        self._has_died = has_died
        self._clock = clock
        self._look_s = look_s
        self._wake = asyncio.Event()
        self._shifts: dict[str, tuple[Shift, asyncio.Task[None]]] = {}
        #: Batch → the sign of life at the last look, and for how many looks it has been that.
        self._seen: dict[str, tuple[tuple[int, int], int]] = {}
        #: Batch → when it may be taken here again, on the monotonic clock.
        self._failed: dict[str, float] = {}
        #: Batch → attempts at opening what was said of it.
        self._unopened: Counter[str] = Counter()
        #: What metrics say: of shifts that are over, and as last looked at.
        self._lines: Counter[str] = Counter()
        self._takeovers = 0
        self._oldest_at: float | None = None
        self._stalled_s = 0.0
        self._files_bytes = 0
        self._is_any_open = True
        #: Another gateway runs batches, and may take more.
        self._is_anothers = False
        self._swept_at = self._counted_at = float("-inf")

    def backlog(self) -> Backlog:
        """What is to be done, and what was done here."""
        shifts = [shift for shift, _ in self._shifts.values()]
        lines = self._lines.copy()
        for shift in shifts:
            lines.update(_lines_of(shift))
        return Backlog(
            batches=Counter(str(shift.stage) for shift in shifts),
            lines_waiting=sum(shift.left for shift in shifts),
            lines=lines,
            takeovers=self._takeovers,
            oldest_s=0.0 if self._oldest_at is None else max(0.0, self._clock() - self._oldest_at),
            stalled_s=self._stalled_s if shifts else 0.0,
            files_bytes=self._files_bytes,
        )

    def follow(self, news: News) -> None:
        """Something has changed in the database."""
        if news.changes is None or any(change.kind == Kind.BATCH for change in news.changes):
            self._wake.set()

    async def run(self) -> None:
        """Run what there is until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._look()
                    await self._sweep_if_due()
                except StoreUnavailable as error:
                    # Signs of life cannot have changed either.
                    self._seen.clear()
                    log.warning("batches cannot be looked for: %s", error.reason)
                await self._wait()
        finally:
            await self._stop()

    async def _wait(self) -> None:
        rest_s = self._look_s if self._is_any_open else rest_of(self._swept_at, self._tools.clock(), self._look_s)
        try:
            async with asyncio.timeout(rest_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        tools = self._tools
        if self._shifts:
            self._mind(await tools.desk.done(tools.batches.beat, self._owner))
        signs = await tools.desk.done(tools.batches.open_ones)
        self._is_any_open = bool(signs)
        self._oldest_at = signs[0].created_at if signs else None
        self._stalled_s = max((shift.stalled_s() for shift, _ in self._shifts.values()), default=0.0)
        now = tools.clock()
        # One that was woken came too soon to say that nothing changes.
        is_counted = now - self._counted_at >= self._look_s / 2
        self._counted_at = now if is_counted else self._counted_at
        self._seen = {sign.id: self._looks_at(sign, is_counted=is_counted) for sign in signs}
        self._failed = {it: until for it, until in self._failed.items() if it in self._seen}
        # Batches go where batches run: one gateway then knows all lines, and which calls are none.
        elsewhere = Counter(sign.owner for sign in signs if sign.owner not in (None, self._owner))
        self._is_anothers = not self._shifts and any(count < SHIFTS_MAX for count in elsewhere.values())
        free = [sign for sign in signs if sign.id not in self._shifts and self._is_free(sign)]
        while free and len(self._shifts) < SHIFTS_MAX:
            sign = self._next(free)
            free.remove(sign)
            try:
                batch = await tools.desk.done(tools.batches.take, sign, self._owner)
            except VaultFailed as error:
                await self._not_opened(sign, error)
                continue
            if batch is not None:
                self._takeovers += sign.owner not in (None, self._owner)
                self._begin(batch)

    async def _not_opened(self, sign: Sign, error: VaultFailed) -> None:
        """What was said of a batch does not open: it is tried as often as any loss, and ends."""
        log.error("batch %s cannot be taken: %s", sign.id, error.reason)
        self._failed[sign.id] = self._tools.clock() + FAILED_S
        self._unopened[sign.id] += 1
        if self._unopened[sign.id] >= LOSSES_MAX:
            del self._unopened[sign.id]
            await self._tools.desk.done(self._tools.batches.give_up, sign)

    def _mind(self, signs: list[Sign]) -> None:
        """Shifts whose batch another gateway has, or that are to end."""
        own = {sign.id: sign for sign in signs}
        for batch_id, (shift, task) in list(self._shifts.items()):
            sign = own.get(batch_id)
            if sign is None or sign.lease != shift.batch.lease:
                task.cancel()
            elif sign.status is Status.CANCELLING:
                shift.stop(Status.CANCELLED)
            elif self._clock() >= shift.batch.expires_at:
                shift.stop(Status.EXPIRED)

    def _looks_at(self, sign: Sign, *, is_counted: bool) -> tuple[tuple[int, int], int]:
        state = sign.lease, sign.beat
        known, looks = self._seen.get(sign.id, (None, 0))
        return state, looks + is_counted if known == state else 0

    def _is_free(self, sign: Sign) -> bool:
        if self._failed.get(sign.id, float("-inf")) > self._tools.clock():
            return False
        if sign.owner is None:
            return not self._is_anothers or self._seen[sign.id][1] >= LEFT_LOOKS
        if sign.owner == self._owner or self._has_died(sign.owner):
            return True
        return self._seen[sign.id][1] >= LOOKS_MAX

    def _next(self, free: list[Sign]) -> Sign:
        """The oldest of a tenant that has fewest running here."""
        running = Counter(shift.batch.tenant_id for shift, _ in self._shifts.values())
        return min(free, key=lambda sign: running[sign.tenant_id])

    def _begin(self, batch: Batch) -> None:
        shift = Shift(batch, self._tools)
        if self._clock() >= batch.expires_at:
            shift.stop(Status.EXPIRED)
        task = asyncio.create_task(self._run(shift), name=batch.id)
        self._shifts[batch.id] = shift, task
        log.info("batch %s runs here", batch.id)

    async def _run(self, shift: Shift) -> None:
        batch = shift.batch
        try:
            await shift.run()
        except LeaseLost:
            log.warning("batch %s runs elsewhere", batch.id)
        except asyncio.CancelledError:
            raise
        except Exception as bug:  # noqa: BLE001 The outermost edge: other batches go on.
            log.error("batch %s: unforeseen %s", batch.id, type(bug).__name__)
            self._failed[batch.id] = self._tools.clock() + FAILED_S
        finally:
            self._shifts.pop(batch.id, None)
            self._lines.update(_lines_of(shift))
            self._wake.set()

    async def _sweep_if_due(self) -> None:
        """Remove files that have expired, what batches have left, and batches whose files have expired."""
        if self._tools.clock() - self._swept_at < SWEEP_S:
            return
        tools = self._tools
        is_more = bool(await tools.files.sweep()) | bool(await tools.desk.done(tools.batches.remove_lines))
        await tools.desk.done(tools.batches.remove_old)
        self._files_bytes = await tools.files.total_bytes()
        if is_more:
            # The rest at the next look: signs of life come first.
            self._is_any_open = True
        else:
            self._swept_at = tools.clock()

    async def _stop(self) -> None:
        """Give the batches back. Calls at engines that do not end in time are made again by the gateway that takes them."""
        tasks = [task for _, task in self._shifts.values()]
        held = [shift.batch for shift, _ in self._shifts.values()]
        for shift, _ in list(self._shifts.values()):
            shift.leave()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for batch in held:
            try:
                await self._tools.desk.done(self._tools.batches.release, batch.id, batch.lease)
            except StoreUnavailable:
                # Another notices that it is silent.
                break
