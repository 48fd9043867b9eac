"""Share: what gateways spend while their shared counters are away, to the bound and never beyond it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.admission.counters.counter import Draw, Kind
from serving.gateway.admission.counters.redis import RedisTally
from serving.gateway.admission.counters.seeding import Seeds, nothing
from serving.gateway.admission.counters.share import part_of
from serving.gateway.admission.counters.shared import SharedCounters
from tests.gateway.admission.counters.histories import DAY_US, MINUTE_US, RENEWAL_US, START_US, Clock, Flow
from tests.gateway.admission.counters.outages import Cut, Outage
from tests.gateway.valkey import Valkey

LIMIT, GATEWAYS = 90, 3


def rate(amount: int = 1, limit: int = LIMIT) -> Draw:
    return Draw("t/tokens", Kind.RATE, limit, amount, period_us=MINUTE_US)


def window(amount: int = 1, limit: int = LIMIT) -> Draw:
    return Draw("t/day", Kind.WINDOW, limit, amount, ends_at_us=START_US + DAY_US)


def opening(limit: int = LIMIT) -> Draw:
    return Draw("t/open", Kind.OPEN, limit, 1)


def overspend(limit: int, largest: int) -> int:
    """The bound that the module states."""
    return GATEWAYS * max(limit // GATEWAYS, 1, largest)


class Together:
    """Gateways, their shared counters, and the way between them."""

    def __init__(self, valkey: Valkey, clock: Clock, seeds: Seeds) -> None:
        self.clock = clock
        self.outage = Outage()
        url_file = valkey.url_file()
        self.gateways = [
            SharedCounters(
                Cut(RedisTally(url_file, is_cluster=False, timeout_s=10, clock_us=clock), self.outage),
                seeds=seeds,
                gateways=lambda: GATEWAYS,
                timeout_s=10,
                clock_us=clock,
            )
            for _ in range(GATEWAYS)
        ]
        self._calls = 0

    async def spend(self, number: int, draw: Draw, *, most: int = 1000) -> int:
        """What this gateway grants of calls that come until one is refused."""
        granted = 0
        for _ in range(most):
            verdict = await self.call(number, draw)
            if verdict is None:
                break
            granted += draw.amount
        return granted

    async def call(self, number: int, draw: Draw) -> str | None:
        """The lease of a call of this draw, if it is granted."""
        self._calls += 1
        lease = f"{self._calls:032x}"
        return lease if (await self.gateways[number].reserve(lease, [draw])).refused is None else None

    async def come_back(self) -> None:
        self.outage.is_on = False
        for counters in self.gateways:
            await counters.come_back()
            await counters.flush()

    async def advance(self, by_us: int) -> None:
        until_us = self.clock.now_us + by_us
        while self.clock.now_us < until_us:
            self.clock.now_us = min(until_us, self.clock.now_us + RENEWAL_US)
            for counters in self.gateways:
                if not counters.is_alone:
                    await counters.renew()


@asynccontextmanager
async def together(valkey: Valkey, seeds: Seeds = nothing) -> AsyncIterator[Together]:
    valkey.empty()
    made = Together(valkey, Clock(), seeds)
    try:
        yield made
    finally:
        made.outage.is_on = False
        for counters in made.gateways:
            await counters.close()


@pytest.mark.parametrize(("limit", "amount"), [(90, 1), (90, 30), (90, 90), (90, 50), (2, 1), (2, 2)])
@pytest.mark.parametrize("draw", [rate, window])
async def test_the_bound_is_reached(alone: Valkey, draw: type, limit: int, amount: int) -> None:
    """A limit that was spent to the end just before an outage, by a gateway that is gone: each of the others has its part again."""
    async with together(alone) as gone:
        before = await gone.spend(0, draw(limit, limit))
        async with together_on(alone, gone) as all_:
            all_.outage.is_on = True
            during = sum([await all_.spend(number, draw(amount, limit)) for number in range(GATEWAYS)])
    assert before == limit
    largest_first = overspend(limit, amount)
    # Whole draws: the part may end within one.
    assert largest_first - GATEWAYS * (amount - 1) <= during <= largest_first
    if amount in (1, limit):
        assert during == largest_first


@asynccontextmanager
async def together_on(valkey: Valkey, before: Together) -> AsyncIterator[Together]:
    """Other gateways on the same counters."""
    made = Together(valkey, before.clock, nothing)
    made._calls = 1_000_000
    try:
        yield made
    finally:
        made.outage.is_on = False
        for counters in made.gateways:
            await counters.close()


async def test_what_was_spent_is_paid_back(alone: Valkey) -> None:
    """The next call waits exactly until the bucket has refilled all that was spent together, and in the outage as of then."""
    async with together(alone) as all_:
        assert await all_.spend(0, rate()) == LIMIT
        all_.outage.is_on = True
        assert sum([await all_.spend(number, rate()) for number in range(GATEWAYS)]) == LIMIT
        await all_.advance(MINUTE_US // 2)
        await all_.come_back()
        verdict = await all_.gateways[1].reserve("one more", [rate()])
        assert verdict.retry_in_us == -(-(LIMIT + 1) * MINUTE_US // LIMIT) - MINUTE_US // 2


async def test_what_was_spent_long_ago_has_refilled(alone: Valkey) -> None:
    """A bucket that was full when the outage began lacks what was spent then, less what has refilled since."""
    async with together(alone) as all_:
        all_.outage.is_on = True
        assert sum([await all_.spend(number, rate()) for number in range(GATEWAYS)]) == LIMIT
        await all_.advance(MINUTE_US // 2)
        await all_.come_back()
        assert (await all_.gateways[1].reserve("one more", [rate(LIMIT)])).levels[0].remaining == LIMIT // 2


async def test_a_window_goes_on_from_what_was_known(alone: Valkey) -> None:
    """A gateway that has seen how little is left has its part of that, and outages that follow one another give nothing anew."""
    async with together(alone) as all_:
        for number in range(GATEWAYS):
            assert await all_.spend(number, window(10), most=2) == 20
        spent = []
        for _ in range(3):
            all_.outage.is_on = True
            spent.append(sum([await all_.spend(number, window()) for number in range(GATEWAYS)]))
            await all_.come_back()
        # 20, 40 and 60 were known to be used: thirds of what was left, and of what is left of that.
        assert spent == [70 // 3 + 50 // 3 + 30 // 3, 47 // 3 + 34 // 3 + 20 // 3, 32 // 3 + 23 // 3 + 14 // 3]
        for number in range(GATEWAYS):
            assert await all_.spend(number, window()) == 0


async def test_the_ledger_says_what_no_decision_has_said(alone: Valkey) -> None:
    """Where it can be read, a window of which a gateway knows nothing begins there."""

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        return [LIMIT - 6] * len(names)

    async with together(alone, seeds) as all_:
        all_.outage.is_on = True
        assert [await all_.spend(number, window()) for number in range(GATEWAYS)] == [2, 2, 2]
        refused = await all_.gateways[0].reserve("one more", [window()])
        assert refused.retry_in_us == DAY_US


async def test_open_calls_count_where_they_are(alone: Valkey) -> None:
    """A gateway with more than its part opens no further call in an outage; the others open theirs; all are counted together
    afterwards."""
    async with together(alone) as all_:
        assert await all_.spend(0, opening(6)) == 6
        all_.outage.is_on = True
        assert [await all_.spend(number, opening(6)) for number in range(GATEWAYS)] == [0, 2, 2]
        await all_.come_back()
        assert (await all_.gateways[1].reserve("one more", [opening(100)])).levels[0].remaining == 100 - 11


async def test_no_call_is_refused_for_the_outage(alone: Valkey) -> None:
    """A draw that is larger than a gateway's part is taken, once the part is not in use; one above the limit never."""
    async with together(alone) as all_:
        all_.outage.is_on = True
        assert await all_.call(0, rate(LIMIT))
        assert await all_.call(0, rate()) is None
        assert await all_.call(1, rate(LIMIT + 1)) is None
        assert await all_.call(1, opening(1)) and await all_.call(2, window(LIMIT))


