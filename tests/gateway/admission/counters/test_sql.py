"""SqlTally: decisions of several gateways at once in one database, and what becomes of its rows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from serving.gateway.admission.counters.counter import Draw, Kind, Verdict
from serving.gateway.admission.counters.sql import THREADS, SqlTally
from serving.gateway.admission.counters.tally import Change, Part, TallyUnavailable
from serving.gateway.store.store import Store
from tests.gateway.admission.counters.histories import DAY_US, MINUTE_US, START_US, Clock
from tests.gateway.places import Place, SqlitePlace


@pytest.fixture
def stores(place: Place) -> Iterator[list[Store]]:
    """The same database as two gateways have it open."""
    with place.open() as one, place.open() as other:
        yield [one, other]


def rate(name: str, limit: int) -> Draw:
    return Draw(f"t/{name}", Kind.RATE, limit, 1, period_us=MINUTE_US)


async def test_decisions_at_once_wait_for_no_one_another(stores: list[Store]) -> None:
    """Draws on the same counters in any order, some of which are new to the database: no deadlock, and no more than the limits."""
    clock = Clock()
    tallies = [SqlTally(store, clock_us=clock) for store in stores]
    draws = [rate(name, 20) for name in "abcde"]
    seeded = random.Random(1)
    verdicts = await asyncio.gather(
        *(tallies[it % 2].reserve(f"{it:032x}", seeded.sample(draws, 3)) for it in range(60))
    )
    granted = sum(isinstance(it, Verdict) and it.refused is None for it in verdicts)
    left = [await tallies[0].reserve("f" * 32, [draw]) for draw in draws]
    remaining = sum(it.levels[0].remaining + (it.refused is None) for it in left if isinstance(it, Verdict))
    assert 3 * granted + remaining == 5 * 20 and granted >= 20
    for tally in tallies:
        await tally.close()


async def test_a_call_that_left_while_its_decision_waited_holds_nothing(place: Place, stores: list[Store]) -> None:
    """Nobody would give back what is taken for it; not for as long as a dead gateway's, either."""
    tally = SqlTally(stores[0])
    draws = [rate("a", 60), Draw("t/open", Kind.OPEN, 5, 1)]
    await tally.reserve("a", draws)
    with _writers_wait(place):
        waits = asyncio.create_task(tally.reserve("b", draws))
        await asyncio.sleep(0.05)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
    for _ in range(THREADS):
        # Behind it, in each thread that it may have.
        await tally.probe()
    assert place.execute("select id from leases") == [("a",)]
    await tally.close()


@contextmanager
def _writers_wait(place: Place) -> Iterator[None]:
    """Another connection has the rows of counters."""
    if isinstance(place, SqlitePlace):
        with place.writers_wait():
            yield
        return
    with psycopg.connect(place.server.url(place.database)) as connection:
        connection.execute("lock table counters in exclusive mode")
        yield
        connection.rollback()


async def test_the_databases_own_time_counts(stores: list[Store]) -> None:
    """Where it is one for all gateways; a machine's own is, for its workers."""
    tally = SqlTally(stores[0])
    await tally.reserve("a", [rate("a", 60)])
    verdict = await tally.reserve("b", [rate("a", 60)])
    assert isinstance(verdict, Verdict) and 1_000_000 < verdict.levels[0].resets_in_us <= 2_000_000
    await tally.close()


async def test_rows_that_say_nothing_are_removed(place: Place, stores: list[Store]) -> None:
    """Leases that have ended, buckets that are full again, windows that are over."""
    clock = Clock()
    tally = SqlTally(stores[0], clock_us=clock)
    window = Draw("t/day", Kind.WINDOW, 10, 1, ends_at_us=START_US + DAY_US)
    await tally.seed(window, 0, is_late=False)
    await tally.reserve("a", [rate("a", 60), window, Draw("t/open", Kind.OPEN, 5, 1)])
    await tally.apply([Change("b", (Part(window, add=1),), is_final=True, over_at_us=START_US + 1)])
    await tally.tidy()
    assert len(place.execute("select * from counters")) == 3 and len(place.execute("select * from leases")) == 3
    clock.now_us += 2 * DAY_US
    later = SqlTally(stores[1], clock_us=clock)
    await later.tidy()
    assert place.execute("select * from counters") + place.execute("select * from leases") == []
    assert isinstance(await tally.reserve("a", [rate("a", 60)]), Verdict)
    for it in (tally, later):
        await it.close()


async def test_a_database_that_is_away_is_said_so(place: Place, stores: list[Store]) -> None:
    """In words without its address; and it is back when it is back."""
    tally = SqlTally(stores[0])
    await tally.probe()
    place.take_away()
    with pytest.raises(TallyUnavailable) as error:
        await tally.reserve("a", [rate("a", 60)])
    assert str(place.home) not in error.value.reason
    place.bring_back()
    await tally.probe()
    assert isinstance(await tally.reserve("a", [rate("a", 60)]), Verdict)
    await tally.close()


async def test_half_of_a_batch_is_none_of_it(stores: list[Store]) -> None:
    """Changes that are sent again after a failure are made once: they are one transaction, and ends count once."""
    clock = Clock()
    tally = SqlTally(stores[0], clock_us=clock)
    window = Draw("t/day", Kind.WINDOW, 100, 1, ends_at_us=START_US + DAY_US)
    await tally.seed(window, 0, is_late=False)
    ends = [Change(str(it), (Part(window, add=2),), is_final=True, over_at_us=START_US + 1) for it in range(10)]
    await asyncio.gather(*(tally.apply(ends) for _ in range(4)))
    verdict = await tally.reserve("a", [window])
    assert isinstance(verdict, Verdict) and verdict.levels[0].remaining == 100 - 20 - 1
    await tally.close()
