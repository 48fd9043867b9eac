"""Journal: this process's chain, and the only way into the table.

Entries are appended inside the transaction that does what they tell of. The chain goes on from its last entry in the database, which
the journal knows better than that where entries are missing: it never closes such a gap.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Any, Self

import msgspec
from sqlalchemy import Connection, Row, Select, func, insert, select
from sqlalchemy.exc import IntegrityError

from serving.errors import StoreUnavailable
from serving.gateway.audit import checkpoints
from serving.gateway.audit.actors import Actor
from serving.gateway.audit.chain import GENESIS, Entry, Kind, link
from serving.gateway.audit.checkpoints import Checkpoint, Signer
from serving.gateway.identity.acts import Act, Witness
from serving.gateway.store.store import Store
from serving.gateway.store.tables import audit

#: Of a chain's entries; a larger one is a forgery.
NUMBER_MAX = 2**53
#: Chains of commands that one checkpoint covers besides its own.
COVERED_MAX = 1000
#: Microseconds after which a chain in which nothing happens is signed once more: one that lives has an entry of its last day.
QUIET_US = 86_400 * 10**6

#: Checkpoints go out here, one line of JSON each: a collector of logs is where they are kept elsewhere.
log = logging.getLogger("serving.audit")


class Origin(StrEnum):
    """What kind of process writes a chain: the first word of its writer."""

    GATEWAY = "gateway"
    COMMAND = "command"


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """An act's body."""

    by: Actor
    subject: str
    tenant_id: str = ""
    details: Mapping[str, object] = {}


class Journal:
    """`with Journal(store, signer, time.time, Origin.COMMAND) as journal: Registry(…, witness=journal.witness(actor))`

    It begins with its first entry, and ends with the block; where the store is away then, it just stops.
    """

    def __init__(self, store: Store, signer: Signer | None, clock: Callable[[], float], origin: Origin) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock
        self._origin = origin
        #: Random, so that no other process, now or later, has the same.
        self.writer = f"{origin}:{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        #: The last entry of which is known that it was committed.
        self._known: Entry | None = None
        self._lock = threading.Lock()
        #: Writers and numbers of commands' entries that the last checkpoint found.
        self._covered: set[tuple[str, int]] = set()
        self._is_alarmed = False
        #: Something was appended, if perhaps undone.
        self._is_begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        except StoreUnavailable as error:
            log.warning("an audit chain stops without its end: %s", error.reason)

    def witness(self, actor: Actor) -> Witness:
        """Tells of this actor's acts, each in the transaction that does it."""
        return partial(self._tell, actor)

    def record(self, actor: Actor, act: Act) -> None:
        """Tell of an act that changes nothing, in a transaction of its own. Raises StoreUnavailable."""
        self.write([(act.kind, body_of(actor, act))])

    def write(self, entries: Iterable[tuple[str, str]]) -> None:
        """Append entries, each a kind and a body, in a transaction of their own. Raises StoreUnavailable."""
        with self._writing() as connection:
            last = None
            for kind, body in entries:
                last = self.append(connection, kind, body)
        self._learn(last)

    def append(self, connection: Connection, kind: str, body: str) -> Entry:
        """Append an entry in a transaction that may be undone."""
        self._is_begun = True
        head = self._head(connection) or self._insert(connection, None, Kind.BEGIN, self._beginning())
        return self._insert(connection, head, kind, body)

    def checkpoint(self, *, also_since_us: int | None = None) -> list[Checkpoint]:
        """Sign how far this chain has come, if it has since the last time, and chains of commands that were written to since a moment.

        The statements are entries, and go out as log lines. Raises StoreUnavailable.
        """
        signer = self._signer
        if signer is None:
            return []
        with self._writing() as connection:
            now_us, last = self._now_us(), None
            others = [] if also_since_us is None else _commands(connection, also_since_us)
            made = [signer.sign(it, now_us) for it in others if (it.writer, it.number) not in self._covered]
            for statement in made:
                last = self.append(connection, Kind.CHECKPOINT, checkpoints.written(statement))
            # Then its own, which covers those.
            head = last or self._head(connection)
            if head is not None and (not self._is_signed(head) or now_us - head.written_at_us >= QUIET_US):
                made.append(signer.sign(head, now_us))
                last = self.append(connection, Kind.CHECKPOINT, checkpoints.written(made[-1]))
        self._learn(last)
        self._covered = {(entry.writer, entry.number) for entry in others}
        for statement in made:
            log.info("%s", checkpoints.written(statement))
        return made

    def sign_all(self) -> Iterator[Checkpoint]:
        """Statements of every chain in the store, which go nowhere by themselves."""
        if self._signer is None:
            return
        with self._store.snapshot() as connection:
            for row in connection.execute(_heads()):
                yield self._signer.sign(entry_of(row), self._now_us())

    def end(self) -> None:
        """Say that the chain ends here, if it has begun. Raises StoreUnavailable."""
        if self._has_begun():
            self.write([(Kind.END, "{}")])
            self.checkpoint()

    def _tell(self, actor: Actor, connection: Connection, act: Act) -> None:
        try:
            self.append(connection, act.kind, body_of(actor, act))
        except IntegrityError:
            # Not to be taken for one of the change itself, such as a name that is taken.
            raise StoreUnavailable("another process writes under this one's name in the audit") from None

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._store.begin() as connection:
                yield connection
        except IntegrityError:
            raise StoreUnavailable("another process writes under this one's name in the audit") from None

    def _has_begun(self) -> bool:
        if not self._is_begun:
            return False
        with self._store.begin() as connection:
            return self._head(connection) is not None

    def _head(self, connection: Connection) -> Entry | None:
        """The entry to go on from. Other threads of this process wait here until the transaction ends."""
        self._store.hold(connection, self.writer)
        row = connection.execute(_LAST.where(audit.c.writer == self.writer)).one_or_none()
        found, known = None if row is None else entry_of(row), self._known
        if known is None or (found is not None and _goes_on(found, known)):
            return found
        if not self._is_alarmed:
            log.critical(
                "entries of the audit chain %s up to number %d were removed or changed", self.writer, known.number
            )
        self._is_alarmed = True
        return known

    def _is_signed(self, head: Entry) -> bool:
        """Is it a checkpoint of the entry before it?"""
        statement = checkpoints.read(head.body) if head.kind == Kind.CHECKPOINT else None
        return statement is not None and statement.writer == self.writer

    def _insert(self, connection: Connection, head: Entry | None, kind: str, body: str) -> Entry:
        previous, number = (GENESIS, 0) if head is None else (head.digest, head.number)
        entry = link(previous, self.writer, number + 1, self._now_us(), kind, body)
        values = msgspec.structs.asdict(entry)
        values["written_at"] = values.pop("written_at_us") / 1e6
        connection.execute(insert(audit), [values])
        return entry

    def _learn(self, entry: Entry | None) -> None:
        with self._lock:
            if entry is not None and (self._known is None or entry.number > self._known.number):
                self._known = entry

    def _beginning(self) -> str:
        key = None if self._signer is None else checkpoints.name_of(self._signer.public_key)
        return msgspec.json.encode({"origin": self._origin, "key": key}).decode()

    def _now_us(self) -> int:
        return round(self._clock() * 1e6)