async def test_calls_that_outlast_an_outage_are_settled_to_the_truth(alone: Valkey) -> None:
    """Begun before it or in it, over in it or after it, topped up or not: in the end the window has what was true."""
    async with together(alone) as all_:
        counters = all_.gateways[0]
        limit, ends = 1000, []
        for begun in ("before", "in"):
            all_.outage.is_on = begun == "in"
            for end in ("in", "after"):
                lease = await all_.call(0, window(20, limit))
                assert lease
                ends.append((lease, end))
        for number, (lease, end) in enumerate(ends):
            counters.top_up(lease, [window(5, limit)])
            if end == "in":
                counters.settle(lease, [window(20, limit)], [10 + number * 20])
        await all_.come_back()
        # Two are over, of 10 and 50; two are open, with 25 each.
        assert (await all_.gateways[1].reserve("peek", [window(limit, limit)])).levels[0].remaining == limit - 60 - 50
        for number, (lease, end) in enumerate(ends):
            if end == "after":
                counters.settle(lease, [window(20, limit)], [10 + number * 20])
            counters.settle(lease, [window(20, limit)], [999])
        await counters.flush()
        assert (await all_.gateways[1].reserve("peek", [window(limit, limit)])).levels[0].remaining == limit - 160


@pytest.mark.parametrize(("limit", "gateways", "part"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (8, 3, 2), (9, 1, 9)])
def test_a_part_is_never_nothing(limit: int, gateways: int, part: int) -> None:
    """Unless the limit is: what is shared by more gateways than it has units is 1 for each."""
    assert part_of(limit, gateways) == part


