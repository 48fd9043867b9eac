"""Counter: what draws and verdicts are, and what holds of counters of every kind: in memory, in Redis, in SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings

from serving.gateway.admission.counters.counter import Draw, Kind, Verdict
from serving.gateway.admission.counters.seeding import nothing
from serving.gateway.admission.counters.shared import SharedCounters
from tests.gateway.admission.counters import histories
from tests.gateway.admission.counters.conftest import Ground
from tests.gateway.admission.counters.histories import COUNTERS, Clock, Event, Run

SOME = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(SOME, max_examples=500)


def test_a_verdict_without_a_refusal_has_taken_all() -> None:
    """Nothing is refused unless it says so."""
    assert Verdict(()).refused is None
    assert Draw("t/requests", Kind.OPEN, limit=1, amount=1).period_us == 0


async def play_plain(ground: Ground, events: Sequence[Event]) -> None:
    ground.empty()
    clock = Clock()
    here = Run(clock, histories.in_memory(clock, nothing), 1)
    await here.play(events)
    levels = await here.levels()
    clock.now_us = histories.START_US
    async with Run(clock, histories.on(lambda: ground.tally(clock), clock, nothing, 1), 1) as there:
        await there.play(events)
        assert there.verdicts == here.verdicts
        assert await there.levels() == levels
        require_no_outage(there)


async def play_rough(ground: Ground, events: Sequence[Event]) -> None:
    ground.empty()
    clock = Clock()
    async with Run(clock, histories.on(lambda: ground.tally(clock), clock, nothing, 3), 3) as run:
        await run.play(events)
        run.require_bounds()
        await run.settle_all()
        # Rates refill for a time that top-ups may have made long; a day's end would be too far.
        assert (await run.levels())[2:] == [max(0, COUNTERS[2].limit - run.settled), COUNTERS[3].limit]
        require_no_outage(run)


def require_no_outage(run: Run) -> None:
    assert [it.outages for it in run.gateways if isinstance(it, SharedCounters)] == [0] * len(run.gateways)


@SOME
@given(histories.PLAIN)
def test_the_same_history_has_the_same_verdicts(ground: Ground, events: list[Event]) -> None:
    """To the unit and to the microsecond: in memory, in Redis and in SQL; what is refused changes nothing."""
    asyncio.run(play_plain(ground, events))


@SOME
@given(histories.ROUGH)
def test_no_history_overspends_or_leaks(ground: Ground, events: list[Event]) -> None:
    """Several gateways at the same time, some of which die: no limit is passed by what is granted, and in the end a window has
    counted what was true, and nothing is held."""
    asyncio.run(play_rough(ground, events))


@pytest.mark.long
@MANY
@given(histories.PLAIN)
def test_many_histories_have_the_same_verdicts(ground: Ground, events: list[Event]) -> None:
    """The same, at length."""
    asyncio.run(play_plain(ground, events))


@pytest.mark.long
@MANY
@given(histories.ROUGH)
def test_of_many_histories_none_overspends_or_leaks(ground: Ground, events: list[Event]) -> None:
    """The same, at length."""
    asyncio.run(play_rough(ground, events))
