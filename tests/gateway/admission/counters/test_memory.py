"""MemoryCounters: one gateway's counters, what they know of the ledger, and how many of them are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serving.errors import StoreUnavailable
from serving.gateway.admission.counters import memory, seeding
from serving.gateway.admission.counters.counter import Draw, Kind
from serving.gateway.admission.counters.memory import MemoryCounters

START_US = 1_800_000_000_000_000
MINUTE_US = 60_000_000
DAY_US = 86_400_000_000


class Time:
    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> int:
        return self.now_us


def rate(name: str = "t/tokens", limit: int = 100, amount: int = 1) -> Draw:
    return Draw(name, Kind.RATE, limit, amount, period_us=MINUTE_US)


def window(name: str = "t/day", limit: int = 100, amount: int = 1, day: int = 1) -> Draw:
    return Draw(name, Kind.WINDOW, limit, amount, ends_at_us=START_US + day * DAY_US)


def opening(limit: int = 2) -> Draw:
    return Draw("t/open", Kind.OPEN, limit, 1)


async def remaining(counters: MemoryCounters, *draws: Draw) -> list[int]:
    """What is left of them, asked by a call that takes nothing."""
    nil = Draw("t/none", Kind.OPEN, 0, 1)
    verdict = await counters.reserve("nil", [*draws, nil])
    return [level.remaining for level in verdict.levels[:-1]]


async def test_what_was_reserved_becomes_what_was_true() -> None:
    """A call reserves, tops up while it streams, and is settled: each counter then has what the call was."""
    counters = MemoryCounters(Time())
    draws = [rate(amount=50), window(amount=50), opening()]
    assert (await counters.reserve("a", draws)).refused is None
    counters.top_up("a", [rate(amount=70), window(amount=70)])
    assert await remaining(counters, rate(), window(), opening()) == [0, 0, 1]
    counters.settle("a", draws, [30, 30, 1])
    assert await remaining(counters, rate(), window(), opening()) == [70, 70, 2]


async def test_a_call_is_settled_once() -> None:
    """A second time changes nothing, and neither does what was never reserved."""
    counters = MemoryCounters(Time())
    draws = [rate(amount=50), window(amount=50), opening()]
    await counters.reserve("a", draws)
    for _ in range(3):
        counters.settle("a", draws, [30, 30, 1])
        counters.top_up("a", draws)
    counters.settle("b", draws, [30, 30, 1])
    assert await remaining(counters, rate(), window(), opening()) == [70, 70, 2]


async def test_debts_are_waited_for() -> None:
    """What has begun is not cut off; the next call waits exactly until the bucket has it again."""
    time = Time()
    counters = MemoryCounters(time)
    await counters.reserve("a", [rate(amount=100)])
    counters.top_up("a", [rate(amount=50)])
    assert (await counters.reserve("b", [rate(amount=10)])).retry_in_us == MINUTE_US * 60 // 100
    time.now_us += MINUTE_US * 60 // 100
    assert (await counters.reserve("b", [rate(amount=10)])).refused is None


async def test_a_window_starts_where_the_ledger_is() -> None:
    """After a restart, and again when the next one begins under the same name."""
    time = Time()
    asked: list[Sequence[str]] = []

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        asked.append(names)
        return [40 if len(asked) == 1 else 7] * len(names)

    counters = MemoryCounters(time, seeds)
    assert await remaining(counters, window()) == [60]
    await counters.reserve("a", [window(amount=5)])
    assert await remaining(counters, window()) == [55]
    time.now_us += DAY_US
    assert await remaining(counters, window(day=2)) == [93]
    counters.settle("a", [window(amount=5)], [5])
    assert await remaining(counters, window(day=2)) == [93]
    assert asked == [["t/day"], ["t/day"]]


async def test_a_doubtful_window_is_read_before_it_decides() -> None:
    """Once: more than was counted is taken over, less is not, and what is reserved stays so."""
    said, read = [0], list[str]()

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        read.extend(names)
        return said * len(names)

    counters = MemoryCounters(Time(), seeds)
    day = window(amount=10)
    levels = [(await counters.reserve("a", [day])).levels[0].remaining]
    for said[0] in (70, 20):
        counters.doubt([day.name])
        levels.append((await counters.reserve(str(said[0]), [day])).levels[0].remaining)
    assert levels == [90, 10, 0] and read == [day.name] * 3


async def test_calls_that_come_together_read_the_ledger_once() -> None:
    """And each of them is counted."""
    asked: list[Sequence[str]] = []

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        asked.append(names)
        await asyncio.sleep(0)
        return [40] * len(names)

    counters = MemoryCounters(Time(), seeds)
    verdicts = await asyncio.gather(*(counters.reserve(str(it), [window(amount=20)]) for it in range(5)))
    assert [verdict.refused for verdict in verdicts] == [None, None, None, 0, 0]
    assert asked == [["t/day"]]


async def test_a_ledger_that_cannot_be_read_refuses_no_call() -> None:
    """Counting begins at 0, and what the ledger says later is the least that was taken."""
    is_away = True

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        if is_away:
            raise StoreUnavailable("away")
        return [90] * len(names)

    time = Time()
    counters = MemoryCounters(time, seeds)
    assert (await counters.reserve("a", [window(amount=5)])).refused is None
    is_away = False
    assert await remaining(counters, window()) == [95]  # it is not asked again at once
    time.now_us += seeding.RETRY_US
    await remaining(counters, window())
    for _ in range(10):
        await asyncio.sleep(0)
    assert await remaining(counters, window()) == [5]
    counters.settle("a", [window(amount=5)], [2])
    assert await remaining(counters, window()) == [8]


async def test_idle_counters_are_let_go() -> None:
    """A bucket that is full again, a window that is over, and what calls had open that have ended: they go as new ones come."""
    time = Time()
    counters = MemoryCounters(time)
    for number in range(50):
        draws = [rate(f"{number}/tokens"), window(f"{number}/day"), opening()]
        await counters.reserve(str(number), draws)
        counters.settle(str(number), draws, [1, 1, 1])
    assert len(counters) > 100
    time.now_us += DAY_US
    for number in range(150):
        await counters.reserve(f"again {number}", [rate(f"{number}/new", amount=0)])
    assert len(counters) <= memory.SWEPT


async def test_there_are_never_more_counters_than_may_be() -> None:
    """Those unused for longest go first, but none on which a call is open."""
    counters = MemoryCounters(Time(), counters_max=10)
    await counters.reserve("open", [window("open/day", amount=30)])
    for number in range(100):
        draws = [window(f"{number}/{it}", amount=1) for it in range(3)]
        await counters.reserve(str(number), draws)
        counters.settle(str(number), draws, [1, 1, 1])
        assert len(counters) <= 10 + len(draws)
    assert await remaining(counters, window("open/day"), window("99/0")) == [70, 99]
