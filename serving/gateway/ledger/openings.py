"""Openings: rows of calls that have begun and are not yet where a killed gateway would not lose them.

A call waits for its own before its first byte goes out; all that wait at one time are served by one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Collection


class Openings:
    """Entry ids, noted by the event loop and ticked off by threads that write."""

    def __init__(self) -> None:
        self._unkept: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._lock = threading.Lock()

    def note(self, entry_id: str) -> None:
        """A row was opened, in memory so far."""
        with self._lock:
            self._unkept.add(entry_id)

    def is_kept(self, entry_id: str) -> bool:
        return entry_id not in self._unkept

    def unkept(self) -> list[str]:
        """Entries that are nowhere but in memory, in no order."""
        with self._lock:
            return list(self._unkept)

    def tick_off(self, entry_ids: Collection[str]) -> None:
        """These are safe; calls that wait for one go on."""
        with self._lock:
            self._unkept.difference_update(entry_ids)
            freed = [found for entry_id in entry_ids if (found := self._waiting.pop(entry_id, None))]
        if freed:
            # A loop that has ended has no call left that waits in it.
            with contextlib.suppress(RuntimeError):
                freed[0].get_loop().call_soon_threadsafe(_release, freed)

    async def wait(self, entry_id: str, timeout_s: float) -> bool:
        """Wait until it is safe; False when it is not in time."""
        with self._lock:
            if entry_id not in self._unkept:
                return True
            kept = self._waiting[entry_id] = asyncio.get_running_loop().create_future()
        limit = kept.get_loop().call_later(timeout_s, _release, [kept])
        try:
            await kept
        finally:
            limit.cancel()
            self._waiting.pop(entry_id, None)
        return self.is_kept(entry_id)


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for kept in waiting:
        if not kept.done():
            kept.set_result(None)
