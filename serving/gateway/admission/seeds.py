"""Seeds: where counters of a day or a month begin that are not known: after a start, a new day, a Redis that was emptied."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from serving.gateway.admission import limits
from serving.gateway.ledger import usage
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.store.store import Store

#: A bulkhead: sums over a month of rows, or a database that hangs, take these threads and no others.
THREADS = 2


class Seeds:
    """What the ledger has of a day's or a month's use. A call is in the window in which it began, in both.

    `with Seeds(store, ledger) as seeds: await seeds(names)`
    """

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="seeds")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, names: Sequence[str]) -> list[int]:
        """Tokens or millionths of the currency, one for each name; raises StoreUnavailable."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, names)

    def _read(self, names: Sequence[str]) -> list[int]:
        self._ledger.flush()
        return [self._one(limits.subject(name)) for name in names]

    def _one(self, of: limits.Subject) -> int:
        since = float(of.since_s)
        used = usage.used(self._store, of.tenant_id, since=since, key_id=of.key_id, model=of.model)
        return used.price_micros if of.what == limits.BUDGET else used.tokens
