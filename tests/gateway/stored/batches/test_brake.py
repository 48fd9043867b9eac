"""Brake: one line of a refused batch tries at a time."""

from __future__ import annotations

import asyncio

from serving.gateway.stored.batches.brake import PAUSE_S, Brake
from tests.clock import Clock


async def test_one_line_tries_and_the_others_follow_it() -> None:
    """When it gets through all go on; when it is refused again another tries later; one that ends makes room for the next."""
    clock, tried = Clock(), []
    brake = Brake(clock)

    async def line(name: str) -> None:
        await brake.passed(name)
        tried.append(name)

    await line("first")
    brake.refused(30.0)
    early = asyncio.create_task(line("early"))
    await asyncio.sleep(0)
    assert tried == ["first"]
    early.cancel()
    clock.advance(31.0)
    tasks = [asyncio.create_task(line(name)) for name in "abc"]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert len(tried) == 2
    brake.left(tried[-1])
    await asyncio.wait([it for it in tasks if not it.done()], return_when=asyncio.FIRST_COMPLETED)
    assert len(tried) == 3
    brake.got_through()
    await asyncio.wait(tasks)
    assert sorted(tried) == ["a", "b", "c", "first"]


async def test_a_limit_of_a_month_is_asked_about_all_the_same() -> None:
    """It may be raised meanwhile."""
    clock = Clock()
    brake = Brake(clock)
    brake.refused(2_000_000.0)
    clock.advance(PAUSE_S[1])
    await brake.passed("a")
