"""Holdings: the files and batches of a tenant or a person, as they are erased.

Rows of batches go at once, and what runs stops. Of a file the name goes at once, with the key of its bytes, and its tenant sees it no more; the
bytes, which nothing opens any more, are removed by a gateway's next look for what has expired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, delete, insert, or_, select, update

from serving.gateway.identity import changes
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.store.tables import batch_lines, batches, files

#: Rows of one piece: a batch may have thousands of lines.
PIECE_ROWS = 32
#: Seconds until the bytes are removed that a running batch has written: its gateway stops before, and writes no more.
STOPPING_S = 60.0

#: A file that is not erased. Erased ones have neither a name nor the key that opens their bytes.
IS_NAMED = files.c.sealed != b""

Whose = Callable[[Table], ColumnElement[bool]]


def erase_some(connection: Connection, whose: Whose, now: float) -> int:
    """Erase a piece of them, in a transaction that has its turn for changes; returns how many, 0 when none is left.

    What reads an erased file cannot go on: such batches are erased too, whoever gave them.
    """
    return _erase_batches(connection, whose, now) or _erase_files(connection, whose)


def _erase_batches(connection: Connection, whose: Whose, now: float) -> int:
    theirs = select(files.c.id).where(whose(files))
    reads_theirs = and_(batches.c.ended_at.is_(None), batches.c.input_file_id.in_(theirs))
    # Locked: one that ends meanwhile has files.
    query = select(batches).where(or_(whose(batches), reads_theirs)).limit(PIECE_ROWS).with_for_update()
    found = connection.execute(query).all()
    ids = [row.id for row in found]
    # In this order: who keeps a line holds its batch.
    connection.execute(delete(batches).where(batches.c.id.in_(ids)))
    connection.execute(delete(batch_lines).where(batch_lines.c.batch_id.in_(ids)))
    stopped = [row for row in found if row.ended_at is None]
    changes.note(connection, *(Change(Kind.BATCH, row.id) for row in stopped))
    if stopped:
        connection.execute(insert(files), [row for batch in stopped for row in _unfinished(batch, now)])
    return len(found)


def _unfinished(batch: Row[Any], now: float) -> list[dict[str, object]]:
    """The files that a batch has not completed, so that their bytes are found."""
    none = {"bytes": 0, "pieces": 0, "sealed": b"", "purpose": "batch_output", "is_whole": False}
    who = {"tenant_id": batch.tenant_id, "key_id": batch.key_id}
    times = {"created_at": now, "expires_at": now + STOPPING_S}
    return [{"id": it, **who, **none, **times} for it in (batch.output_file_id, batch.error_file_id)]


def _erase_files(connection: Connection, whose: Whose) -> int:
    some = list(connection.scalars(select(files.c.id).where(whose(files), IS_NAMED).limit(PIECE_ROWS)))
    # Taken for uploads that were never finished, long ago.
    erased = {"sealed": b"", "is_whole": False, "created_at": 0.0, "user_ref": None}
    connection.execute(update(files).where(files.c.id.in_(some)).values(**erased))
    return len(some)
