"""Shelf: stored responses in the database: sealed, by tenant, each until its time. Everything here blocks.

A row that has expired, or is another tenant's, is not there. A client that goes on from a response of its own tenant is told for a while
that it was deleted or has expired; of another tenant's it learns what it would of one that never was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, literal, select, update

from serving.errors import ContextExceeded, InvalidRequest, PreviousResponseNotFound, ResourceNotFound
from serving.gateway.identity import changes
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from serving.gateway.store.tables import RUNNING, gone_responses, response_events, response_items, responses
from serving.gateway.stored import items as listing
from serving.gateway.stored.conversations import IDS_AT_ONCE, Conversations, Past, require_modest
from serving.gateway.stored.items import Item
from serving.gateway.stored.sweeping import forget_responses, note_gone
from serving.gateway.stored.vault import Vault, bound_to
from serving.gateway.stored.wishes import IDS, possible

#: Responses that one goes on from, one after another.
CHAIN_MAX = 512
#: Seconds by which what is gone on from must be nearer to its end than what goes on, before it is written anew; at most an eighth of
#: the time that it is kept.
PUT_OFF_S = 86_400.0

#: Pieces of a stream that are read at once.
EVENT_PIECES = 8
#: The error of a response whose gateway died.
LOST = {"code": "server_error", "message": "The gateway that ran this response is gone; it was not run again."}
#: How a response has gone, as it is told.
WAS_DELETED, HAS_EXPIRED = "It was deleted.", "It has expired."
#: States of one in the background that may stand in its row alone: it has begun, or its gateway died.
_SAID_IN_ROW = ("in_progress", "failed")


class Standing(msgspec.Struct, frozen=True):
    """How a stored response stands."""

    id: str
    status: str
    is_background: bool
    #: Its events are kept.
    is_streamed: bool


class Kept(Standing, frozen=True):
    """A stored response: what was said, and the response as its client gets it, in JSON."""

    said: list[Item]
    response: bytes


class New(msgspec.Struct, frozen=True, kw_only=True):
    """A response to be kept; `ancestors` are those it goes on from."""

    caller: Caller
    id: str
    created_at: float
    said: list[Item]
    stores: bool = True
    previous_id: str | None = None
    ancestors: Sequence[str] = ()
    conversation_id: str | None = None
    #: Of one that runs in the background: where, and whether its events are kept.
    gateway_id: str | None = None
    is_streamed: bool = False


class Shelf:
    """What is kept for `kept_s` seconds. `clock` is in seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        vault: Vault,
        conversations: Conversations,
        kept_s: float,
        clock: Callable[[], float],
        *,
        chain_max: int = CHAIN_MAX,
    ) -> None:
        self._store = store
        self._vault = vault
        self._conversations = conversations
        self._kept_s = kept_s
        self._clock = clock
        self._chain_max = chain_max

    def put(self, new: New, response: bytes, status: str) -> None:
        """Keep a response, and in its conversation what it adds there."""
        answered: list[Item] = msgspec.json.decode(response).get("output") or []
        with self._store.begin() as connection:
            if new.stores:
                connection.execute(insert(responses).values(self._row(new, response, status)))
                if status not in RUNNING:
                    _index(connection, new.id, answered)
                self._put_off(connection, new.ancestors)
            if new.conversation_id is not None and status not in RUNNING:
                self._conversations.append(
                    connection, new.caller, new.conversation_id, [*new.said, *listing.said(answered)]
                )

    def end(self, new: New, response: bytes, status: str) -> bool:
        """A response that ran in the background is over; False, and nothing is done, where it was ended or deleted before."""
        answered: list[Item] = msgspec.json.decode(response).get("output") or []
        sealed = self._vault.seal(response, _about(new.caller.tenant_id, "response", new.id))
        size = len(msgspec.json.encode(new.said)) + len(response)
        with self._store.begin() as connection:
            ended = update(responses).where(*_runs(new.id))
            values = {"status": status, "size_bytes": size, "sealed_response": sealed}
            if connection.execute(ended.values(values)).rowcount == 0:
                return False
            _index(connection, new.id, answered)
            if new.conversation_id is not None and status in ("completed", "incomplete"):
                self._conversations.append(
                    connection, new.caller, new.conversation_id, [*new.said, *listing.said(answered)]
                )
        return True

    def advance(self, response_id: str, status: str) -> None:
        """A response that runs in the background has got so far."""
        with self._store.begin() as connection:
            connection.execute(update(responses).where(*_runs(response_id)).values(status=status))

    def keep_events(self, tenant_id: str, response_id: str, first: int, last: int, block: bytes) -> None:
        """Keep a piece of a stream: whole events, numbered from `first` to `last`; in place of one that begins with the same.

        Of a response that was deleted meanwhile nothing is kept.
        """
        sealed = self._vault.seal(block, _about(tenant_id, f"events {first}", response_id))
        row = {"response_id": response_id, "first_number": first, "last_number": last, "sealed": sealed}
        same = (response_events.c.response_id == response_id, response_events.c.first_number == first)
        with self._store.begin() as connection:
            connection.execute(delete(response_events).where(*same))
            # Held until the end: who deletes it meanwhile waits, and finds these too.
            held = select(responses.c.id).where(responses.c.id == response_id).with_for_update()
            if connection.scalar(held) is not None:
                connection.execute(insert(response_events).values(row))

    def events(self, tenant_id: str, response_id: str, after: int) -> list[bytes]:
        """Pieces of a response's stream, from the one on that has the event behind number `after`."""
        table = response_events.c
        query = select(response_events).where(table.response_id == response_id, table.last_number > after)
        with self._store.begin() as connection:
            rows = connection.execute(query.order_by(table.first_number).limit(EVENT_PIECES)).all()
        return [
            self._vault.open(row.sealed, _about(tenant_id, f"events {row.first_number}", response_id)) for row in rows
        ]

    def last_number(self, response_id: str) -> int:
        """The number of the last event that is kept; -1 where none is."""
        last = select(func.max(response_events.c.last_number)).where(response_events.c.response_id == response_id)
        with self._store.begin() as connection:
            found: int | None = connection.scalar(last)
        return -1 if found is None else found

    def cancel(self, tenant_id: str, response_id: str) -> Kept:
        """End a response that runs in the background; one that is over stays as it is.

        Raises ResourceNotFound, and InvalidRequest for one that did not run there.
        """
        with self._store.begin() as connection:
            changes.take_turn(connection)
            row = connection.execute(select(responses).where(*self._there(tenant_id, response_id))).one_or_none()
            if row is None:
                raise _no_response(response_id)
            if row.gateway_id is None:
                raise InvalidRequest("Cannot cancel a synchronous response.")
            kept = self._opened(row)
            if kept.status not in RUNNING:
                return kept
            document = msgspec.json.decode(kept.response) | {"status": "cancelled"}
            response = msgspec.json.encode(document)
            sealed = self._vault.seal(response, _about(tenant_id, "response", response_id))
            ended = {"status": "cancelled", "sealed_response": sealed}
            connection.execute(update(responses).where(*_runs(response_id)).values(ended))
            # Its own gateway stops the engine's work.
            changes.note(connection, Change(Kind.RESPONSE, response_id))
        return msgspec.structs.replace(kept, status="cancelled", response=response)

    def runs(self, response_ids: Sequence[str]) -> set[str]:
        """Those of these that are to run on."""
        query = select(responses.c.id).where(responses.c.id.in_(response_ids), responses.c.status.in_(RUNNING))
        with self._store.begin() as connection:
            return set(connection.scalars(query))

    def standing(self, tenant_id: str, response_id: str) -> Standing:
        """How a response stands, without a look at what it says. Raises ResourceNotFound."""
        columns = (responses.c.status, responses.c.gateway_id, responses.c.is_streamed)
        with self._store.begin() as connection:
            row = connection.execute(select(*columns).where(*self._there(tenant_id, response_id))).one_or_none()
        if row is None:
            raise _no_response(response_id)
        return Standing(response_id, row.status, row.gateway_id is not None, row.is_streamed)

    def get(self, tenant_id: str, response_id: str) -> Kept:
        """Raises ResourceNotFound."""
        with self._store.begin() as connection:
            row = connection.execute(select(responses).where(*self._there(tenant_id, response_id))).one_or_none()
        if row is None:
            raise _no_response(response_id)
        return self._opened(row)

    def input_of(self, tenant_id: str, response_id: str) -> list[Item]:
        """What a response was made of, oldest first, as far as it is still there. Raises ResourceNotFound."""
        with self._store.begin() as connection:
            row = connection.execute(select(responses).where(*self._there(tenant_id, response_id))).one_or_none()
        if row is None:
            raise _no_response(response_id)
        before: list[Item] = []
        if row.previous_id is not None:
            with suppress(PreviousResponseNotFound):
                before = self.past(tenant_id, row.previous_id).items
        return before + self._opened(row).said

    def past(self, tenant_id: str, response_id: str) -> Past:
        """What led to a response, itself included, oldest first.

        Raises PreviousResponseNotFound where any of it is no longer there, ContextExceeded where it is too much.
        """
        with self._store.begin() as connection:
            ids = self._chain(connection, tenant_id, response_id)
            found = {row.id: row for row in connection.execute(select(responses).where(responses.c.id.in_(ids)))}
        items: list[Item] = []
        for one in ids:
            if one not in found:
                raise PreviousResponseNotFound(one)
            kept = self._opened(found[one])
            if kept.status in RUNNING:
                raise PreviousResponseNotFound(one)
            items += [*kept.said, *(msgspec.json.decode(kept.response).get("output") or [])]
        return Past(items, ids, sum(row.size_bytes for row in found.values()))

    def referred(self, tenant_id: str, item_ids: Collection[str]) -> Past:
        """Items of answers by their ids, as far as there are any, with the bytes of the responses that were read for them.

        Raises ContextExceeded where those are too much.
        """
        wanted = set(item_ids)
        sizes: dict[str, int] = {}
        with self._store.begin() as connection:
            for some in _by_portions(sorted(wanted)):
                holding = select(response_items.c.response_id).where(response_items.c.id.in_(some))
                there = (responses.c.tenant_id == tenant_id, responses.c.expires_at > self._clock())
                found = select(responses.c.id, responses.c.size_bytes).where(responses.c.id.in_(holding), *there)
                sizes |= {row.id: row.size_bytes for row in connection.execute(found)}
            require_modest(sum(sizes.values()), "input")
            rows = [
                row
                for some in _by_portions(sorted(sizes))
                for row in connection.execute(select(responses).where(responses.c.id.in_(some)))
            ]
        outputs = (msgspec.json.decode(self._opened(row).response).get("output") or [] for row in rows)
        items = {item["id"]: item for output in outputs for item in output if item.get("id") in wanted}
        return Past(list(items.values()), (), sum(sizes.values()))

    def _chain(self, connection: Connection, tenant_id: str, response_id: str) -> list[str]:
        """The ids of a response and those it goes on from, oldest first."""
        if not IDS.fullmatch(response_id):
            raise PreviousResponseNotFound(response_id[:64])
        columns = (responses.c.id, responses.c.previous_id, responses.c.size_bytes)
        top = select(*columns, literal(1).label("depth")).where(*self._there(tenant_id, response_id))
        chain = top.cte("chain", recursive=True)
        before = select(*columns, chain.c.depth + 1).where(
            responses.c.id == chain.c.previous_id,
            responses.c.tenant_id == tenant_id,
            responses.c.expires_at > self._clock(),
            chain.c.depth <= self._chain_max,
        )
        chain = chain.union_all(before)
        rows = connection.execute(select(chain).order_by(chain.c.depth.desc())).all()
        if not rows:
            raise self._missing(connection, tenant_id, response_id)
        if len(rows) > self._chain_max:
            raise ContextExceeded(
                f"The response goes on from more than {self._chain_max} others: begin anew.",
                param="previous_response_id",
            )
        require_modest(sum(row.size_bytes for row in rows), "previous_response_id")
        if rows[0].previous_id is not None:
            raise self._missing(connection, tenant_id, rows[0].previous_id)
        return [row.id for row in rows]

    def _missing(self, connection: Connection, tenant_id: str, response_id: str) -> PreviousResponseNotFound:
        """What is told of a response that is not there: how it has gone, where it was this tenant's."""
        mine = (gone_responses.c.id == response_id, gone_responses.c.tenant_id == tenant_id)
        was_deleted = connection.scalar(select(gone_responses.c.was_deleted).where(*mine))
        if was_deleted is not None:
            return PreviousResponseNotFound(response_id, WAS_DELETED if was_deleted else HAS_EXPIRED)
        # Past its time, and not yet swept.
        waits = select(responses.c.id).where(responses.c.id == response_id, responses.c.tenant_id == tenant_id)
        is_over = connection.scalar(waits.where(responses.c.expires_at <= self._clock())) is not None
        return PreviousResponseNotFound(response_id, HAS_EXPIRED if is_over else "")

    def delete(self, tenant_id: str, response_id: str) -> None:
        """Delete a response; those that went on from it stay, and can no longer be gone on from. Raises ResourceNotFound."""
        with self._store.erasing() as connection:
            changes.take_turn(connection)
            status = connection.scalar(select(responses.c.status).where(*self._there(tenant_id, response_id)))
            if status is None:
                raise _no_response(response_id)
            if status in RUNNING:
                changes.note(connection, Change(Kind.RESPONSE, response_id))
            gone = forget_responses(connection, [response_id])
            note_gone(connection, gone, self._clock(), was_deleted=True)

    def _row(self, new: New, response: bytes, status: str) -> dict[str, Any]:
        said, tenant_id = msgspec.json.encode(new.said), new.caller.tenant_id
        return {
            "id": new.id,
            "tenant_id": tenant_id,
            "user_ref": new.caller.user_ref,
            "previous_id": new.previous_id,
            "conversation_id": new.conversation_id,
            "created_at": new.created_at,
            "expires_at": self._clock() + self._kept_s,
            "status": status,
            "gateway_id": new.gateway_id,
            "is_streamed": new.is_streamed,
            "size_bytes": len(said) + len(response),
            "sealed_input": self._vault.seal(said, _about(tenant_id, "input", new.id)),
            "sealed_response": self._vault.seal(response, _about(tenant_id, "response", new.id)),
        }

    def _opened(self, row: Row[Any]) -> Kept:
        said = self._vault.open(row.sealed_input, _about(row.tenant_id, "input", row.id))
        response = self._vault.open(row.sealed_response, _about(row.tenant_id, "response", row.id))
        if row.gateway_id is not None and row.status in _SAID_IN_ROW:
            response = _as_in_row(row.status, msgspec.json.decode(response))
        said_items = msgspec.json.decode(said)
        return Kept(row.id, row.status, row.gateway_id is not None, row.is_streamed, said_items, response)

    def _put_off(self, connection: Connection, ancestors: Sequence[str]) -> None:
        """What is gone on from is kept as long as what goes on."""
        later = self._clock() + self._kept_s
        nearer_s = min(PUT_OFF_S, self._kept_s / 8)
        nearer = (responses.c.id.in_(ancestors), responses.c.expires_at < later - nearer_s)
        if ancestors:
            connection.execute(update(responses).where(*nearer).values(expires_at=later))

    def _there(self, tenant_id: str, response_id: str) -> tuple[Any, ...]:
        return (
            responses.c.id == possible(response_id),
            responses.c.tenant_id == tenant_id,
            responses.c.expires_at > self._clock(),
        )


def _index(connection: Connection, response_id: str, answered: list[Item]) -> None:
    """Have the items of an answer found by their ids."""
    ids = {item["id"] for item in answered if isinstance(item.get("id"), str) and listing.is_id(item["id"])}
    if ids:
        connection.execute(insert(response_items), [{"id": it, "response_id": response_id} for it in ids])


def _by_portions(ids: list[str]) -> Iterator[list[str]]:
    """So many that a statement takes them."""
    return (ids[start : start + IDS_AT_ONCE] for start in range(0, len(ids), IDS_AT_ONCE))


def _as_in_row(status: str, document: dict[str, Any]) -> bytes:
    """A response that is told to be still waiting, in the state that its row has."""
    if document.get("status") in RUNNING:
        document |= {"status": status} | ({"error": LOST} if status == "failed" else {})
    return msgspec.json.encode(document)


def _runs(response_id: str) -> tuple[Any, ...]:
    return (responses.c.id == response_id, responses.c.status.in_(RUNNING))


def _about(tenant_id: str, kind: str, response_id: str) -> bytes:
    return bound_to(tenant_id, kind, response_id)


def _no_response(response_id: str) -> ResourceNotFound:
    return ResourceNotFound(f"Response with id '{response_id[:64]}' not found.")
