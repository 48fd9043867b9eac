"""Spare: lines of batches have what other calls leave, and these wait no longer for their first tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from loadtest.fairness.__main__ import TRAFFIC, night
from loadtest.fairness.simulator import World
from serving.gateway.stored.batches.spare import (
    CAREFUL_LINES,
    QUIET_LINES,
    QUIET_S,
    Allowance,
    Pace,
    Spare,
    allowance,
)
from serving.wire import EngineLoad
from tests.clock import Clock

IDLE = EngineLoad(kv_cache_tokens=1000)
QUEUED = EngineLoad(kv_cache_tokens=1000, waiting_requests=1)


def allowed(*loads: EngineLoad, waiting: int = 0, quiet_s: float = 0.0) -> Allowance:
    pace = Pace(-quiet_s)
    pace.lines = sum(load.running_requests for load in loads)
    return allowance(pace.look(loads, waiting, 0.0), 100.0)


def test_lines_have_what_is_left() -> None:
    """Few while other calls are about, fewer where calls wait or the caches fill, many where there are none; one wakes a model."""
    assert allowed(IDLE, IDLE) == Allowance(2 * CAREFUL_LINES, 200.0)
    assert allowed(IDLE, waiting=1).lines == 0
    assert allowed(IDLE, QUEUED) == Allowance(2 * CAREFUL_LINES, 100.0)
    assert allowed(QUEUED, QUEUED).lines == 0
    assert allowed(replace_used(0.55)).lines == CAREFUL_LINES / 2
    assert allowed(replace_used(0.7)).lines == 0
    assert allowed(IDLE, IDLE, quiet_s=QUIET_S).lines == 2 * QUIET_LINES
    assert allowed().lines == 1


def replace_used(ratio: float) -> EngineLoad:
    return EngineLoad(kv_cache_tokens=1000, kv_cache_used_ratio=ratio)


def test_a_call_that_is_no_line_ends_the_quiet() -> None:
    """At an engine or in the gateway's queue; from then on it takes a minute again."""
    pace, busy = Pace(0.0), EngineLoad(running_requests=3)
    pace.lines = 3
    assert pace.look([busy], 0, 100.0).quiet_s == 100.0
    pace.lines = 2
    assert pace.look([busy], 0, 100.0).quiet_s == 0.0
    pace.lines = 3
    assert pace.look([busy], 0, 130.0).quiet_s == 30.0
    assert pace.look([busy], 1, 131.0).quiet_s == 0.0


async def test_tenants_take_turns_and_prompts_are_paced() -> None:
    """A tenant with many lines waits as long for each as one with few; a long prompt makes the next line wait longer."""
    clock, begun = Clock(), []
    spare = Spare(lambda model: ([IDLE], 0), 10.0, clock)

    async def line(tenant: str, tokens: int) -> None:
        with await spare.place("m", tenant, tokens):
            begun.append(tenant)

    tasks = [asyncio.create_task(line(tenant, 50)) for tenant in ("a", "a", "a", "b")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert begun == ["a"]
    for expected in (["a", "a"], ["a", "a", "b"], ["a", "a", "b", "a"]):
        clock.advance(4.9)
        spare.wake_all()
        await asyncio.sleep(0)
        assert begun == expected[:-1]
        clock.advance(0.2)
        spare.wake_all()
        await asyncio.sleep(0)
        assert begun == expected
    await asyncio.gather(*tasks)


async def test_a_long_prompt_holds_up_no_line_of_a_quiet_night() -> None:
    """However long it would make the next one wait beside other calls."""
    clock = Clock()
    spare = Spare(lambda model: ([IDLE], 0), 10.0, clock)
    with await spare.place("m", "a", 1_000_000):
        pass
    clock.advance(QUIET_S / 2)
    waiting = asyncio.create_task(spare.place("m", "b", 1))
    await asyncio.sleep(0)
    spare.wake_all()
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(QUIET_S)
    spare.wake_all()
    await asyncio.sleep(0)
    assert waiting.done()


async def test_a_line_that_is_given_up_holds_no_place() -> None:
    """Neither while it waits nor just when it was to begin."""
    clock = Clock()
    spare = Spare(lambda model: ([], 0), 10.0, clock)
    first = await spare.place("m", "a", 1)
    waiting = asyncio.create_task(spare.place("m", "a", 1))
    woken = asyncio.create_task(spare.place("m", "b", 1))
    await asyncio.sleep(0)
    waiting.cancel()
    with first:
        pass
    woken.cancel()
    await asyncio.wait([waiting, woken])
    async with asyncio.timeout(5):
        with await spare.place("m", "c", 1):
            pass


@pytest.mark.parametrize("traffic", [TRAFFIC[1], TRAFFIC[3]], ids=lambda it: it.name)
def test_first_tokens_come_as_soon_beside_a_batch(traffic: object) -> None:
    """At p95 within a tenth, at half of what the fleet can do; simulated (`python -m loadtest.fairness` has all of them)."""
    world = World(TRAFFIC[0].model, replicas=2, span_s=120.0, warm_up_s=20.0)
    beside = night(traffic, replace(world, seed=3), share=0.5)  # type: ignore[arg-type]
    assert beside.ratio <= 1.1 and beside.lines_tokens_per_s > 0
