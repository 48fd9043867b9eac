"""Reading: the audit as people ask for it: one event for each act, each call, each sign-in, in order of time, in pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, and_, or_, select

from serving.errors import NotFound, Refusal
from serving.gateway.audit.chain import Entry, Kind
from serving.gateway.audit.gathering import CallsBody, RefusedBody, SignInsBody
from serving.gateway.audit.journal import entry_of
from serving.gateway.store.store import Store
from serving.gateway.store.tables import audit, tenants

#: Entries read at a time.
BATCH_ROWS = 100
#: The last second that a timestamp has, since the epoch.
_LAST_S = 253_402_300_799.0
_PIECEWISE: dict[str, Any] = {"yield_per": BATCH_ROWS}

#: Of an entry that tells of nothing any more.
UNREADABLE = "It was changed after it was written, and cannot be read: run `serving audit verify`."

#: Kinds of events that are gathered into entries → the entries' kind.
GATHERED = {"call": Kind.CALLS, "lost": Kind.CALLS, "sign_in": Kind.SIGN_INS, "sign_in.refused": Kind.REFUSED}
#: Kinds of entries that tell of their own chain.
OF_CHAINS = (Kind.BEGIN, Kind.END, Kind.CHECKPOINT)


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened, when and by whom; `at` in seconds since the epoch."""

    at: float
    kind: str
    #: The entry that tells of it.
    writer: str
    number: int
    #: Who did it: `tenant_id`, `key_id`, `role`, `user_ref`, or `os_user`, `login`, `host`.
    by: dict[str, Any] = {}
    #: The id of what it was done to; of a call, its model.
    subject: str = ""
    #: The tenant whom it concerns.
    tenant_id: str = ""
    details: dict[str, Any] = {}


class Asked(msgspec.Struct, frozen=True):
    """Which events; None: any."""

    tenant_id: str | None = None
    kinds: Collection[str] | None = None
    #: Seconds since the epoch, of the entry that tells of it: calls are there within a second.
    since: float | None = None
    until: float | None = None

    def wants(self, event: Event) -> bool:
        is_kind = self.kinds is None or event.kind in self.kinds
        return is_kind and (self.tenant_id is None or event.tenant_id == self.tenant_id)


class Page(msgspec.Struct, frozen=True):
    """Events, oldest first, and behind what the next page begins; None: there are no more now."""

    events: list[Event]
    next: str | None


class _Place(msgspec.Struct, frozen=True, array_like=True):
    """Behind an event: its entry's moment, number and writer, and its place in it."""

    at_us: int
    number: int
    writer: str
    place: int


def page(store: Store, asked: Asked, *, after: str | None = None, limit: int) -> Page:
    """At most `limit` events behind the place that a page named. Raises Refusal for a place that none did."""
    found: list[Event] = []
    last = None
    for place, event in _events(store, asked, None if after is None else _place(after)):
        if len(found) == limit:
            return Page(found, None if last is None else _named(last))
        found.append(event)
        last = place
    return Page(found, None)


def tenant_called(store: Store, name: str) -> str:
    """A tenant's id; raises NotFound."""
    with store.begin() as connection:
        found: str | None = connection.scalar(select(tenants.c.id).where(tenants.c.name == name))
    if found is None:
        raise NotFound(f"There is no tenant called '{name}'; `serving tenants list` shows those there are.")
    return found


def entries(store: Store, *, kind: str | None = None) -> Iterator[Entry]:
    """All entries by writer and number, or those of one kind, as they were at one moment."""
    query = select(audit).order_by(audit.c.writer, audit.c.number)
    if kind is not None:
        query = query.where(audit.c.kind == kind)
    with store.snapshot() as connection, connection.execute(query, execution_options=_PIECEWISE) as found:
        for row in found:
            yield entry_of(row)


def events_of(entry: Entry) -> list[Event]:
    """What one entry tells of; of one whose body was changed into something else, that."""
    try:
        return list(_told(entry))
    except (msgspec.DecodeError, RecursionError):
        return [_event(entry, entry.kind, _at(entry), {}, "", "", {"fault": UNREADABLE})]


def _told(entry: Entry) -> Iterator[Event]:
    if entry.kind == Kind.CALLS:
        yield from _calls(entry)
    elif entry.kind == Kind.SIGN_INS:
        for it in msgspec.json.decode(entry.body, type=SignInsBody).sign_ins:
            yield _event(entry, "sign_in", it.at, _who(it.tenant_id, it.key_id, it.user_ref), "", it.tenant_id)
    elif entry.kind == Kind.REFUSED:
        for that in msgspec.json.decode(entry.body, type=RefusedBody).refused:
            who = _who(that.tenant_id, that.key_id, None)
            counted = {"reason": that.reason, "count": that.count}
            yield _event(entry, "sign_in.refused", _at(entry), who, "", that.tenant_id, counted)
    else:
        yield _act(entry)


