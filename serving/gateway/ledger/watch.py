"""Watch: which of the store's gateways are alive. Each writes a heartbeat; rows that a dead one left open are closed by the
others.

No clocks are compared. A gateway counts as dead when its heartbeat was unchanged at several of our own checks in a row; a
check that the database refused does not count, so an outage of the database declares no gateway dead.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from math import inf

from sqlalchemy import Connection, delete, insert, select, update

from serving.gateway.ledger.rows import OPEN, close_rows_of
from serving.gateway.store.store import Store
from serving.gateway.store.tables import gateways, ledger
from serving.lifetime import start_of

#: Seconds between two heartbeats, each with a check of the others'.
BEAT_S = 10.0
#: Checks of an unchanged heartbeat after which its gateway counts as dead: with BEAT_S a minute.
CHECKS_MAX = 6

log = logging.getLogger(__name__)


class Watch:
    """This gateway's heartbeat, and its view of the others. For one thread at a time: the ledger's writer."""

    def __init__(self, store: Store, gateway_id: str, clock: Callable[[], float]) -> None:
        self._store = store
        self._gateway_id = gateway_id
        self._clock = clock
        self._checked_at = -inf
        #: gateway id → its heartbeat at the last check (None: it has none), and for how many checks it has been that.
        self._seen: dict[str, tuple[float | None, int]] = {}
        #: Gateways that lived at the last check, this one included.
        self.living = 1

    def check_if_due(self) -> None:
        """Write the heartbeat and close what dead gateways left open, once in BEAT_S; raises StoreUnavailable."""
        now = self._clock()
        # Not only "later": a clock that is set back must not silence this gateway.
        if 0 <= now - self._checked_at < BEAT_S:
            return
        with self._store.begin() as connection:
            _beat(connection, self._gateway_id, now)
            seen = self._check(connection)
            for gateway_id, (seen_at, checks) in seen.items():
                if self._is_dead(gateway_id, checks):
                    _close_rows_of_dead(connection, gateway_id, seen_at)
        self._seen, self._checked_at = seen, now
        beats = [beat is not None and not self._is_dead(it, checks) for it, (beat, checks) in seen.items()]
        self.living = 1 + sum(beats)

    def leave(self) -> None:
        """This gateway shut down gracefully; raises StoreUnavailable."""
        with self._store.begin() as connection:
            connection.execute(delete(gateways).where(gateways.c.id == self._gateway_id))

    def _check(self, connection: Connection) -> dict[str, tuple[float | None, int]]:
        beats: dict[str, float | None] = dict.fromkeys(
            connection.scalars(select(ledger.c.gateway_id).where(ledger.c.outcome == OPEN).distinct())
        )
        beats |= {row.id: row.seen_at for row in connection.execute(select(gateways.c.id, gateways.c.seen_at))}
        beats.pop(self._gateway_id, None)
        return {gateway_id: (beat, self._checks_of(gateway_id, beat)) for gateway_id, beat in beats.items()}

    def _checks_of(self, gateway_id: str, beat: float | None) -> int:
        known, checks = self._seen.get(gateway_id, (None, -1))
        return checks + 1 if known == beat else 0

    def _is_dead(self, gateway_id: str, checks: int) -> bool:
        # A process of this machine is known at once. Not so with a shared store: containers may share a host's name
        # and not its processes.
        if not self._store.is_shared and _host_of(gateway_id) == socket.gethostname():
            return has_died(gateway_id)
        return checks >= CHECKS_MAX


def own_gateway_id() -> str:
    """`host:pid:start` of this process; its start tells it from a later process with the same pid."""
    return f"{socket.gethostname()}:{os.getpid()}:{start_of(os.getpid())}"


def has_died(gateway_id: str) -> bool:
    """Is this the id of a process of this host that no longer runs? Other hosts' cannot be judged so."""
    _, pid, start = gateway_id.rsplit(":", 2)
    return _host_of(gateway_id) == socket.gethostname() and start_of(int(pid)) != start


def _host_of(gateway_id: str) -> str:
    return gateway_id.rsplit(":", 2)[0]


def _beat(connection: Connection, gateway_id: str, now: float) -> None:
    known = update(gateways).where(gateways.c.id == gateway_id)
    if connection.execute(known.values(seen_at=now)).rowcount == 0:
        connection.execute(insert(gateways).values(id=gateway_id, seen_at=now))


def _close_rows_of_dead(connection: Connection, gateway_id: str, seen_at: float | None) -> None:
    if seen_at is not None:
        # The watcher that deletes the heartbeat closes the rows: one of several, and none when it beat once more meanwhile.
        silent = delete(gateways).where(gateways.c.id == gateway_id, gateways.c.seen_at == seen_at)
        if connection.execute(silent).rowcount == 0:
            return
    if count := close_rows_of(connection, gateway_id):
        log.warning("%d calls were open in gateway %s, which died", count, gateway_id)
