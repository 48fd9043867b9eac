"""Openings: a call waits for its own row, and goes on with all others that one write made safe."""

from __future__ import annotations

import asyncio

from serving.gateway.ledger.openings import Openings


async def test_all_that_wait_go_on_with_one_write() -> None:
    """A thread ticks off a group; each of its calls goes on, and no other."""
    openings = Openings()
    for name in "abc":
        openings.note(name)
    waiting = [asyncio.create_task(openings.wait(name, 60)) for name in "ab"]
    await asyncio.sleep(0)
    await asyncio.to_thread(openings.tick_off, ["a", "b"])
    assert await asyncio.gather(*waiting) == [True, True]
    assert openings.is_kept("a") and not openings.is_kept("c") and openings.unkept() == ["c"]


async def test_what_is_safe_already_costs_no_wait() -> None:
    """Most rows are written while their engine still works on the first token."""
    openings = Openings()
    openings.note("a")
    openings.tick_off(["a"])
    assert await openings.wait("a", 0) and await openings.wait("never noted", 0)


async def test_a_wait_ends_in_time_and_once_more_later() -> None:
    """What was not safe in time is said so; a group that was ticked off twice does no harm."""
    openings = Openings()
    openings.note("a")
    assert not await openings.wait("a", 0)
    openings.tick_off(["a"])
    openings.tick_off(["a"])
    assert await openings.wait("a", 0)


def test_a_loop_that_has_ended_is_no_error() -> None:
    """The last rows of a gateway are written after its event loop."""
    openings = Openings()
    openings.note("a")

    async def leave() -> None:
        task = asyncio.create_task(openings.wait("a", 60))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    openings.tick_off(["a"])
    assert openings.is_kept("a")