def _events(store: Store, asked: Asked, after: _Place | None) -> Iterator[tuple[_Place, Event]]:
    """In order of time: entries that have none any more are only found by `verification`."""
    while True:
        with store.begin() as connection:
            rows = connection.execute(_query(asked, after)).all()
        timed = [entry for entry in map(entry_of, rows) if entry.written_at_us]
        for entry in timed:
            passed = after.place if after is not None and _is_in(after, entry) else -1
            for place, event in enumerate(events_of(entry)):
                if place > passed and asked.wants(event):
                    yield _Place(entry.written_at_us, entry.number, entry.writer, place), event
        if len(rows) < BATCH_ROWS or not timed:
            return
        last = timed[-1]
        after = _Place(last.written_at_us, last.number, last.writer, 2**31)


def _query(asked: Asked, after: _Place | None) -> Select[*tuple[Any, ...]]:
    query = select(audit).order_by(audit.c.written_at, audit.c.writer, audit.c.number).limit(BATCH_ROWS)
    return query.where(*_conditions(asked, after))


def _conditions(asked: Asked, after: _Place | None) -> Iterator[ColumnElement[bool]]:
    # What is no moment, as others may have written it, is beyond all moments in either database.
    yield audit.c.written_at >= (asked.since or 0.0)
    yield audit.c.written_at < (_LAST_S if asked.until is None else asked.until)
    if asked.kinds is not None:
        yield audit.c.kind.in_(sorted({GATHERED.get(kind, kind) for kind in asked.kinds}))
    if asked.tenant_id is not None:
        # Narrows what is read; each event is looked at besides.
        yield audit.c.body.contains(f'"{asked.tenant_id}"', autoescape=True)
    if after is not None:
        at = after.at_us / 1e6
        same = audit.c.written_at == at
        in_chain = and_(audit.c.writer == after.writer, audit.c.number >= after.number)
        # Says nothing more, and is what an index has: the pages before need not be read again.
        yield audit.c.written_at >= at
        yield or_(audit.c.written_at > at, and_(same, or_(audit.c.writer > after.writer, in_chain)))


def _calls(entry: Entry) -> Iterator[Event]:
    body = msgspec.json.decode(entry.body, type=CallsBody)
    for call in body.calls:
        details = {"request_id": call.request_id, "outcome": call.outcome, "status": call.status}
        who = _who(call.tenant_id, call.key_id, call.user_ref)
        yield _event(entry, "call", call.at, who, call.model, call.tenant_id, details)
    if body.lost:
        yield _event(entry, "lost", _at(entry), {}, "", "", {"count": body.lost})


class _Told(msgspec.Struct, frozen=True):
    """An act's body as it is read."""

    by: dict[str, Any] = {}
    subject: str = ""
    tenant_id: str = ""
    details: dict[str, Any] = {}


def _act(entry: Entry) -> Event:
    if entry.kind in OF_CHAINS:
        return _event(entry, entry.kind, _at(entry), {}, "", "", msgspec.json.decode(entry.body, type=dict[str, Any]))
    told = msgspec.json.decode(entry.body, type=_Told)
    return _event(entry, entry.kind, _at(entry), told.by, told.subject, told.tenant_id, told.details)


def _event(
    entry: Entry,
    kind: str,
    at: float,
    by: dict[str, Any],
    subject: str,
    tenant_id: str,
    details: dict[str, Any] | None = None,
) -> Event:
    return Event(at, str(kind), entry.writer, entry.number, by, subject, tenant_id, details or {})


def _who(tenant_id: str, key_id: str, user_ref: str | None) -> dict[str, Any]:
    said = {"tenant_id": tenant_id, "key_id": key_id, "user_ref": user_ref}
    return {name: value for name, value in said.items() if value}


def _at(entry: Entry) -> float:
    return entry.written_at_us / 1e6


def _is_in(place: _Place, entry: Entry) -> bool:
    return (place.writer, place.number) == (entry.writer, entry.number)


def _named(place: _Place) -> str:
    return msgspec.json.encode(place).hex()


def _place(name: str) -> _Place:
    try:
        place = msgspec.json.decode(bytes.fromhex(name), type=_Place)
    except (ValueError, msgspec.MsgspecError):
        raise _no_place(name) from None
    if not (0 <= place.at_us < 2**52 and 0 <= place.number < 2**53 and place.writer.isprintable()):
        raise _no_place(name)
    return place


def _no_place(name: str) -> Refusal:
    return Refusal(f"'{name}' is no place between two pages of the audit.")
