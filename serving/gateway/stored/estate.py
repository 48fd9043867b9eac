"""Estate: all that is stored of a tenant or of one end user, for operators: shown, deleted, and sealed with another key.

Everything here blocks, and goes through tables in pieces, whatever their size.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    RowMapping,
    Table,
    and_,
    delete,
    func,
    literal,
    select,
    tuple_,
    update,
)

from serving.gateway.identity import changes, holdings
from serving.gateway.identity.acts import Act, ActKind, Witness, unwitnessed
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.store.store import Store
from serving.gateway.store.tables import (
    RUNNING,
    batch_lines,
    batches,
    conversation_items,
    conversations,
    files,
    gone_responses,
    response_events,
    responses,
)
from serving.gateway.stored.sweeping import forget_conversations, forget_responses
from serving.gateway.stored.vault import KEY_ID_AT, Vault, bound_to

#: Rows of one transaction: a few, because each may hold megabytes.
BATCH_ROWS = 32
#: Bytes that a page opens together, as they were before they were sealed.
PAGE_BYTES = 16 * 1024 * 1024

#: Every sealed column, and what tells its rows apart.
SEALED: dict[str, tuple[Table, tuple[str, ...], tuple[str, ...]]] = {
    "responses": (responses, ("id",), ("sealed_input", "sealed_response")),
    "response_events": (response_events, ("response_id", "first_number"), ("sealed",)),
    "conversations": (conversations, ("id",), ("sealed_metadata",)),
    "conversation_items": (conversation_items, ("conversation_id", "number"), ("sealed",)),
    "files": (files, ("id",), ("sealed",)),
    "batches": (batches, ("id",), ("sealed",)),
    "batch_lines": (batch_lines, ("batch_id", "number"), ("sealed",)),
}


class Whose(msgspec.Struct, frozen=True):
    """Whose things: a tenant's, by its id, and of one end user, by reference; None: all."""

    tenant_id: str | None = None
    user_ref: str | None = None

    def of(self, table: Table) -> ColumnElement[bool]:
        wanted = [table.c.id != ""]
        if self.tenant_id is not None:
            wanted.append(table.c.tenant_id == self.tenant_id)
        if self.user_ref is not None:
            wanted.append(table.c.user_ref == self.user_ref)
        return and_(*wanted)


class Thing(msgspec.Struct, frozen=True):
    """A stored response with its input, or a conversation with its items."""

    kind: str
    id: str
    tenant_id: str
    user_ref: str | None
    created_at: float
    expires_at: float
    #: A response's input, or a conversation's items.
    items: list[Any]
    #: A response as its client got it, or a conversation's metadata.
    content: Any


def page(
    store: Store, vault: Vault, whose: Whose, *, after: str = "", limit: int, bytes_max: int = PAGE_BYTES
) -> tuple[list[Thing], str | None]:
    """Things by id, behind the id `after`, conversations first, one at least and else no more than so many bytes; and the id behind which
    there may be more. Raises VaultFailed where a key is missing.
    """
    with store.begin() as connection:
        sizes: list[tuple[str, int]] = []
        for table in (conversations, responses):
            query = select(table.c.id, table.c.size_bytes).where(whose.of(table), table.c.id > after)
            rows = connection.execute(query.order_by(table.c.id).limit(limit - len(sizes)))
            sizes += [(row.id, row.size_bytes) for row in rows]
        ids = _first(sizes, bytes_max)
        talks = select(conversations).where(conversations.c.id.in_(ids)).order_by(conversations.c.id)
        found = [_conversation(connection, vault, row) for row in connection.execute(talks).mappings()]
        answers = select(responses).where(responses.c.id.in_(ids)).order_by(responses.c.id)
        found += [_response(vault, row) for row in connection.execute(answers).mappings()]
    return found, ids[-1] if len(sizes) == limit or len(ids) < len(sizes) else None


def _first(sizes: list[tuple[str, int]], bytes_max: int) -> list[str]:
    together = accumulate(size for _, size in sizes)
    fit = sum(size <= bytes_max for size in together)
    return [name for name, _ in sizes[: max(fit, 1)]]


def each(store: Store, vault: Vault, whose: Whose) -> Iterator[Thing]:
    """All of them."""
    after: str | None = ""
    while after is not None:
        found, after = page(store, vault, whose, after=after, limit=BATCH_ROWS)
        yield from found


def _response(vault: Vault, row: RowMapping) -> Thing:
    said = vault.open(row["sealed_input"], bound_to(row["tenant_id"], "input", row["id"]))
    answered = vault.open(row["sealed_response"], bound_to(row["tenant_id"], "response", row["id"]))
    return _thing("response", row, msgspec.json.decode(said), msgspec.json.decode(answered))


