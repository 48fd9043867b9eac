"""Light event: asyncio's Event without its queue of waiters, which takes 0.7 KB before anyone waits; a connection has two."""

from __future__ import annotations

import asyncio


class LightEvent(asyncio.Event):
    """An Event for any number of waiters, of which there are few: a list holds them."""

    def __init__(self) -> None:  # not the Event's own, which makes the queue
        self._value = False
        self._waiters: list[asyncio.Future[bool]] = []  # type: ignore[assignment] # all that an Event does with its queue
