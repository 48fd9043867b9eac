"""Store: the gateway's database, asked for tenants and keys, told about every request. SQLite in one file for now.

Everything here blocks: the event loop reaches it only through threads (`tenants.py`, `ledger.py`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.types import TypeDecorator

from serving.errors import Refusal, StoreUnavailable

FILE_NAME = "serving.db"
LOCK_NAME = "store.lock"
SCHEMA_VERSION = 1
#: Milliseconds a writer waits for another writer; far above any of our transactions, far below a request's patience.
BUSY_TIMEOUT_MS = 2000


class Moment(TypeDecorator[float]):
    """Seconds since the epoch in Python, a readable UTC timestamp in the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(value, UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> float | None:
        return None if value is None else value.replace(tzinfo=UTC).timestamp()


metadata = MetaData()

meta = Table("meta", metadata, Column("schema_version", Integer, nullable=False))

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    # HMAC-SHA256 of the whole key under the pepper: the database alone opens nothing.
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    Column("expires_at", Moment),
)

# No foreign keys: a bill outlives its key, and no row may be refused.
ledger = Table(
    "ledger",
    metadata,
    Column("request_id", String(255), primary_key=True),
    # Random, one per entry: tells a repeated write from another request under the same id.
    Column("entry_id", String(32), nullable=False),
    Column("tenant_id", String(32), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("route", String(255), nullable=False),
    Column("model", String(255), nullable=False),
    Column("replica_id", String(255)),
    Column("started_at", Moment, nullable=False),
    # Empty while open, and for ever when the gateway died.
    Column("finished_at", Moment),
    Column("outcome", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_prompt_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    # The rule that produced the counts; empty means exact, as the engine said.
    Column("estimated_by", String(64)),
    Column("gateway_id", String(255), nullable=False),
)
Index("ledger_by_tenant", ledger.c.tenant_id, ledger.c.started_at)
Index("ledger_by_start", ledger.c.started_at)
_is_open = ledger.c.outcome == "open"
Index("ledger_open", ledger.c.gateway_id, sqlite_where=_is_open, postgresql_where=_is_open)


class Store:
    """An open database. `with Store.open(home) as store, store.begin() as connection: …`"""

    def __init__(self, engine: Engine, home: Path) -> None:
        self._engine = engine
        self.home = home

    @classmethod
    def open(cls, home: Path) -> Self:
        """Open `home/serving.db`, made with its tables when absent; safe when several processes do it at once.

        Raises Refusal when the folder or file cannot be used, or a newer version wrote it.
        """
        path = home / FILE_NAME
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(home):
                # Made before SQLite sees it, so that its -wal and -shm inherit the mode.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                store = cls(_sqlite(path), home)
                store._create(path)
        except OSError as error:
            raise Refusal(f"The folder {home} cannot hold the database: {_reason(error)}.") from None
        except StoreUnavailable as error:
            raise Refusal(f"The database {path} cannot be used: {error.reason}.") from None
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back on the way out of an error.

        Raises StoreUnavailable when the database does not do its part; IntegrityError stays the caller's.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StoreUnavailable(_database_reason(error)) from error

    def _create(self, path: Path) -> None:
        with self.begin() as connection:
            # WAL is kept in the file: readers and the ledger's writer do not wait for one another.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            metadata.create_all(connection)
            version = connection.scalar(select(meta.c.schema_version))
            if version is None:
                connection.execute(insert(meta).values(schema_version=SCHEMA_VERSION))
            elif version > SCHEMA_VERSION:
                raise Refusal(
                    f"The database {path} has schema {version} and this version knows up to {SCHEMA_VERSION}: "
                    "run the newer version that wrote it."
                )


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Alone among the processes that use `home`: held for the moments in which its files are made or replaced."""
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


def _sqlite(path: Path) -> Engine:
    # A connection per transaction (0.5 ms with its pragmas, measured on 2 cores), because a pooled one goes on writing
    # into a file that was deleted or replaced; and `rw`, so that a missing file is an outage, not a new empty database.
    address = f"{path.absolute().as_uri()}?mode=rw"
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(address, uri=True, check_same_thread=False),
        poolclass=NullPool,
        hide_parameters=True,
    )
    event.listen(engine, "connect", _configure)
    return engine


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    # In WAL mode a power cut can lose the last commits but not damage the file; a killed process loses nothing.
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _database_reason(error: SQLAlchemyError) -> str:
    # SQLite's own sentence ("database is locked"); it names no path and no value.
    return str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
