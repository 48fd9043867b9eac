"""Rows: a call's record as a row of the ledger, and how rows get into the database: each once, none over another's."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, bindparam, insert, or_, select, update

from serving.gateway.nouns import CallRecord
from serving.gateway.store.tables import ledger

OPEN = "open"
CRASHED = "gateway_crashed"
#: Characters of any text column of the ledger, at least.
TEXT_MAX = 255
#: No call has more tokens than this: what an engine says beyond it is nonsense, and a column holds 64 bits.
_TOKENS_MAX = 2**53


class LedgerRow(msgspec.Struct, frozen=True):
    """A row of the ledger table; times are seconds since the epoch."""

    request_id: str
    entry_id: str
    tenant_id: str
    key_id: str
    route: str
    model: str
    replica_id: str | None
    started_at: float
    finished_at: float | None
    outcome: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int
    estimated_by: str | None
    gateway_id: str


def opening_row(record: CallRecord, gateway_id: str) -> LedgerRow:
    """The row of a call that has just begun: who calls, and no tokens yet."""
    return _row(record, gateway_id, outcome=OPEN, status=0, finished_at=None)


def closing_row(record: CallRecord, gateway_id: str, finished_at: float) -> LedgerRow:
    """The row of a call that is over; `finished_at` in seconds since the epoch."""
    return _row(record, gateway_id, outcome=record.outcome, status=record.status, finished_at=finished_at)


def _row(record: CallRecord, gateway_id: str, *, outcome: str, status: int, finished_at: float | None) -> LedgerRow:
    usage, caller = record.usage, record.caller
    return LedgerRow(
        request_id=_bounded(record.request_id),
        entry_id=record.entry_id,
        tenant_id=caller.tenant_id if caller else "",
        key_id=caller.key_id if caller else "",
        route=_bounded(record.route.label),
        model=_bounded(record.model or ""),
        replica_id=None if record.replica_id is None else _bounded(record.replica_id),
        started_at=record.opened_at_epoch_s,
        finished_at=finished_at,
        outcome=outcome,
        status=status,
        prompt_tokens=_counted(usage.prompt_tokens),
        completion_tokens=_counted(usage.completion_tokens),
        cached_prompt_tokens=_counted(usage.cached_prompt_tokens),
        reasoning_tokens=_counted(usage.reasoning_tokens),
        estimated_by=usage.estimated_by,
        gateway_id=gateway_id,
    )


def _bounded(text: str) -> str:
    """Text from outside that any database takes: no lone surrogates, no NUL, not longer than its column."""
    if len(text) <= TEXT_MAX and text.isascii() and "\0" not in text:
        return text
    return text[:TEXT_MAX].encode(errors="replace").decode().replace("\0", "?")


def _counted(tokens: int) -> int:
    return min(max(tokens, 0), _TOKENS_MAX)


def write(connection: Connection, rows: Sequence[LedgerRow]) -> None:
    """Write rows as nearly all of them come: openings under ids that are free, and ends of openings that are there.

    Ends that are not so are written by `upsert`. Raises IntegrityError where an id is taken: then `upsert` has to write all.
    """
    news = [msgspec.structs.asdict(row) for row in rows if row.outcome == OPEN]
    ends = [row for row in rows if row.outcome != OPEN]
    if news:
        connection.execute(_NEW, news)
    if ends and connection.execute(_OWN_END, [_end(row) for row in ends]).rowcount != len(ends):
        upsert(connection, ends)


def upsert(connection: Connection, rows: Sequence[LedgerRow]) -> None:
    """Write rows: an entry's end replaces its opening, nothing else is ever replaced, a repetition changes nothing.

    A request id that another entry holds already is kept for that one; the newcomer is filed as `<id>~<entry id>`.
    """
    owners = _owners(connection, rows)
    news: list[dict[str, object]] = []
    ends: list[dict[str, object]] = []
    for row in rows:
        if owners.get(row.request_id, (row.entry_id, ""))[0] != row.entry_id:
            row = msgspec.structs.replace(row, request_id=_renamed(row))
        owner = owners.get(row.request_id)
        if owner is None:
            news.append(msgspec.structs.asdict(row))
        elif owner[1] in (OPEN, CRASHED) and row.outcome != OPEN:
            ends.append(msgspec.structs.asdict(row) | {"filed_as": row.request_id})
        owners[row.request_id] = (row.entry_id, row.outcome)
    if news:
        connection.execute(_NEW, news)
    if ends:
        connection.execute(_END, ends)


_NEW = insert(ledger)
_END = (
    update(ledger)
    .where(ledger.c.request_id == bindparam("filed_as"))
    .values({name: bindparam(name) for name in LedgerRow.__struct_fields__ if name != "request_id"})
)


#: What a call's end changes in its row.
_ENDING = tuple(
    name
    for name in LedgerRow.__struct_fields__
    if name not in ("request_id", "entry_id", "tenant_id", "key_id", "route", "started_at", "gateway_id")
)
_OWN_END = (
    update(ledger)
    .where(
        ledger.c.request_id == bindparam("filed_as"),
        ledger.c.entry_id == bindparam("of_entry"),
        or_(ledger.c.outcome == OPEN, ledger.c.outcome == CRASHED),
    )
    .values({name: bindparam(name) for name in _ENDING})
)


def _end(row: LedgerRow) -> dict[str, object]:
    changed = {name: getattr(row, name) for name in _ENDING}
    return changed | {"filed_as": row.request_id, "of_entry": row.entry_id}


def close_rows_of(connection: Connection, gateway_id: str) -> int:
    """Close the open rows of a gateway that died; their tokens are not known. Returns how many there were."""
    left = update(ledger).where(ledger.c.outcome == OPEN, ledger.c.gateway_id == gateway_id)
    return connection.execute(left.values(outcome=CRASHED, estimated_by=CRASHED)).rowcount


def _owners(connection: Connection, rows: Sequence[LedgerRow]) -> dict[str, tuple[str, str]]:
    """request id → (entry id, outcome) of the rows that are there under one of these ids."""
    ids = [row.request_id for row in rows] + [_renamed(row) for row in rows]
    query = select(ledger.c.request_id, ledger.c.entry_id, ledger.c.outcome).where(ledger.c.request_id.in_(ids))
    return {found.request_id: (found.entry_id, found.outcome) for found in connection.execute(query)}


def _renamed(row: LedgerRow) -> str:
    suffix = f"~{row.entry_id}"
    return row.request_id[: TEXT_MAX - len(suffix)] + suffix
