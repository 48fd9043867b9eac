"""Histories of calls on counters, the same for every kind of counters, and what must hold whatever they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from hypothesis import strategies as st

from serving.gateway.admission.counters.counter import Counters, Draw, Kind, Verdict
from serving.gateway.admission.counters.memory import MemoryCounters
from serving.gateway.admission.counters.seeding import Seeds
from serving.gateway.admission.counters.shared import RENEWAL_S, SharedCounters
from serving.gateway.admission.counters.tally import Tally

START_US = 1_800_000_000_000_000
MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
RENEWAL_US = round(RENEWAL_S * 1e6)

#: A tenant's counters, each small enough to be met, one in numbers that no float holds.
COUNTERS = (
    Draw("t/rpm", Kind.RATE, 7, 1, period_us=MINUTE_US),
    Draw("t/tpm", Kind.RATE, 99_999_999_999_989, 1, period_us=MINUTE_US),
    Draw("t/day", Kind.WINDOW, 1000, 1, ends_at_us=START_US + DAY_US),
    Draw("t/open", Kind.OPEN, 3, 1),
)
#: What a call of which each counter's part is `share` takes.
AMOUNTS = {"t/rpm": 7, "t/tpm": 99_999_999_999_989, "t/day": 1000, "t/open": 1}


class Clock:
    """Time as tests have it, in microseconds."""

    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> int:
        return self.now_us


@dataclass(frozen=True)
class Reserve:
    """A call comes to a gateway."""

    gateway: int
    shares: tuple[float, ...]

    def draws(self) -> list[Draw]:
        return [drawn(counter, share) for counter, share in zip(COUNTERS, self.shares, strict=True)]


@dataclass(frozen=True)
class TopUp:
    """An open call takes more; `call` counts the open ones."""

    call: int
    share: float


@dataclass(frozen=True)
class Settle:
    """An open call is over, and was so large."""

    call: int
    shares: tuple[float, ...]
    times: int


@dataclass(frozen=True)
class Advance:
    by_us: int


@dataclass(frozen=True)
class Together:
    """Calls come to gateways at the same time."""

    calls: tuple[Reserve, ...]


@dataclass(frozen=True)
class Crash:
    """A gateway dies with its calls; another takes its place."""

    gateway: int


Event = Reserve | TopUp | Settle | Advance | Together | Crash

_SHARES = st.tuples(*(st.sampled_from([0.0, 0.15, 0.3, 0.5, 1.0, 1.1]) for _ in COUNTERS))
_RESERVES = st.builds(Reserve, st.integers(0, 2), _SHARES)
_TIMES = st.one_of(st.integers(0, 5), st.integers(0, MINUTE_US), st.integers(0, 10 * MINUTE_US))
_PLAIN: list[st.SearchStrategy[Event]] = [
    _RESERVES,
    _RESERVES,
    st.builds(TopUp, st.integers(0, 5), st.sampled_from([0.1, 0.7])),
    st.builds(Settle, st.integers(0, 5), _SHARES, st.integers(1, 2)),
    st.builds(Advance, _TIMES),
]
_ROUGH: list[st.SearchStrategy[Event]] = [
    *_PLAIN,
    st.builds(Together, st.lists(_RESERVES, min_size=2, max_size=5).map(tuple)),
    st.builds(Crash, st.integers(0, 2)),
]
#: One gateway's, so that each kind of counters has to say the same.
PLAIN = st.lists(st.one_of(_PLAIN), min_size=1, max_size=25)
#: Several gateways', with calls at the same time and deaths.
ROUGH = st.lists(st.one_of(_ROUGH), min_size=1, max_size=25)


def drawn(counter: Draw, share: float) -> Draw:
    """A draw of a part of a counter's limit."""
    amount = 1 if counter.kind is Kind.OPEN else round(share * AMOUNTS[counter.name])
    return Draw(counter.name, counter.kind, counter.limit, amount, counter.period_us, counter.ends_at_us)


@dataclass
class Call:
    gateway: int
    draws: list[Draw]
    taken: list[int]


@dataclass
class Flow:
    """What one rate's bucket gave and got back, and when."""

    limit: int
    period_us: int
    #: Time, amount, and whether it was granted: what has begun is not cut off.
    moves: list[tuple[int, int, bool]] = field(default_factory=list)

    def require_bound(self, beyond: int = 0) -> None:
        """Nothing is granted that would make it more, in any span of time, than a full bucket and what refills in that time."""
        for first, (begin_us, _, _) in enumerate(self.moves):
            total = 0
            for at_us, amount, is_granted in self.moves[first:]:
                total += amount
                refilled = (at_us - begin_us) * self.limit // self.period_us
                # A part of a unit may have been due at the beginning.
                assert not is_granted or total <= self.limit + refilled + 1 + beyond, self.moves


