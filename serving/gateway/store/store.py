"""Store: the gateway's database, of tenants, keys and the ledger: SQLite in one file, or PostgreSQL.

Everything here blocks: the event loop reaches it only through threads (`tenants.py`, `ledger.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, cast

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, TimeoutError

from serving.config import StoreSettings
from serving.errors import Refusal, StoreUnavailable
from serving.gateway.store import postgres, schema, sqlite

FILE_NAME = "serving.db"
LOCK_NAME = "store.lock"
#: Seconds that work on whole tables waits for their users.
LOCK_TIMEOUT_S = 5

#: Any number that no other program on that PostgreSQL database uses for its advisory locks: "serving" in ASCII.
_ADVISORY_LOCK = 0x73657276696E67

_LOCAL = StoreSettings()


class Store:
    """An open database. `with Store.open(home) as store, store.begin() as connection: …`"""

    def __init__(self, engine: Engine, home: Path, name: str) -> None:
        self._engine = engine
        self.home = home
        #: Its name in messages.
        self.name = name
        # PostgreSQL's pool keeps its own connections.
        self._lasting = None if self.is_shared else sqlite.Lasting(engine, home / FILE_NAME)
        #: Connections that look-ups have left for the next ones.
        self._left: deque[sqlite.Lasting] = deque()
        self._is_closed = False

    @classmethod
    def open(cls, home: Path, settings: StoreSettings = _LOCAL, *, may_migrate: bool = False) -> Self:
        """Open the database the settings name: by default `home/serving.db`, made with its tables when absent.

        Safe when several processes do it at once. PostgreSQL's tables are made and changed with `may_migrate` alone:
        other gateways may be using them. Raises Refusal when the folder, file or database cannot be used, when a newer
        version wrote it, or when migrations are missing.
        """
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            if settings.url_file is not None:
                return cls._open_shared(home, settings.url_file, settings.pool_size, may_migrate=may_migrate)
            return cls._open_local(home)
        except OSError as error:
            raise Refusal(f"The folder {home} cannot hold the database: {_reason(error)}.") from None

    @classmethod
    def _open_local(cls, home: Path) -> Self:
        path = home / FILE_NAME
        with locked(home):
            # Made before SQLite sees it, so that its -wal and -shm inherit the mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            store = cls(sqlite.engine(path), home, str(path))
            with store._opening(), store.begin() as connection:
                # WAL is kept in the file: readers and the ledger's writer do not wait for one another.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            store._prepare(may_migrate=True)
        return store

    @classmethod
    def _open_shared(cls, home: Path, url_file: Path, pool_size: int, *, may_migrate: bool) -> Self:
        store = cls(postgres.engine(url_file, pool_size), home, f"named in {url_file}")
        store._prepare(may_migrate=may_migrate)
        return store

    def _prepare(self, *, may_migrate: bool) -> None:
        with self._opening():
            with self.begin() as connection:
                if schema.is_current(connection, self.name):
                    return
            if not may_migrate:
                raise Refusal(
                    f"The database {self.name} lacks tables of this version: run `serving store migrate` once, "
                    "with the same settings."
                )
            with self.alone() as connection:
                schema.migrate(connection, self.name)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable as error:
            self.close()
            raise Refusal(f"The database {self.name} cannot be used: {error.reason}.") from None
        except Refusal:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections at rest; a thread's transaction that still runs, or begins later, closes its own at its end."""
        self.rest()
        self.rest_from_looking()
        self._is_closed = True
        # The pool's, not the engine's: that one would leave those in use to a pool which nobody empties again.
        self._engine.pool.dispose()

    @property
    def is_shared(self) -> bool:
        """May gateways of other machines use it too?"""
        return self._engine.dialect.name == "postgresql"

    def looks(self) -> object:
        """What the database's files look like from outside, which every commit changes; None where only a question tells."""
        if self.is_shared:
            return None
        return tuple(_looks(self.home / name) for name in (FILE_NAME, f"{FILE_NAME}-wal"))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back on the way out of an error.

        Raises StoreUnavailable when the database is unavailable; IntegrityError passes through.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StoreUnavailable(self._reason(error)) from error
        finally:
            if self._is_closed:
                self._engine.pool.dispose()

    @contextmanager
    def erasing(self) -> Iterator[Connection]:
        """One transaction whose deletions leave nothing in SQLite's files, once no other connection reads what was before it.

        PostgreSQL keeps deleted rows on disk until it vacuums its tables.
        """
        if self.is_shared:
            with self.begin() as connection:
                yield connection
            return
        with self.begin() as connection:
            connection.exec_driver_sql("PRAGMA secure_delete=ON")
            yield connection
        with self.begin() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def following(self) -> Iterator[Connection]:
        """The same for transactions that follow one another, of one thread at a time: they share a connection until `rest`."""
        if self._lasting is None:
            with self.begin() as connection:
                yield connection
        else:
            with self._in(self._lasting) as connection:
                yield connection

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        """One transaction of a look-up, in any thread: those that follow one another share connections until `rest_from_looking`."""
        if self.is_shared:
            with self.begin() as connection:
                yield connection
            return
        lasting = self._left.pop() if self._left else sqlite.Lasting(self._engine, self.home / FILE_NAME)
        try:
            with self._in(lasting) as connection:
                yield connection
        finally:
            self._left.append(lasting)
            if self._is_closed:
                self.rest_from_looking()

    @contextmanager
    def _in(self, lasting: sqlite.Lasting) -> Iterator[Connection]:
        try:
            connection = lasting.connection()
            with connection.begin():
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            lasting.end()
            raise StoreUnavailable(self._reason(error)) from error

    def rest_from_looking(self) -> None:
        """No look-ups follow for now. In any thread: one that runs keeps its connection."""
        while self._left:
            self._left.pop().end()

    def rest(self) -> None:
        """None follow for now. For the thread that called `following`."""
        if self._lasting:
            self._lasting.end()

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One transaction that reads the database as it was at its start, however long it takes, while others write."""
        with self.begin() as connection:
            if self.is_shared:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            else:
                # Python begins none before a SELECT.
                connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """One exclusive transaction, however long: no other of these runs beside it, in any process on any machine."""
        with self.begin() as connection:
            if self.is_shared:
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
                # For table locks: every gateway would queue behind a transaction that waits for one longer.
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def hold(self, connection: Connection, name: str) -> None:
        """From here to its end no other transaction that holds this name runs beside this one; on SQLite none that writes."""
        if self.is_shared:
            number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            connection.execute(select(func.pg_advisory_xact_lock(number)))
        elif not cast(sqlite3.Connection, connection.connection.dbapi_connection).in_transaction:
            # Python begins none before a SELECT.
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _reason(self, error: SQLAlchemyError) -> str:
        if isinstance(error, TimeoutError):
            return "every connection of the pool is in use"
        if not isinstance(error, DBAPIError):
            return type(error).__name__
        # SQLite's own sentence ("database is locked") names no path and no value.
        return postgres.reason(error.orig) if self.is_shared else str(error.orig)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """A lock among the processes that use `home`: held while its files are made or replaced."""
    descriptor = os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Put `content` at `path` (0600) whole or not at all, on disk when this returns."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _looks(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
