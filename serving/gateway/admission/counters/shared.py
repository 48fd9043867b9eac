"""SharedCounters: one gateway's view of counters that several share. It decides there; where they are away, on its share (`share`).

What calls give back or take more is written in the background, in its order, and what is open is said anew three times in a lease, so
that only a dead gateway's reservations end. One task does both, and finds out when the shared counters are back: no call waits for
them twice (circuit breaker).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from serving.errors import StoreUnavailable
from serving.gateway.admission.counters.counter import LEASE_S, Draw, Kind, Verdict
from serving.gateway.admission.counters.memory import COUNTERS_MAX
from serving.gateway.admission.counters.seeding import Seeding, Seeds
from serving.gateway.admission.counters.share import Holding, Known, Share, renewal
from serving.gateway.admission.counters.tally import Change, Part, Tally, TallyUnavailable

#: Seconds between two questions whether the shared counters are back.
PROBE_S = 1.0
#: Seconds between two renewals of what is open: two may fail.
RENEWAL_S = LEASE_S / 3
#: Changes that are sent together.
BATCH = 64
#: Changes that wait to be sent; beyond it the shared counters do not keep up, and count as away. About 1 KB each.
CHANGES_MAX = 20_000
#: Times that windows are read from the ledger for one decision: one may end in between.
_READINGS_MAX = 3

log = logging.getLogger(__name__)

T = TypeVar("T")


class SharedCounters:
    """`counters = SharedCounters(tally, …)`, with `counters.run()` as a task and `await counters.close()` at the end."""

    def __init__(
        self,
        tally: Tally,
        *,
        seeds: Seeds,
        gateways: Callable[[], int],
        timeout_s: float,
        alone_max_s: float | None = None,
        probe_s: float = PROBE_S,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._tally = tally
        self._seeding = Seeding(seeds, clock_us)
        #: How many share the counters, as far as is known.
        self._gateways = gateways
        self._timeout_s = timeout_s
        self._alone_max_s = alone_max_s
        self._probe_s = probe_s
        self._clock_us = clock_us
        self._held: dict[str, Holding] = {}
        self._changes: deque[Change] = deque()
        self._share: Share | None = None
        #: Windows as they were at the last decision, the longest unused first.
        self._known: OrderedDict[str, Known] = OrderedDict()
        #: Windows that count from 0, because the ledger could not be read.
        self._unread: dict[str, Draw] = {}
        #: Windows that may have missed something.
        self._doubted: set[str] = set()
        #: There is something to do.
        self._wake = asyncio.Event()
        self._is_renewal_due = False
        #: On the monotonic clock.
        self._renewed_at_s = 0.0
        #: Outages, and decisions in them.
        self.outages = 0
        self.decisions_alone = 0

    @property
    def is_alone(self) -> bool:
        """Does this gateway count its share, because the shared counters are away?"""
        return self._share is not None

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict:
        """Take all draws or none.

        Raises StoreUnavailable when the shared counters have been away for longer than the settings allow, and for nothing else.
        """
        if not draws:
            return Verdict(())
        if self._share is None:
            try:
                return await self._reserve_together(lease, draws)
            except TallyUnavailable as error:
                self._go_alone(error.reason)
            except asyncio.CancelledError:
                # Its client has left; whether it was counted is not known.
                self._tell(Change(lease, tuple(Part(draw) for draw in draws), is_final=True))
                raise
        return await self._reserve_alone(lease, draws)

    def doubt(self, windows: Iterable[str]) -> None:
        """Have the ledger's word on these before the next decision on them; in an outage, at its end."""
        self._doubted.update(windows)

    def top_up(self, lease: str, draws: Sequence[Draw]) -> None:
        """Take more of counters that the lease has drawn from."""
        holding = self._held.get(lease)
        if self._share is not None:
            self._share.top_up(lease, draws)
            if holding is not None:
                for draw in draws:
                    holding.top_up(draw, is_beyond=True)
        elif holding is not None:
            parts = []
            for draw in draws:
                holding.top_up(draw)
                if draw.kind is not Kind.OPEN and draw.name in holding.taken:
                    is_rate = draw.kind is Kind.RATE
                    parts.append(Part(draw, draw.amount if is_rate else 0, 0 if is_rate else holding.taken[draw.name]))
            if parts:
                self._tell(Change(lease, tuple(parts)))

    def settle(self, lease: str, reserved: Sequence[Draw], amounts: Sequence[int]) -> None:
        """Have `amounts` instead of all that the lease has taken; nothing if it was settled before."""
        share, holding = self._share, self._held.pop(lease, None)
        if holding is not None:
            known = amounts
            if share is not None:
                share.settle_adopted(lease, holding, reserved, amounts)
                known = [min(amount, holding.known_of(draw)) for draw, amount in zip(reserved, amounts, strict=True)]
            parts = [
                Part(draw, amount - holding.known_of(draw) if draw.kind is Kind.RATE else amount)
                for draw, amount in zip(reserved, known, strict=True)
            ]
            self._tell(Change(lease, tuple(parts), is_final=True, over_at_us=self._clock_us() + 1))
        elif share is not None and (change := share.settle(lease, reserved, amounts)) is not None:
            self._tell(change)

    async def run(self) -> None:
        """Write what waits, renew what is open, and come back from outages, until cancelled. At rest nothing wakes it."""
        while True:
            if self._share is not None:
                await asyncio.sleep(self._probe_s)
                await self.come_back()
                continue
            await self._work_or_time()
            if self._is_renewal_due or (self._held and time.monotonic() >= self._renewed_at_s + RENEWAL_S):
                await self.renew()
            else:
                await self.flush()

    async def _work_or_time(self) -> None:
        """Return when there is something to write, or to renew."""
        if not self._changes and not self._is_renewal_due:
            due_in_s = max(0.0, self._renewed_at_s + RENEWAL_S - time.monotonic()) if self._held else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_in_s):
                    await self._wake.wait()
        self._wake.clear()

    async def flush(self) -> None:
        """Write what waits; where that fails, an outage begins."""
        try:
            await self._write()
        except TallyUnavailable as error:
            self._go_alone(error.reason)

    async def renew(self) -> None:
        """Say anew what is open."""
        self._is_renewal_due, self._renewed_at_s = False, time.monotonic()
        self._tell(*(change for lease, holding in self._held.items() for change in renewal(lease, holding)))
        await self.flush()
        if self._share is None:
            try:
                await self._read_late()
                await self._answer(self._tally.tidy())
            except TallyUnavailable as error:
                self._go_alone(error.reason)

    async def come_back(self) -> None:
        """End the outage if the shared counters answer, and know by then what was spent in it."""
        if (share := self._share) is None:
            return
        try:
            await self._answer(self._tally.probe())
            # First what an attempt before this one left: it is bounded only if each begins with nothing.
            await self._write()
            self._changes.extend(share.account())
            await self._write()
        except TallyUnavailable:
            return
        # No call was decided since the last line: what was spent while it was written goes first.
        self._changes.extend(share.account())
        self._share = None
        for lease, holding in self._held.items():
            holding.beyond = {}
            self._changes.extend(renewal(lease, holding))
        self._held |= share.open_calls()
        self._known.update(share.windows())
        log.warning("limits are counted together again, after %.0f s", share.lasts_us / 1e6)
        self._wake.set()

    async def close(self) -> None:
        """Write what waits: all calls are over."""
        with contextlib.suppress(TallyUnavailable):
            if self._share is not None:
                await self.come_back()
            if self._share is None:
                await self._write()
        await self._tally.close()

    async def _reserve_together(self, lease: str, draws: Sequence[Draw]) -> Verdict:
        if self._doubted and (doubted := [draw for draw in draws if draw.name in self._doubted]):
            await self._seed(doubted, is_late=True)
            self._doubted.difference_update([draw.name for draw in doubted])
        for _ in range(_READINGS_MAX):
            found = await self._answer(self._tally.reserve(lease, draws))
            if isinstance(found, Verdict):
                self._note(lease, draws, found)
                return found
            await self._seed(found.windows, is_late=False)
            if self._held:
                # They may have been emptied, and know nothing of what is open either.
                self._renew_soon()
        raise TallyUnavailable("windows are forgotten as they are read")

    def _note(self, lease: str, draws: Sequence[Draw], verdict: Verdict) -> None:
        for draw, level in zip(draws, verdict.levels, strict=True):
            if draw.kind is Kind.WINDOW:
                self._known[draw.name] = Known(draw.limit - level.remaining, draw.ends_at_us)
                self._known.move_to_end(draw.name)
                if draw.name in self._unread and not self._seeding.is_paused:
                    self._renew_soon()
        while len(self._known) > COUNTERS_MAX:
            self._known.popitem(last=False)
        if verdict.refused is not None:
            return
        holding = Holding.of(draws)
        if self._share is not None:
            # It was on its way when the outage began.
            self._share.adopt(lease, holding)
        if not self._held:
            self._renewed_at_s = time.monotonic()
            self._wake.set()
        self._held[lease] = holding

    async def _seed(self, windows: Sequence[Draw], *, is_late: bool) -> None:
        values = await self._seeding.values([draw.name for draw in windows])
        for draw in windows:
            if values is None:
                self._unread[draw.name] = draw
            value = 0 if values is None else values[draw.name]
            await self._answer(self._tally.seed(draw, value, is_late=is_late))

    def _renew_soon(self) -> None:
        self._is_renewal_due = True
        self._wake.set()

    async def _read_late(self) -> None:
        """Windows that began at 0 have counted what the ledger says by now, at least."""
        if not self._unread or (values := await self._seeding.values(list(self._unread))) is None:
            return
        for name, value in values.items():
            await self._answer(self._tally.seed(self._unread[name], value, is_late=True))
            del self._unread[name]

    async def _reserve_alone(self, lease: str, draws: Sequence[Draw]) -> Verdict:
        share = self._share
        if share is None:
            # It was over before this call's turn came.
            return await self.reserve(lease, draws)
        if self._alone_max_s is not None and share.lasts_us > self._alone_max_s * 1e6:
            raise StoreUnavailable("limits have not been counted together for longer than gateway.counters.alone_max_s")
        self.decisions_alone += 1
        return await share.reserve(lease, draws)

    def _go_alone(self, reason: str) -> None:
        if self._share is not None:
            return
        gateways = max(1, self._gateways())
        share = Share(gateways, self._clock_us, self._known, self._seeding)
        for lease, holding in self._held.items():
            share.adopt(lease, holding)
        self._share = share
        self.outages += 1
        log.warning("limits cannot be counted together: %s. This gateway counts 1/%d of each", reason, gateways)
        self._wake.set()

    def _tell(self, *changes: Change) -> None:
        self._changes.extend(changes)
        self._wake.set()
        if len(self._changes) > CHANGES_MAX:
            self._go_alone("more changes wait than may")

    async def _write(self) -> None:
        while self._changes:
            batch = [self._changes.popleft() for _ in range(min(BATCH, len(self._changes)))]
            try:
                await self._answer(self._tally.apply(batch))
            except BaseException:
                # What of it was done counts once: see `tally`.
                self._changes.extendleft(reversed(batch))
                raise

    async def _answer(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError:
            raise TallyUnavailable("no answer in time") from None
