"""Changes: what operators changed, so that gateways forget what they remember of it at once, and nothing else.

An operator's transaction notes what it changes; gateways ask for what is new every half second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from serving.errors import StoreUnavailable
from serving.gateway.store.store import Store
from serving.gateway.store.tables import changes, meta

#: Changes that are kept; a gateway that has missed more forgets all it remembers.
KEPT = 10_000
#: Seconds between two questions.
INTERVAL_S = 0.5

log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What was changed."""

    TENANT = "tenant"
    KEY = "key"
    PRICE = "price"
    #: One who was erased, by the reference.
    END_USER = "end_user"
    #: One that was ended, by its id.
    SESSION = "session"
    #: One that runs in the background and is to stop, by its id.
    RESPONSE = "response"
    #: A batch that was created, cancelled or erased.
    BATCH = "batch"


class Change(msgspec.Struct, frozen=True):
    """One change; its subject is the id of a tenant, a key or a session, or a model."""

    kind: str
    subject: str


class News(msgspec.Struct, frozen=True):
    """What has changed since a revision; None: anything may have."""

    revision: int
    changes: list[Change] | None


def take_turn(connection: Connection) -> None:
    """Wait for operators' transactions that run, and let later ones wait for this: the first thing one does."""
    connection.execute(update(meta).values(revision=meta.c.revision))


def note(connection: Connection, *noted: Change, kept: int = KEPT) -> None:
    """Note changes, in the transaction that makes them; so many are kept."""
    for change in noted:
        connection.execute(update(meta).values(revision=meta.c.revision + 1))
        revision = connection.scalar(select(meta.c.revision)) or 0
        connection.execute(insert(changes).values(revision=revision, kind=change.kind, subject=change.subject))
        connection.execute(delete(changes).where(changes.c.revision <= revision - kept))


def since(store: Store, revision: int | None) -> News:
    """What was changed after `revision`, None before the first question. Raises StoreUnavailable."""
    with store.begin() as connection:
        newest = connection.scalar(select(meta.c.revision)) or 0
        if newest == revision:
            return News(newest, [])
        # A restored backup counts anew.
        if revision is None or newest < revision:
            return News(newest, None)
        query = select(changes).where(changes.c.revision > revision, changes.c.revision <= newest)
        rows = connection.execute(query.order_by(changes.c.revision)).all()
    if len(rows) < newest - revision:
        return News(newest, None)
    return News(newest, [Change(row.kind, row.subject) for row in rows])


class Follower:
    """Asks for what is new, and tells its observers. Where the store is away, they go on with what they remember."""

    def __init__(self, store: Store, *observers: Callable[[News], None]) -> None:
        self._store = store
        self._observers = observers
        self._revision: int | None = None
        #: What the store's files looked like before they were last read.
        self._seen: object = None
        self._is_silent = False
        # Of its own: a database that hangs must not hold up look-ups, nor they this.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="changes")

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                await self.catch_up()
                await asyncio.sleep(INTERVAL_S)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def catch_up(self) -> None:
        """Ask once."""
        looks = self._store.looks()
        if looks is not None and looks == self._seen:
            return
        try:
            news = await asyncio.get_running_loop().run_in_executor(self._thread, since, self._store, self._revision)
        except StoreUnavailable as error:
            if not self._is_silent:
                log.warning("the store cannot be asked for changes: %s", error.reason)
            self._is_silent = True
            return
        self._seen, self._revision, self._is_silent = looks, news.revision, False
        if news.changes != []:
            for observer in self._observers:
                observer(news)
