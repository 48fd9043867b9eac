"""Light event: what is written for asyncio's Event finds nothing else in it."""

from __future__ import annotations

import asyncio

import pytest

from serving.gateway.http.light_event import LightEvent


@pytest.mark.parametrize("kind", [asyncio.Event, LightEvent])
async def test_it_lets_all_go_who_wait(kind: type[asyncio.Event]) -> None:
    """Also those that wait for an event that is cleared before they run, and nobody afterwards."""
    event = kind()
    assert repr(event).endswith("[unset]>")
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not event.is_set() and not any(it.done() for it in waiting)
    event.set()
    assert event.is_set() and await event.wait()
    event.clear()
    assert await asyncio.gather(*waiting) == [True] * 3
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(event.wait(), 0.01)


@pytest.mark.parametrize("kind", [asyncio.Event, LightEvent])
async def test_one_that_gives_up_hinders_no_other(kind: type[asyncio.Event]) -> None:
    """Cancelled before the event is set, or in the very turn in which it is."""
    event = kind()
    before, at_once, other = (asyncio.create_task(event.wait()) for _ in range(3))
    await asyncio.sleep(0)
    before.cancel()
    await asyncio.sleep(0)
    at_once.cancel()
    event.set()
    assert await other
    assert before.cancelled() and at_once.cancelled()
