"""Backup: the whole store in one file, from either database into either: gzip of JSON lines, so that `zcat` shows it.

    {"kind": "head", "format": 1, "schema": 2, "made_at": …, "pepper": "<base64>"}
    {"kind": "row", "table": "tenants", "values": {…}}        every tenant, then every key, and so on; the ledger, the audit
    {"kind": "foot", "rows": {"tenants": 2, …}, "sha256": "<of every byte before this line>"}

It holds digests instead of keys, so it opens nothing by itself; keep it as secret as the pepper all the same. What is stored of
prompts and answers is in it as it is in the store, sealed: the vault's keys are not in it. Of files it has the rows, and not the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import groupby, islice
from pathlib import Path

import msgspec
from sqlalchemy import ColumnElement, Connection, LargeBinary, RowMapping, delete, func, insert, select, true, update
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, StatementError

from serving.errors import Refusal
from serving.gateway.identity.acts import Act, ActKind, Witness, unwitnessed
from serving.gateway.identity.keyring import PEPPER_NAME, Keyring
from serving.gateway.identity.keys import PEPPER_BYTES
from serving.gateway.identity.registry import FIRST_KEY_NAME, FIRST_TENANT
from serving.gateway.store import schema
from serving.gateway.store.store import Store, write_private
from serving.gateway.store.tables import (
    audit,
    batches,
    conversation_items,
    conversations,
    end_users,
    files,
    keys,
    ledger,
    meta,
    prices,
    response_events,
    response_items,
    responses,
    tenants,
)
from serving.gateway.stored.keeping import RESPONSE_BYTES_MAX

FORMAT = 1
#: In this order, so that a key finds its tenant. Left out is what belongs to gateways that run now (`gateways`, `counters`, `leases`,
#: `changes`) or is for days (`idempotency`, `gone_responses`): after a restore others run, and count from the ledger.
TABLES = {
    str(table.name): table
    for table in (
        tenants,
        keys,
        prices,
        end_users,
        ledger,
        audit,
        responses,
        response_events,
        response_items,
        conversations,
        conversation_items,
        files,
        batches,
    )
}
#: Rows that are left out: uploads that go on, and batches that do. Restored beside the gateways that run it, a batch would be run twice, and
#: two would write the same files (MEM-17).
_WANTED: dict[str, ColumnElement[bool]] = {
    "files": files.c.is_whole.is_(True),
    "batches": batches.c.ended_at.is_not(None),
}
#: Rows in memory at a time. Seen: 300,000 calls pass, out of PostgreSQL and into it, in 71 MiB, as `serving keys list` does.
BATCH_ROWS = 400
#: Of rows that may hold megabytes each.
LARGE_ROWS = 8
_LARGE = frozenset({"responses", "response_events", "conversation_items"})
#: Bytes of one line beside what is sealed in it.
ROW_BYTES = 1024 * 1024

Counts = dict[str, int]


class _Head(msgspec.Struct, frozen=True, tag_field="kind", tag="head"):
    format: int
    # The revision whose tables and columns are in the file.
    schema: int
    made_at: float
    pepper: bytes


class _Row(msgspec.Struct, frozen=True, tag_field="kind", tag="row"):
    table: str
    values: dict[str, str | int | float | bool | None]


class _Foot(msgspec.Struct, frozen=True, tag_field="kind", tag="foot"):
    rows: Counts
    sha256: str


_DECODER: msgspec.json.Decoder[_Head | _Row | _Foot] = msgspec.json.Decoder(_Head | _Row | _Foot)


def write(store: Store, keyring: Keyring, path: Path, clock: Callable[[], float]) -> Counts:
    """Write the store as it is at this moment, gateways writing or not, to `path` (0600), whole or not at all.

    Returns the rows of each table. Raises Refusal when the file cannot be written, StoreUnavailable in an outage.
    """
    counts, digest = dict.fromkeys(TABLES, 0), hashlib.sha256()
    with _written_whole(path) as file, store.snapshot() as connection:

        def put(entry: _Head | _Row | _Foot) -> None:
            line = msgspec.json.encode(entry) + b"\n"
            digest.update(line)
            file.write(line)

        put(_Head(FORMAT, schema.REVISION, clock(), keyring.pepper))
        for name, table in TABLES.items():
            query = select(table).where(_WANTED.get(name, true()))
            with connection.execute(query, execution_options={"yield_per": _rows_at_once(name)}) as found:
                for row in found.mappings():
                    put(_Row(name, _as_text(row)))
                    counts[name] += 1
        put(_Foot(counts, digest.hexdigest()))
    return counts


def line_bytes_max(max_body_bytes: int) -> int:
    """Bytes of one line: the longest row is a stored response, as large as it may be, with its input, in base64."""
    return (max_body_bytes + RESPONSE_BYTES_MAX) * 4 // 3 + ROW_BYTES


def restore(
    store: Store,
    path: Path,
    line_bytes: int,
    *,
    pepper_file: Path | None = None,
    pepper_out: Path | None = None,
    witness: Witness = unwitnessed,
) -> Counts:
    """Fill a new store from a backup, wholly or not at all; returns the rows of each table.

    The pepper goes to `pepper_out`, else to `store.home`; with a `pepper_file`, which is its owner's to write, it must be
    there already. Raises Refusal when it is not, when the backup is damaged or from a newer version, has a line of more than
    `line_bytes`, or when the store is in use: more is in it than a first start makes.
    """
    if path.exists() and not path.is_file():
        raise Refusal(f"{path} is no plain file: a backup is read twice, so write it to one first.")
    head = _checked(path, line_bytes)
    place = _place_of_pepper(head.pepper, path, store.home, pepper_file, pepper_out)
    try:
        with store.alone() as connection:
            if store.is_shared:
                connection.exec_driver_sql(f"LOCK TABLE {', '.join(TABLES)} IN EXCLUSIVE MODE")
            _make_room(connection, store.name)
            counts = _fill(connection, path, line_bytes)
            # A revision without a change: gateways that follow this store forget all they remember of it.
            check = Keyring(head.pepper).check
            connection.execute(update(meta).values(pepper_check=check, revision=meta.c.revision + 1))
            told = {"made_at": head.made_at, "rows": counts}
            witness(connection, Act(ActKind.STORE_RESTORE, "store", details=told))
            if place is not None:
                # Before the commit: killed between the two, a restore can be repeated.
                write_private(place, head.pepper)
    except IntegrityError:
        raise Refusal(f"The rows in {path} contradict one another: it was changed after it was made.") from None
    except OSError as error:
        raise Refusal(f"The pepper cannot be written to {place}: {_reason(error)}.") from None
    return counts


def _as_text(row: RowMapping) -> dict[str, str | int | float | None]:
    return {str(name): b64encode(value).decode() if isinstance(value, bytes) else value for name, value in row.items()}


def _from_text(row: _Row) -> dict[str, object]:
    """A row as the database takes it. Raises KeyError for what is no table or column, ValueError for what is no base64."""
    columns = TABLES[row.table].c
    return {
        name: b64decode(str(value), validate=True) if isinstance(columns[name].type, LargeBinary) else value
        for name, value in row.values.items()
    }


def _fill(connection: Connection, path: Path, line_bytes: int) -> Counts:
    counts = dict.fromkeys(TABLES, 0)
    with closing(_read(path, line_bytes)) as entries:
        rows = (entry for entry in entries if isinstance(entry, _Row))
        for name, of_table in groupby(rows, key=lambda row: row.table):
            while batch := [_from_text(row) for row in islice(of_table, _rows_at_once(name))]:
                try:
                    connection.execute(insert(TABLES[name]), batch)
                except (IntegrityError, InterfaceError, OperationalError):
                    raise
                except (StatementError, OverflowError):  # of another type than its column
                    raise _damaged(path) from None
                counts[name] += len(batch)
    return counts


def _rows_at_once(table: str) -> int:
    return LARGE_ROWS if table in _LARGE else BATCH_ROWS


def _make_room(connection: Connection, name: str) -> None:
    """Delete what a first start makes, a tenant and a key; raises Refusal when there is more."""
    others = (
        select(func.count()).select_from(tenants).where(tenants.c.name != FIRST_TENANT),
        select(func.count()).select_from(keys).where(keys.c.name != FIRST_KEY_NAME),
        select(func.count()).select_from(keys).having(func.count() > 1),
        *(
            select(func.count()).select_from(select(column).limit(1).subquery())
            for column in (ledger.c.request_id, prices.c.model, end_users.c.ref)
        ),
    )
    if any(connection.scalar(count) for count in others):
        raise _in_use(name)
    connection.execute(delete(keys))
    connection.execute(delete(tenants))
    # Of that first start alone, and signed with the pepper that is replaced.
    connection.execute(delete(audit))


def _place_of_pepper(
    pepper: bytes, path: Path, home: Path, pepper_file: Path | None, pepper_out: Path | None
) -> Path | None:
    """Where to write the pepper; None when it is where it must be."""
    if pepper_out is not None:
        if _content(pepper_out) not in (None, pepper):
            raise Refusal(f"The file {pepper_out} exists and holds something else: name a new one.")
        return pepper_out
    if pepper_file is None:
        return home / PEPPER_NAME
    if _content(pepper_file) != pepper:
        raise Refusal(
            f"The keys in {path} need the pepper that is in it too, and {pepper_file} does not hold that: put it there "
            "first, or restore with --pepper-out FILE, which writes it to FILE, and put it there before a gateway starts."
        )
    return None


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refusal(f"The file {path} cannot be read: {_reason(error)}.") from None


def _checked(path: Path, line_bytes: int) -> _Head:
    """The head of a backup that is whole and that this version understands; reads it to its end."""
    with closing(_read(path, line_bytes)) as entries:
        head = next(entries, None)
        if not isinstance(head, _Head):
            raise _damaged(path)
        if head.format > FORMAT or head.schema > schema.REVISION:
            raise Refusal(f"The backup {path} is from a newer version: restore it with that one.")
        if len(head.pepper) != PEPPER_BYTES:
            raise _damaged(path)
        for entry in entries:
            if not isinstance(entry, _Row):
                raise _damaged(path)
            try:
                _from_text(entry)
            except (KeyError, ValueError):
                raise _damaged(path) from None
    return head


def _read(path: Path, line_bytes: int) -> Generator[_Head | _Row]:
    """Head and rows. Raises Refusal, at the end at the latest, when anything is missing or was changed."""
    counts, digest, foot = dict.fromkeys(TABLES, 0), hashlib.sha256(), None
    try:
        with gzip.open(path) as file:
            while line := file.readline(line_bytes):
                if len(line) == line_bytes:
                    raise _too_long(path)
                entry = _DECODER.decode(line)
                if foot is not None:
                    raise _damaged(path)
                if isinstance(entry, _Foot):
                    foot = entry
                    continue
                digest.update(line)
                if isinstance(entry, _Row):
                    counts[entry.table] = counts.get(entry.table, 0) + 1
                yield entry
    except (EOFError, zlib.error, gzip.BadGzipFile, msgspec.DecodeError):
        raise _damaged(path) from None
    except OSError as error:
        raise Refusal(f"The file {path} cannot be read: {_reason(error)}.") from None
    # An older version counted fewer tables.
    if foot is None or foot.sha256 != digest.hexdigest() or dict.fromkeys(TABLES, 0) | foot.rows != counts:
        raise _damaged(path)


@contextmanager
def _written_whole(path: Path) -> Iterator[gzip.GzipFile]:
    path = path.resolve()  # what a link leads to is what was meant
    if path.exists() and not path.is_file():
        raise Refusal(f"{path} is no plain file: name another place for the backup.")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with _removed_at_the_end(draft):
            with os.fdopen(descriptor, "wb") as raw:
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw) as packed:
                    yield packed
                raw.flush()
                os.fsync(raw.fileno())
            draft.replace(path)
    except OSError as error:
        raise Refusal(f"The file {path} cannot be written: {_reason(error)}.") from None


@contextmanager
def _removed_at_the_end(draft: Path) -> Iterator[None]:
    try:
        yield
    finally:
        draft.unlink(missing_ok=True)


def _damaged(path: Path) -> Refusal:
    return Refusal(f"The file {path} is not a whole backup: it is cut short, was changed, or is something else.")


def _too_long(path: Path) -> Refusal:
    return Refusal(
        f"A line of {path} is longer than anything that is stored with this gateway.max_body_bytes: restore with the one "
        "it was made with, or the file is no backup."
    )


def _in_use(name: str) -> Refusal:
    return Refusal(f"The database {name} is in use: restore into a new one.")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