def _conversation(connection: Connection, vault: Vault, row: RowMapping) -> Thing:
    table = conversation_items.c
    query = select(conversation_items).where(table.conversation_id == row["id"]).order_by(table.number)
    items = [
        msgspec.json.decode(vault.open(it.sealed, bound_to(row["tenant_id"], f"item {it.number}", row["id"])))
        for it in connection.execute(query)
    ]
    metadata = vault.open(row["sealed_metadata"], bound_to(row["tenant_id"], "conversation", row["id"]))
    return _thing("conversation", row, items, msgspec.json.decode(metadata))


def _thing(kind: str, row: RowMapping, items: list[Any], content: Any) -> Thing:
    who = (row["id"], row["tenant_id"], row["user_ref"], row["created_at"], row["expires_at"])
    return Thing(kind, *who, items, content)


def erase(store: Store, whose: Whose, witness: Witness = unwitnessed, clock: Callable[[], float] = time.time) -> int:
    """Delete all of it, files and batches included, piece by piece; returns how many things. What runs in the background is stopped;
    bytes of files go when a gateway next looks for what has expired.
    """
    count = 0
    while done := _erase_some(store, whose, clock()):
        count += done
    with store.erasing() as connection:
        # What others said in conversations that stay.
        if whose.user_ref is not None:
            connection.execute(delete(conversation_items).where(_said_by(whose)))
        else:
            connection.execute(delete(gone_responses).where(whose.of(gone_responses)))
        details = {"user": whose.user_ref, "count": count}
        witness(connection, Act(ActKind.STORED_ERASE, "stored", whose.tenant_id or "", details))
    return count


def _said_by(whose: Whose) -> ColumnElement[bool]:
    theirs = select(conversations.c.id).where(Whose(whose.tenant_id).of(conversations))
    return and_(conversation_items.c.user_ref == whose.user_ref, conversation_items.c.conversation_id.in_(theirs))


def _erase_some(store: Store, whose: Whose, now: float) -> int:
    with store.erasing() as connection:
        changes.take_turn(connection)
        query = select(responses.c.id, responses.c.status).where(whose.of(responses)).limit(BATCH_ROWS)
        found = connection.execute(query).all()
        changes.note(connection, *(Change(Kind.RESPONSE, row.id) for row in found if row.status in RUNNING))
        forget_responses(connection, [row.id for row in found])
        talks = list(connection.scalars(select(conversations.c.id).where(whose.of(conversations)).limit(BATCH_ROWS)))
        forget_conversations(connection, talks)
        others = holdings.erase_some(connection, whose.of, now)
    return len(found) + len(talks) + others


def sealed_by(store: Store) -> dict[str, Counter[str]]:
    """How much each of the installation's keys still seals, by its id: what is sealed, by table. A file's key seals all of its bytes."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    with store.begin() as connection:
        for name, (table, _, columns) in SEALED.items():
            for column in (table.c[it] for it in columns):
                key_id = func.substr(column, *KEY_ID_AT, type_=LargeBinary)
                query = select(key_id, func.count()).where(func.length(column) > 0).group_by(key_id)
                for found, count in connection.execute(query):
                    counts[found.hex()][name] += count
    return dict(counts)


def rewrap(store: Store, vault: Vault) -> dict[str, int]:
    """Have everything sealed by the vault's first key, in small transactions, while gateways go on; returns how many things were, by table.

    What is inside stays sealed, and so do files' bytes: their keys are wrapped anew. It can be ended at any moment and begun again.
    Raises VaultFailed where a key is missing.
    """
    return {name: sum(_rewrapped(store, vault, *place)) for name, place in SEALED.items()}


def _rewrapped(
    store: Store, vault: Vault, table: Table, key: tuple[str, ...], sealed: tuple[str, ...]
) -> Iterator[int]:
    """How many sealed columns of each piece another key had sealed."""
    columns = [table.c[name] for name in (*key, *sealed)]
    last: RowMapping | None = None
    while True:
        query = select(*columns).order_by(*(table.c[name] for name in key)).limit(BATCH_ROWS)
        if last is not None:
            query = query.where(_behind([table.c[name] for name in key], [last[name] for name in key]))
        with store.begin() as connection:
            store.hold(connection, "vault rewrap")
            rows = connection.execute(query).mappings().all()
            changed = [(row, new) for row in rows if (new := _again(vault, row, sealed))]
            for row, new in changed:
                for name, again in new.items():
                    # Unless it was changed meanwhile: then it is sealed by the first key.
                    same = [table.c[it] == row[it] for it in (*key, name)]
                    connection.execute(update(table).where(*same).values({name: again}))
        yield sum(len(new) for _, new in changed)
        if len(rows) < BATCH_ROWS:
            return
        last = rows[-1]


def _again(vault: Vault, row: RowMapping, sealed: tuple[str, ...]) -> dict[str, bytes]:
    # Of a file that is erased nothing is sealed.
    return {name: new for name in sealed if row[name] and (new := vault.rewrapped(row[name])) is not None}


def _behind(columns: list[Column[Any]], place: list[Any]) -> ColumnElement[bool]:
    """Rows behind a place in the order of these columns."""
    return tuple_(*columns) > tuple_(*place) if len(columns) > 1 else columns[0] > literal(place[0])
