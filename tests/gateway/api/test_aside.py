"""Aside: short bodies are read at once, long ones in a thread and one after another."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serving.errors import InvalidRequest
from serving.gateway.api.aside import BODY_BYTES_INLINE, Aside


def refuse() -> None:
    raise InvalidRequest("no")


async def test_only_a_long_body_is_worth_a_thread() -> None:
    """Up to the bound the loop does it itself."""
    own = threading.get_ident()
    assert await Aside().done(threading.get_ident, BODY_BYTES_INLINE) == own
    assert await Aside().done(threading.get_ident, BODY_BYTES_INLINE + 1) != own


@pytest.mark.parametrize("size", [1, BODY_BYTES_INLINE + 1])
async def test_what_is_refused_is_refused_here(size: int) -> None:
    """An error of the thread is the caller's."""
    with pytest.raises(InvalidRequest, match="no"):
        await Aside().done(refuse, size)


async def test_a_call_that_gives_up_leaves_its_thread_the_turn() -> None:
    """Its work cannot be cancelled: the next one begins when it has ended, not beside it."""
    aside, go = Aside(), threading.Event()
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    ended: list[str] = []

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(10)
        ended.append("cancelled")

    first = asyncio.create_task(aside.done(work, BODY_BYTES_INLINE + 1))
    await begun.wait()
    first.cancel()
    second = asyncio.create_task(aside.done(lambda: ended.append("next"), BODY_BYTES_INLINE + 1))
    await asyncio.wait([first])
    await asyncio.sleep(0)
    go.set()
    await second
    assert ended == ["cancelled", "next"]


async def test_the_loop_turns_while_long_bodies_wait_for_one_another() -> None:
    """Two at once would hold the interpreter twice as long."""
    aside, go = Aside(), threading.Event()
    running: list[int] = []
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    most = 0

    def work() -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        loop.call_soon_threadsafe(begun.set)
        go.wait(10)
        running.pop()

    both = asyncio.gather(*(aside.done(work, BODY_BYTES_INLINE + 1) for _ in range(2)))
    await begun.wait()
    go.set()
    await both
    assert most == 1
