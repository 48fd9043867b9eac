"""Retention: rows of the ledger that are older than the settings keep are deleted, a few at a time (TEN-23).

The ledger's writer does it between its own transactions, in every gateway; what one has deleted is gone for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from sqlalchemy import delete, select

from serving.gateway.ledger.rows import OPEN
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger

#: Rows of one transaction: about 5 ms of work, so that other writers get their turn.
BATCH_ROWS = 500
#: Seconds between two batches while there are more: 500 rows a second, more than a gateway writes.
BUSY_S = 1.0
#: Seconds until the next look when nothing old is left.
REST_S = 600.0

_SECONDS_PER_DAY = 86_400.0


class Retention:
    """What is kept, and when the next batch may go. For one thread at a time: the ledger's writer."""

    def __init__(
        self, store: Store, days: int | None, clock: Callable[[], float], *, batch_rows: int = BATCH_ROWS
    ) -> None:
        self._store = store
        self._batch_rows = batch_rows
        #: Days a row is kept from its call's begin; None: for ever.
        self._days = days
        self._clock = clock
        self._swept_at = -inf
        self._pause_s = REST_S

    def sweep_if_due(self) -> int:
        """Delete a batch of what is too old, if it is time; returns how many rows that were. Raises StoreUnavailable.

        Open rows stay: their calls still run, or their gateway's end was not noticed yet.
        """
        now = self._clock()
        # Not only "later": a clock that is set back must not end it.
        if self._days is None or 0 <= now - self._swept_at < self._pause_s:
            return 0
        self._swept_at = now
        is_old = (ledger.c.started_at < now - self._days * _SECONDS_PER_DAY, ledger.c.outcome != OPEN)
        oldest = select(ledger.c.request_id).where(*is_old).order_by(ledger.c.started_at).limit(self._batch_rows)
        with self._store.following() as connection:
            count = connection.execute(delete(ledger).where(ledger.c.request_id.in_(oldest))).rowcount
        self._pause_s = BUSY_S if count == self._batch_rows else REST_S
        return count
