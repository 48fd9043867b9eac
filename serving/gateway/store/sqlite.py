"""SQLite: the database of one machine, in one file that any number of its processes share."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import NullPool

#: Milliseconds a writer waits for another writer; far above any of our transactions, far below a request's patience.
BUSY_TIMEOUT_MS = 2000


def engine(path: Path) -> Engine:
    """An engine on a file that is there already."""
    # A connection per transaction (0.5 ms with its pragmas, measured on 2 cores), because a pooled one goes on writing
    # into a file that was deleted or replaced; and `rw`, so that a missing file is an outage, not a new empty database.
    address = f"{path.absolute().as_uri()}?mode=rw"
    made = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(address, uri=True, check_same_thread=False),
        poolclass=NullPool,
        hide_parameters=True,
    )
    event.listen(made, "connect", _configure)
    return made


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    # In WAL mode a power cut can lose the last commits but not damage the file; a killed process loses nothing.
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