def entry_of(row: Row[*tuple[Any, ...]]) -> Entry:
    """A row of the table. Values that were written over it and can be none of an entry's are nothing here, and follow no entry."""
    written_at_us = 0 if row.written_at is None else max(0, round(row.written_at * 1e6))
    number = row.number if isinstance(row.number, int) and 0 < row.number <= NUMBER_MAX else 0
    writer, kind, body = (it if isinstance(it, str) else "" for it in (row.writer, row.kind, row.body))
    return Entry(writer, number, written_at_us, kind, body, row.digest if isinstance(row.digest, bytes) else b"")


_LAST = select(audit).order_by(audit.c.number.desc()).limit(1)


def _goes_on(found: Entry, known: Entry) -> bool:
    return found.number > known.number or found.digest == known.digest


def _heads(*conditions: Any) -> Select[*tuple[Any, ...]]:
    """The last entries of chains of which any entry meets these conditions."""
    moved = select(audit.c.writer, func.max(audit.c.number).label("number")).where(*conditions)
    last = moved.group_by(audit.c.writer).subquery()
    is_last = (audit.c.writer == last.c.writer) & (audit.c.number == last.c.number)
    return select(audit).join(last, is_last).order_by(audit.c.writer)


def _commands(connection: Connection, since_us: int) -> list[Entry]:
    prefix = audit.c.writer.startswith(f"{Origin.COMMAND}:")
    query = _heads(prefix, audit.c.written_at >= since_us / 1e6).limit(COVERED_MAX)
    return [entry_of(row) for row in connection.execute(query)]


def body_of(actor: Actor, act: Act) -> str:
    """What an act's entry says."""
    told = Told(actor, act.subject, act.tenant_id, act.details)
    return msgspec.json.encode(told, order="deterministic").decode()
