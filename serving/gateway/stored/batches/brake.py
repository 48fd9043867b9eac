"""Brake: a batch whose calls are refused for a while waits, and no line of it fails for that. One line at a time tries again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Bounds of the seconds between two attempts; the most, so that a limit that was raised is noticed.
PAUSE_S = (0.5, 10.0)


class Brake:
    """Of one batch at one gateway. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._free = asyncio.Event()
        self._free.set()
        self._until = 0.0
        self._tries: object | None = None

    async def passed(self, line: object) -> None:
        """Return when `line` may try."""
        while not self._free.is_set():
            wait_s = self._until - self._clock()
            if wait_s <= 0 and self._tries is None:
                self._tries = line
                return
            try:
                async with asyncio.timeout(max(wait_s, PAUSE_S[0])):
                    await self._free.wait()
            except TimeoutError:
                continue

    def refused(self, retry_after_s: float | None) -> None:
        """A line was refused: none tries until then."""
        least, most = PAUSE_S
        self._free.clear()
        self._until = self._clock() + min(max(retry_after_s or least, least), most)
        self._tries = None

    def left(self, line: object) -> None:
        """A line is over; if it was the one that tried, another may."""
        if self._tries is line:
            self._tries = None

    def got_through(self) -> None:
        """A line was not refused: all may go on."""
        self._tries = None
        self._free.set()
