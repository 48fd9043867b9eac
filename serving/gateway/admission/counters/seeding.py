"""Seeding: what a window has counted so far, from the ledger, for a counter that does not know: after a restart, on a new day.

Calls that need the same window wait for one reading of it. Where the ledger cannot be read, counting begins at 0, and what it says
later is the least that was taken: no call is refused because the truth cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from serving.errors import StoreUnavailable
from serving.gateway.policies import COUNT_MAX

#: Names of windows → what each has counted so far, by the ledger. Raises StoreUnavailable.
Seeds = Callable[[Sequence[str]], Awaitable[Sequence[int]]]

#: Seconds a call waits for the ledger's sums.
WAIT_S = 2.0
#: Microseconds until a ledger that could not be read is asked again.
RETRY_US = 1_000_000

log = logging.getLogger(__name__)


async def nothing(names: Sequence[str]) -> Sequence[int]:
    """Seeds where nothing was ever counted."""
    return [0] * len(names)


class Seeding:
    """Reads windows from the ledger, each once at a time."""

    def __init__(self, seeds: Seeds, clock_us: Callable[[], int], *, wait_s: float = WAIT_S) -> None:
        self._seeds = seeds
        self._wait_s = wait_s
        self._clock_us = clock_us
        #: Windows that are being read, by name.
        self._readings: dict[str, asyncio.Task[dict[str, int]]] = {}
        self._paused_until_us = 0

    @property
    def is_paused(self) -> bool:
        """The ledger could not be read just now."""
        return self._clock_us() < self._paused_until_us

    async def values(self, names: Iterable[str]) -> dict[str, int] | None:
        """What these windows have counted, at least; None where the ledger cannot be read."""
        if self.is_paused:
            return None
        names = list(names)
        if fresh := [name for name in names if name not in self._readings]:
            self._begin(fresh)
        readings = {self._readings[name] for name in names}
        try:
            async with asyncio.timeout(self._wait_s):
                # A call that leaves does not end the reading for the others.
                found = [await asyncio.shield(reading) for reading in readings]
        except (StoreUnavailable, TimeoutError):
            if not self.is_paused:
                log.warning("the ledger cannot be read: limits of a day or a month begin to count at 0")
            self._paused_until_us = self._clock_us() + RETRY_US
            return None
        return {name: value for values in found for name, value in values.items() if name in names}

    def _begin(self, names: Sequence[str]) -> None:
        reading = asyncio.create_task(self._read(names), name="seeds")
        self._readings.update(dict.fromkeys(names, reading))
        reading.add_done_callback(partial(self._end, names))

    def _end(self, names: Sequence[str], reading: asyncio.Task[dict[str, int]]) -> None:
        for name in names:
            del self._readings[name]
        if not reading.cancelled():
            # Calls that wait for it raise it; without any, asyncio would log it as never retrieved.
            reading.exception()

    async def _read(self, names: Sequence[str]) -> dict[str, int]:
        values = await self._seeds(names)
        # No limit is larger, and no counter need count further.
        return {name: min(max(0, value), COUNT_MAX) for name, value in zip(names, values, strict=True)}
