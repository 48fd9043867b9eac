"""MemoryCounters: what one gateway counts for itself. A decision takes microseconds and waits for nothing, unless it has to read a
window from the ledger.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from serving.gateway.admission.counters import policy
from serving.gateway.admission.counters.counter import Draw, Kind, Verdict
from serving.gateway.admission.counters.policy import NEW, State
from serving.gateway.admission.counters.seeding import Seeding, Seeds, nothing

#: Counters that are kept, about 0.4 KB each. Beyond it those go first that were not used for longest: a bucket is then full again,
#: and a window is read from the ledger.
COUNTERS_MAX = 200_000
#: Counters that are looked at for each new one, whether they may go: while none is new, none needs to.
SWEPT = 2

_WINDOW, _OPEN = Kind.WINDOW, Kind.OPEN


class _Kept(msgspec.Struct):
    """One counter, and the draw that last used it."""

    draw: Draw
    state: State


class MemoryCounters:
    """Counters of one gateway: gone with it, all but what the ledger knows."""

    def __init__(
        self, clock_us: Callable[[], int], seeds: Seeds = nothing, *, counters_max: int = COUNTERS_MAX
    ) -> None:
        self._clock_us = clock_us
        self._seeding = Seeding(seeds, clock_us)
        self._counters_max = counters_max
        #: By name, the longest unused first.
        self._counters: OrderedDict[str, _Kept] = OrderedDict()
        #: Of them, those that are new since others were last looked at.
        self._added = 0
        #: Lease → counter → what it has taken of it.
        self._held: dict[str, dict[str, int]] = {}
        #: Windows that count from 0, because the ledger could not be read.
        self._unread: set[str] = set()
        #: Windows that may have missed something.
        self._doubted: set[str] = set()
        #: Readings that no call waits for.
        self._readings: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._counters)

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict:
        """Take all draws or none."""
        if unknown := [draw for draw in draws if draw.kind is _WINDOW and not self._is_known(draw)]:
            await self._read(unknown)
        if self._doubted and (doubted := [draw for draw in draws if draw.name in self._doubted]):
            await self._read(doubted)
            self._doubted.difference_update([draw.name for draw in doubted])
        now_us = self._clock_us()
        states = [self._state(draw.name) for draw in draws]
        verdict, after = policy.decide(draws, states, now_us)
        if verdict.refused is None:
            self._held[lease] = {draw.name: draw.amount for draw in draws}
            for draw, state in zip(draws, after, strict=True):
                self._keep(draw, state)
                self._counters.move_to_end(draw.name)
        if self._added:
            self._sweep(now_us)
        return verdict

    def doubt(self, windows: Iterable[str]) -> None:
        """Read these from the ledger before the next decision on them."""
        self._doubted.update(name for name in windows if name in self._counters)

    def adopt(self, lease: str, draws: Sequence[Draw]) -> None:
        """A call that was counted elsewhere is open: all else it has taken is counted there."""
        now_us = self._clock_us()
        self._held[lease] = dict.fromkeys((draw.name for draw in draws), 0)
        for draw in draws:
            state = self._state(draw.name)
            if not policy.is_known(draw, state):
                state = State(0, draw.ends_at_us)
            self._keep(draw, policy.take(draw, state, 0, now_us))

    def top_up(self, lease: str, draws: Sequence[Draw]) -> None:
        """Take more of counters that the lease has drawn from."""
        if (held := self._held.get(lease)) is None:
            return
        now_us = self._clock_us()
        for draw in draws:
            if draw.name in held and draw.kind is not _OPEN:
                held[draw.name] += draw.amount
                self._keep(draw, policy.take(draw, self._state(draw.name), draw.amount, now_us))

    def settle(self, lease: str, reserved: Sequence[Draw], amounts: Sequence[int]) -> None:
        """Have `amounts` instead of all that the lease has taken; nothing if it was settled before."""
        if (held := self._held.pop(lease, None)) is None:
            return
        now_us = self._clock_us()
        for draw, amount in zip(reserved, amounts, strict=True):
            state = policy.settle(draw, self._state(draw.name), held.get(draw.name, 0), amount, now_us)
            self._keep(draw, state)

    def taken(self, name: str) -> int:
        """What calls have taken of a window, and reserved."""
        state = self._state(name)
        return state.value + state.held

    def _state(self, name: str) -> State:
        found = self._counters.get(name)
        return NEW if found is None else found.state

    def _keep(self, draw: Draw, state: State) -> None:
        kept = self._counters.get(draw.name)
        if kept is None:
            self._counters[draw.name] = _Kept(draw, state)
            self._added += 1
        else:
            kept.draw, kept.state = draw, state

    def _is_known(self, draw: Draw) -> bool:
        if draw.name in self._unread and not self._seeding.is_paused:
            # It counts already, and no call waits for a ledger that may hang.
            self._unread.remove(draw.name)
            reading = asyncio.create_task(self._read([draw]), name="seeds")
            self._readings.add(reading)
            reading.add_done_callback(self._readings.discard)
        return policy.is_known(draw, self._state(draw.name))

    async def _read(self, windows: Sequence[Draw]) -> None:
        """Have the ledger's word on windows."""
        values = await self._seeding.values([draw.name for draw in windows])
        for draw in windows:
            state = self._state(draw.name)
            if not policy.is_known(draw, state):
                state = State(0, draw.ends_at_us)
            if values is None:
                self._unread.add(draw.name)
            elif state.moment_us == draw.ends_at_us:
                state = State(max(values[draw.name], state.value), state.moment_us, state.held)
            self._keep(draw, state)

    def _sweep(self, now_us: int) -> None:
        """Let go of counters that new ones would replace, and of more while there are too many."""
        excess = max(0, len(self._counters) - self._counters_max)
        looks, self._added = self._added * SWEPT + excess, 0
        for _ in range(min(looks, len(self._counters))):
            name, kept = next(iter(self._counters.items()))
            is_spare = len(self._counters) > self._counters_max and not kept.state.held
            if is_spare or policy.is_idle(kept.draw, kept.state, now_us):
                del self._counters[name]
                self._unread.discard(name)
                self._doubted.discard(name)
            else:
                self._counters.move_to_end(name)
