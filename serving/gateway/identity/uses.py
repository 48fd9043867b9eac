"""Uses: when each key was last used, to the minute, for operators who look for keys that are no longer needed.

A call notes its key in memory; what gathered is written once a minute, in a thread, in a statement for a thousand keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from sqlalchemy import bindparam, or_, update

from serving.errors import StoreUnavailable
from serving.gateway.store.store import Store
from serving.gateway.store.tables import keys

MINUTE_S = 60
#: Keys in one statement; SQLite takes 32,766 variables.
BATCH_MAX = 1_000

log = logging.getLogger(__name__)


class Uses:
    """Gathers uses. `wall_clock` in seconds since the epoch."""

    def __init__(self, store: Store, wall_clock: Callable[[], float]) -> None:
        self._store = store
        self._wall_clock = wall_clock
        #: Key → the minute of its last use, in seconds since the epoch; no more than there are keys.
        self._noted: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="key-uses")

    def note(self, key_id: str) -> None:
        """A key was presented, and is in order."""
        self._noted[key_id] = int(self._wall_clock()) // MINUTE_S * MINUTE_S

    async def run(self) -> None:
        """Write what gathers, until cancelled."""
        while True:
            await asyncio.sleep(MINUTE_S)
            await self.write()

    async def write(self) -> None:
        """Write what has gathered; what the database does not take waits for the next time."""
        noted, self._noted = self._noted, {}
        left = await asyncio.get_running_loop().run_in_executor(self._thread, self._written, noted) if noted else noted
        self._noted = left | self._noted

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _written(self, noted: dict[str, int]) -> dict[str, int]:
        """Returns what the database did not take."""
        left = dict(noted)
        try:
            for minute in sorted(set(noted.values())):
                ids = iter([key_id for key_id, used in noted.items() if used == minute])
                while batch := list(islice(ids, BATCH_MAX)):
                    self._write(batch, minute)
                    for key_id in batch:
                        del left[key_id]
        except StoreUnavailable as error:
            log.warning("the last use of keys cannot be written: %s", error.reason)
        return left

    def _write(self, ids: Sequence[str], minute: int) -> None:
        with self._store.begin() as connection:
            connection.execute(_USED, {"ids": list(ids), "minute": float(minute)})


#: Another gateway may have written a later minute.
_USED = (
    update(keys)
    .where(
        keys.c.id.in_(bindparam("ids", expanding=True)),
        or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < bindparam("minute", type_=keys.c.last_used_at.type)),
    )
    .values(last_used_at=bindparam("minute", type_=keys.c.last_used_at.type))
)
