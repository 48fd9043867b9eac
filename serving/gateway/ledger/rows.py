"""Rows: a call's record as a row of the ledger, and how rows get into the database: each once, none over another's."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec
from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    FromClause,
    Insert,
    Update,
    bindparam,
    cast,
    column,
    func,
    insert,
    or_,
    select,
    update,
)

from serving.gateway.nouns import CallRecord, Outcome, Usage
from serving.gateway.store.tables import Moment, ledger, moment

OPEN = "open"
CRASHED = "gateway_crashed"
#: Characters of any text column of the ledger, at least.
TEXT_MAX = 255
#: No call has more tokens than this, and no higher price: what an engine says beyond it is nonsense, and a column holds 64 bits.
_COUNT_MAX = 2**53


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
    # Defaults, because rows that the version before has spilled are without these.
    user_ref: str | None = None
    base_model: str | None = None
    priority: str | None = None
    waited_s: float | None = None
    ttft_s: float | None = None
    attempts: int | None = None
    counted_apart: str | None = None
    price_micros: int | None = None


def opening_row(record: CallRecord, gateway_id: str) -> LedgerRow:
    """The row of a call that has just begun: who calls, and no tokens yet."""
    return _row(record, gateway_id, outcome=OPEN, status=0)


def closing_row(record: CallRecord, gateway_id: str, finished_at: float) -> LedgerRow:
    """The row of a call that is over; `finished_at` in seconds since the epoch."""
    row = _row(record, gateway_id, outcome=record.outcome, status=record.status)
    return msgspec.structs.replace(
        row,
        finished_at=finished_at,
        waited_s=record.waited_s,
        ttft_s=record.ttft_s,
        attempts=record.retries,
        counted_apart=record.counted_apart,
        price_micros=None if record.price_micros is None else _counted(record.price_micros),
    )


def foreseen_row(
    record: CallRecord, usage: Usage, price_micros: int | None, gateway_id: str, finished_at: float
) -> LedgerRow:
    """The closing row of a call whose last bytes are about to go out, as it will be if nothing happens to it."""
    return msgspec.structs.replace(
        closing_row(record, gateway_id, finished_at),
        outcome=Outcome.OK.value,
        status=200,
        prompt_tokens=_counted(usage.prompt_tokens),
        completion_tokens=_counted(usage.completion_tokens),
        cached_prompt_tokens=_counted(usage.cached_prompt_tokens),
        reasoning_tokens=_counted(usage.reasoning_tokens),
        estimated_by=usage.estimated_by,
        price_micros=None if price_micros is None else _counted(price_micros),
    )


def unbilled(row: LedgerRow) -> LedgerRow:
    """The closing row of a call whose answer is lost, as a gateway leaves it that was killed: what is made again is billed then."""
    return msgspec.structs.replace(
        row,
        outcome=CRASHED,
        status=0,
        prompt_tokens=0,
        completion_tokens=0,
        cached_prompt_tokens=0,
        reasoning_tokens=0,
        estimated_by=CRASHED,
        price_micros=None,
    )


def _row(record: CallRecord, gateway_id: str, *, outcome: str, status: int) -> LedgerRow:
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
        finished_at=None,
        outcome=outcome,
        status=status,
        prompt_tokens=_counted(usage.prompt_tokens),
        completion_tokens=_counted(usage.completion_tokens),
        cached_prompt_tokens=_counted(usage.cached_prompt_tokens),
        reasoning_tokens=_counted(usage.reasoning_tokens),
        estimated_by=usage.estimated_by,
        gateway_id=gateway_id,
        user_ref=caller.user_ref if caller else None,
        base_model=None if record.base_model is None else _bounded(record.base_model),
        priority=record.priority,
    )


def _bounded(text: str) -> str:
    """Text from outside that any database takes: no lone surrogates, no NUL, not longer than its column."""
    if len(text) <= TEXT_MAX and text.isascii() and "\0" not in text:
        return text
    return text[:TEXT_MAX].encode(errors="replace").decode().replace("\0", "?")


def _counted(number: int) -> int:
    return min(max(number, 0), _COUNT_MAX)


def write(connection: Connection, rows: Sequence[LedgerRow]) -> None:
    """Write rows as nearly all of them come: openings under ids that are free, and ends of openings that are there.

    Ends that are not so are written by `upsert`. Raises IntegrityError where an id is taken: then `upsert` has to write all.
    """
    insert_all, end_all = _IN_BULK[connection.dialect.name]
    news = [row for row in rows if row.outcome == OPEN]
    ends = [row for row in rows if row.outcome != OPEN]
    if news:
        connection.execute(insert_all, _sent(connection, news, _OPENING))
    if ends and connection.execute(end_all, _sent(connection, ends, _KEY + _ENDING)).rowcount != len(ends):
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


#: What is known of a call when it opens; the rest is empty, or nothing.
_OPENING = (
    *("request_id", "entry_id", "tenant_id", "key_id", "route", "model", "started_at", "outcome", "status"),
    *("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens", "gateway_id", "user_ref"),
)
#: By what its row is found again.
_KEY = ("request_id", "entry_id")
#: What a call's end changes in its row.
_ENDING = tuple(
    name
    for name in LedgerRow.__struct_fields__
    if name not in (*_KEY, "tenant_id", "key_id", "route", "started_at", "gateway_id", "user_ref")
)


def _inserted(sent: FromClause) -> Insert:
    return insert(ledger).from_select(list(_OPENING), select(*sent.c))


def _ended(sent: FromClause) -> Update:
    return (
        update(ledger)
        .where(
            ledger.c.request_id == sent.c.request_id,
            ledger.c.entry_id == sent.c.entry_id,
            or_(ledger.c.outcome == OPEN, ledger.c.outcome == CRASHED),
        )
        .values({name: sent.c[name] for name in _ENDING})
    )


def _in_sqlite(names: Sequence[str]) -> FromClause:
    each = func.json_each(bindparam("rows")).table_valued("value")
    values = (func.json_extract(each.c.value, f"$[{index}]").label(name) for index, name in enumerate(names))
    return select(*values).subquery()


def _in_postgresql(names: Sequence[str]) -> FromClause:
    # Named without Python's types of them: moments come as text.
    types = {it.name: DateTime() if isinstance(it.type, Moment) else it.type for it in ledger.c}
    rows = func.json_to_recordset(cast(bindparam("rows"), JSON))
    return rows.table_valued(*(column(name, types[name]) for name in names)).render_derived(with_types=True)


#: By dialect, what writes all openings of a group, and all ends, whose columns are sent as one value. The interpreter's lock is given
#: back and fetched again for each execution: with one for each row the writer and the event loop hindered one another more than the
#: rows cost (STO-41).
_IN_BULK = {
    "sqlite": (_inserted(_in_sqlite(_OPENING)), _ended(_in_sqlite(_KEY + _ENDING))),
    "postgresql": (_inserted(_in_postgresql(_OPENING)), _ended(_in_postgresql(_KEY + _ENDING))),
}


def _sent(connection: Connection, rows: Sequence[LedgerRow], names: Sequence[str]) -> dict[str, str]:
    """The value: a list of lists, or of objects for PostgreSQL, which takes nothing else apart."""
    of_row = attrgetter(*names)
    moments = [index for index, name in enumerate(names) if name in _MOMENTS]
    told: list[object] = []
    for row in rows:
        values = list(of_row(row))
        for index in moments:
            values[index] = None if values[index] is None else _text(values[index])
        told.append(values)
    if connection.dialect.name == "postgresql":
        told = [dict(zip(names, values, strict=True)) for values in told]  # type: ignore[call-overload]
    return {"rows": msgspec.json.encode(told).decode()}


_MOMENTS = ("started_at", "finished_at")


def _text(epoch_s: float) -> str:
    """A moment as both databases read it, and as SQLite keeps it."""
    return moment(epoch_s).isoformat(" ", "microseconds")


def close_rows_of(connection: Connection, gateway_id: str) -> int:
    """Close the open rows of a gateway that died; their tokens are not known. Returns how many there were."""
    left = update(ledger).where(ledger.c.outcome == OPEN, ledger.c.gateway_id == gateway_id)
    return connection.execute(left.values(outcome=CRASHED, estimated_by=CRASHED)).rowcount


def ended(connection: Connection, rows: Sequence[LedgerRow]) -> set[str]:
    """The entries among these whose end is in the database already."""
    owners = _owners(connection, rows)
    return {entry_id for entry_id, outcome in owners.values() if outcome not in (OPEN, CRASHED)}


def _owners(connection: Connection, rows: Sequence[LedgerRow]) -> dict[str, tuple[str, str]]:
    """request id → (entry id, outcome) of the rows that are there under one of these ids."""
    ids = [row.request_id for row in rows] + [_renamed(row) for row in rows]
    query = select(ledger.c.request_id, ledger.c.entry_id, ledger.c.outcome).where(ledger.c.request_id.in_(ids))
    return {found.request_id: (found.entry_id, found.outcome) for found in connection.execute(query)}


def _renamed(row: LedgerRow) -> str:
    suffix = f"~{row.entry_id}"
    return row.request_id[: TEXT_MAX - len(suffix)] + suffix