@dataclass(frozen=True)
class Spend:
    gateway: int
    amount: int
    true: int | None


Event = Spend | int | bool
_EVENTS = st.lists(
    st.one_of(
        st.builds(Spend, st.integers(0, 2), st.sampled_from([1, 10, 30, 45]), st.sampled_from([None, 0, 1, 10])),
        st.builds(Spend, st.integers(0, 2), st.sampled_from([1, 10, 30, 45]), st.sampled_from([None, 0, 1, 10])),
        st.integers(0, 2 * MINUTE_US),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)
LARGEST = 45
SOME = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


async def go_through(valkey: Valkey, events: Sequence[Event]) -> None:
    flow, granted, outages = Flow(LIMIT, MINUTE_US), 0, 0
    async with together(valkey) as all_:
        for event in events:
            if isinstance(event, bool):
                if event and not all_.outage.is_on:
                    outages += 1
                    all_.outage.is_on = True
                elif not event:
                    await all_.come_back()
            elif isinstance(event, int):
                await all_.advance(event)
            else:
                if await all_.call(event.gateway, rate(event.amount)):
                    flow.moves.append((all_.clock.now_us, event.amount, True))
                lease = await all_.call(event.gateway, window(event.amount))
                if lease:
                    granted += event.amount
                    if event.true is not None:
                        all_.gateways[event.gateway].settle(lease, [window(event.amount)], [event.true])
                        granted += min(0, event.true - event.amount)
                    assert granted <= LIMIT + outages * overspend(LIMIT, LARGEST)
            flow.require_bound(outages * overspend(LIMIT, LARGEST))


@SOME
@given(_EVENTS)
def test_no_outage_costs_more(alone: Valkey, events: list[Event]) -> None:
    """However calls, outages and time come: nothing is granted beyond the limits and the stated bound of each outage."""
    asyncio.run(go_through(alone, events))


@pytest.mark.long
@settings(SOME, max_examples=1000)
@given(_EVENTS)
def test_none_of_many_outages_costs_more(alone: Valkey, events: list[Event]) -> None:
    """The same, at length."""
    asyncio.run(go_through(alone, events))