class Run:
    """A history on some gateways' counters, with what is true of them."""

    def __init__(self, clock: Clock, make: Callable[[int], Counters], gateways: int) -> None:
        self.clock = clock
        self._make = make
        self.gateways = [make(number) for number in range(gateways)]
        self.dead: list[Counters] = []
        self.verdicts: list[Verdict] = []
        #: Lease → its call, of gateways that live.
        self.open: dict[str, Call] = {}
        #: Calls of gateways that died, until their leases end.
        self.lost: list[tuple[int, Call]] = []
        self.settled = 0
        self.flows = {it.name: Flow(it.limit, it.period_us) for it in COUNTERS if it.kind is Kind.RATE}
        self._leases = count()

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *_: object) -> None:
        for counters in [*self.gateways, *self.dead]:
            if isinstance(counters, SharedCounters):
                await counters.close()

    async def play(self, events: Sequence[Event]) -> None:
        for event in events:
            await self._do(event)
            for counters in self.gateways:
                if isinstance(counters, SharedCounters):
                    await counters.flush()

    async def levels(self) -> list[int]:
        """What is left of each counter, asked by a call that is refused."""
        nil = Draw("t/nil", Kind.OPEN, 0, 1)
        verdict = await self.gateways[0].reserve("nil", [*(drawn(it, 0) for it in COUNTERS), nil])
        return [level.remaining for level in verdict.levels[:-1]]

    async def settle_all(self) -> None:
        """All calls are over, and what dead gateways held has ended."""
        for number in range(len(self.open)):
            await self._do(Settle(0, (0.0, 0.0, 0.01 * number, 0.0), 1))
        await self._advance(2 * MINUTE_US + 1)

    async def _do(self, event: Event) -> None:
        if isinstance(event, Reserve):
            await self._reserve(event)
        elif isinstance(event, Together):
            await asyncio.gather(*(self._reserve(it) for it in event.calls))
        elif isinstance(event, Advance):
            await self._advance(event.by_us)
        elif isinstance(event, Crash):
            self._crash(event.gateway % len(self.gateways))
        elif self.open:
            lease = list(self.open)[event.call % len(self.open)]
            if isinstance(event, TopUp):
                self._top_up(lease, event.share)
            else:
                self._settle(lease, event)

    async def _reserve(self, event: Reserve) -> None:
        number, lease, draws = event.gateway % len(self.gateways), f"{next(self._leases):032x}", event.draws()
        verdict = await self.gateways[number].reserve(lease, draws)
        self.verdicts.append(verdict)
        if verdict.refused is None:
            self.open[lease] = Call(number, draws, [it.amount for it in draws])
            self._flow(draws, [it.amount for it in draws], is_granted=True)

    def _top_up(self, lease: str, share: float) -> None:
        call = self.open[lease]
        more = [drawn(it, share) for it in call.draws]
        self.gateways[call.gateway].top_up(lease, more)
        call.taken = [taken + it.amount for taken, it in zip(call.taken, more, strict=True)]
        self._flow(more, [it.amount for it in more])

    def _settle(self, lease: str, event: Settle) -> None:
        call = self.open.pop(lease)
        amounts = [drawn(it, share).amount for it, share in zip(call.draws, event.shares, strict=True)]
        for _ in range(event.times):
            self.gateways[call.gateway].settle(lease, call.draws, amounts)
        self.settled += amounts[2]
        self._flow(call.draws, [amount - taken for amount, taken in zip(amounts, call.taken, strict=True)])

    async def _advance(self, by_us: int) -> None:
        """Time passes, and gateways renew what they hold."""
        until_us = self.clock.now_us + by_us
        while self.clock.now_us < until_us:
            self.clock.now_us = min(until_us, self.clock.now_us + RENEWAL_US)
            for counters in self.gateways:
                if isinstance(counters, SharedCounters):
                    await counters.renew()

    def _crash(self, number: int) -> None:
        ends_us = self.clock.now_us + MINUTE_US
        self.lost += [(ends_us, call) for call in self.open.values() if call.gateway == number]
        self.open = {lease: call for lease, call in self.open.items() if call.gateway != number}
        self.dead.append(self.gateways[number])
        self.gateways[number] = self._make(number)

    def _flow(self, draws: Sequence[Draw], amounts: Sequence[int], *, is_granted: bool = False) -> None:
        for draw, amount in zip(draws, amounts, strict=True):
            if draw.name in self.flows:
                self.flows[draw.name].moves.append((self.clock.now_us, amount, is_granted))

    def require_bounds(self) -> None:
        """Nothing was granted beyond any limit."""
        assert len(self.open) <= COUNTERS[3].limit
        for flow in self.flows.values():
            flow.require_bound()


def in_memory(clock: Clock, seeds: Seeds) -> Callable[[int], MemoryCounters]:
    counters = MemoryCounters(clock, seeds)
    return lambda _: counters


def on(tally: Callable[[], Tally], clock: Clock, seeds: Seeds, gateways: int) -> Callable[[int], SharedCounters]:
    return lambda _: SharedCounters(tally(), seeds=seeds, gateways=lambda: gateways, timeout_s=10, clock_us=clock)
