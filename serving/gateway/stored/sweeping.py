"""Sweeping: what is over in the store: responses and conversations past their time, and responses whose gateway died.

The ledger's writer does it between its own transactions, in every gateway; what one has done is done for the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from math import inf

from sqlalchemy import Connection, delete, insert, select, update

from serving.gateway.store.store import Store
from serving.gateway.store.tables import (
    RUNNING,
    conversation_items,
    conversations,
    gateways,
    gone_responses,
    response_events,
    response_items,
    responses,
)

#: Rows of one transaction: so that other writers get their turn.
BATCH_ROWS = 200
#: Seconds between two looks for what has died, as the ledger's watch has it, and between two batches while there are more.
LOOK_S = 10.0
BUSY_S = 1.0
#: Seconds until the next look for what is past its time, when nothing is left of that.
REST_S = 600.0
#: Seconds for which it is told that a response was deleted or has expired; its id and tenant are kept as long.
TOLD_S = 7 * 86_400.0
#: Seconds a response of this gateway's own is given before it counts as one of which the gateway knows nothing.
OWN_S = 60.0

log = logging.getLogger(__name__)


class Sweeper:
    """For one thread at a time. `runs` are the responses that run in this gateway, whose id in the store is `gateway_id`."""

    def __init__(
        self, store: Store, clock: Callable[[], float], gateway_id: str, runs: Callable[[], Collection[str]]
    ) -> None:
        self._store = store
        self._clock = clock
        self._gateway_id = gateway_id
        self._runs = runs
        self._looked_at = -inf
        self._swept_at = -inf
        self._pause_s = 0.0

    def sweep_if_due(self) -> None:
        """Do what is due now. Raises StoreUnavailable."""
        now = self._clock()
        # Not only "later": a clock that is set back must not end it.
        if not 0 <= now - self._looked_at < LOOK_S:
            self._looked_at = now
            with self._store.following() as connection:
                self._end_lost(connection, now)
        if not 0 <= now - self._swept_at < self._pause_s:
            self._swept_at = now
            self._pause_s = BUSY_S if expire(self._store, now) == BATCH_ROWS else REST_S

    def _end_lost(self, connection: Connection, now: float) -> None:
        """Responses that no gateway runs any more have failed: they are not run again."""
        runs = responses.c.status.in_(RUNNING)
        living = select(gateways.c.id)
        dead = update(responses).where(runs, responses.c.gateway_id.not_in(living)).values(status="failed")
        count = connection.execute(dead).rowcount
        mine = select(responses.c.id).where(
            runs, responses.c.gateway_id == self._gateway_id, responses.c.created_at < now - OWN_S
        )
        unknown = set(connection.scalars(mine)) - set(self._runs())
        if unknown:
            lost = update(responses).where(responses.c.id.in_(unknown), runs).values(status="failed")
            count += connection.execute(lost).rowcount
        if count:
            log.warning("%d responses ran in the background where a gateway died: they have failed", count)


def expire(store: Store, now: float, limit: int = BATCH_ROWS) -> int:
    """Delete a batch of what is past its time; returns how many went of the kind of which most did."""
    with store.following() as connection:
        old = select(responses.c.id).where(responses.c.expires_at <= now).order_by(responses.c.expires_at).limit(limit)
        gone = forget_responses(connection, list(connection.scalars(old)))
        note_gone(connection, gone, now, was_deleted=False)
        told = select(gone_responses.c.id).where(gone_responses.c.told_until <= now)
        some = list(connection.scalars(told.order_by(gone_responses.c.told_until).limit(limit)))
        connection.execute(delete(gone_responses).where(gone_responses.c.id.in_(some)))
        old = select(conversations.c.id).where(conversations.c.expires_at <= now).order_by(conversations.c.expires_at)
        others = list(connection.scalars(old.limit(limit)))
        forget_conversations(connection, others)
    return max(len(gone), len(some), len(others))


def forget_responses(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Delete these, with their streams; returns those that were there, each with its tenant."""
    if not ids:
        return {}
    # In this order: who keeps a piece of a stream holds its response.
    gone = delete(responses).where(responses.c.id.in_(ids)).returning(responses.c.id, responses.c.tenant_id)
    found = {row.id: row.tenant_id for row in connection.execute(gone)}
    connection.execute(delete(response_events).where(response_events.c.response_id.in_(ids)))
    connection.execute(delete(response_items).where(response_items.c.response_id.in_(ids)))
    return found


def note_gone(connection: Connection, tenant_ids: Mapping[str, str], now: float, *, was_deleted: bool) -> None:
    """Remember for a while how these responses went, each with its tenant. What an operator erases leaves nothing."""
    rows = [
        {"id": it, "tenant_id": tenant_id, "was_deleted": was_deleted, "told_until": now + TOLD_S}
        for it, tenant_id in tenant_ids.items()
    ]
    if rows:
        connection.execute(insert(gone_responses), rows)


def forget_conversations(connection: Connection, ids: Collection[str]) -> None:
    """Delete these, with their items."""
    if ids:
        connection.execute(delete(conversation_items).where(conversation_items.c.conversation_id.in_(ids)))
        connection.execute(delete(conversations).where(conversations.c.id.in_(ids)))
