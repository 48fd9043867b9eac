"""Light event: asyncio's Event without its queue of waiters, which takes 0.7 KB before anyone waits; a connection has two."""

from __future__ import annotations

import asyncio
from typing import Literal


class LightEvent(asyncio.Event):
    """An Event for any number of waiters, of which there are few."""

    __slots__ = ("_futures", "_is_set")

    def __init__(self) -> None:  # not the Event's own, which makes the queue
        self._is_set = False
        self._futures: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> Literal[True]:
        if not self._is_set:
            future = asyncio.get_running_loop().create_future()
            self._futures.append(future)
            try:
                await future
            finally:
                self._futures.remove(future)
        return True
