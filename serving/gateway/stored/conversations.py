"""Conversations: items that a tenant's calls add to, one after another, in the database: sealed, each conversation until its time.

Everything here blocks. One that has expired, or is another tenant's, is not there: no answer tells it from one that never was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from serving.errors import ContextExceeded, ResourceNotFound
from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from serving.gateway.store.tables import conversation_items, conversations
from serving.gateway.stored import items as listing
from serving.gateway.stored.items import Item, Page
from serving.gateway.stored.vault import Vault, bound_to
from serving.gateway.stored.wishes import possible

#: Bytes of all that an engine is to be told of what was said before: those of a request's body, as the settings begin.
HISTORY_BYTES_MAX = 8 * 1024 * 1024
#: Items of one conversation, deleted ones included.
ITEMS_MAX = 10_000
SECONDS_PER_DAY = 86_400.0
#: Ids that are looked for at once.
IDS_AT_ONCE = 500


class Past(msgspec.Struct, frozen=True):
    """What was said and answered before: its items, the ids of responses that they are of, and how many bytes that are."""

    items: list[Item] = []
    ancestors: Sequence[str] = ()
    size_bytes: int = 0


class Conversation(msgspec.Struct, frozen=True):
    """A conversation as OpenAI's API shows it."""

    id: str
    created_at: int
    metadata: dict[str, str]
    object: str = "conversation"


class Conversations:
    """Each is kept for `kept_s` seconds from when something was last added. `clock` is in seconds since the epoch."""

    def __init__(self, store: Store, vault: Vault, kept_s: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._vault = vault
        self._kept_s = kept_s
        self._clock = clock

    def begin(self, caller: Caller, metadata: dict[str, str], said: list[Item]) -> Conversation:
        """A new conversation with these items."""
        conversation_id, now = listing.fresh_id("conv"), self._clock()
        values = {
            "id": conversation_id,
            "tenant_id": caller.tenant_id,
            "user_ref": caller.user_ref,
            "created_at": now,
            "expires_at": now + self._kept_s,
            "size_bytes": 0,
            "sealed_metadata": self._sealed_metadata(caller.tenant_id, conversation_id, metadata),
        }
        with self._store.begin() as connection:
            connection.execute(insert(conversations).values(values))
            self.append(connection, caller, conversation_id, said)
        return Conversation(conversation_id, int(now), metadata)

    def get(self, tenant_id: str, conversation_id: str) -> Conversation:
        """Raises ResourceNotFound."""
        with self._store.begin() as connection:
            return self._conversation(connection, tenant_id, conversation_id)

    def rename(self, tenant_id: str, conversation_id: str, metadata: dict[str, str]) -> Conversation:
        """Give a conversation other metadata; raises ResourceNotFound."""
        sealed = self._sealed_metadata(tenant_id, conversation_id, metadata)
        with self._store.begin() as connection:
            there = self._there(tenant_id, conversation_id)
            connection.execute(update(conversations).where(*there).values(sealed_metadata=sealed))
            return self._conversation(connection, tenant_id, conversation_id)

    def delete(self, tenant_id: str, conversation_id: str) -> None:
        """Delete a conversation and its items; raises ResourceNotFound. Responses that were part of it stay until their time."""
        with self._store.erasing() as connection:
            gone = delete(conversations).where(*self._there(tenant_id, conversation_id))
            if connection.execute(gone).rowcount == 0:
                raise _not_found(conversation_id)
            connection.execute(
                delete(conversation_items).where(conversation_items.c.conversation_id == conversation_id)
            )

    def add(self, caller: Caller, conversation_id: str, said: list[Item]) -> list[Item]:
        """Add items to a conversation; returns them as they are kept.

        Raises ResourceNotFound, and ContextExceeded where it has too many or becomes too large.
        """
        with self._store.begin() as connection:
            self._conversation(connection, caller.tenant_id, conversation_id)
            kept = self.append(connection, caller, conversation_id, said)
            # Refused, nothing is added. An answer may be what is too much: the calls after it are refused.
            require_modest(self._size(connection, conversation_id), "conversation")
        return kept

    def history(self, tenant_id: str, conversation_id: str) -> Past:
        """All items of a conversation, oldest first; raises ResourceNotFound and ContextExceeded."""
        with self._store.begin() as connection:
            self._conversation(connection, tenant_id, conversation_id)
            size = self._size(connection, conversation_id)
            require_modest(size, "conversation")
            found = connection.execute(self._items(conversation_id)).all()
        return Past([self._item(tenant_id, row) for row in found], (), size)

    def items(self, tenant_id: str, conversation_id: str, asked: listing.Asked) -> Page:
        """A page of a conversation's items; raises ResourceNotFound."""
        number = conversation_items.c.number
        with self._store.begin() as connection:
            self._conversation(connection, tenant_id, conversation_id)
            query = self._items(conversation_id, is_ascending=asked.is_ascending).limit(asked.limit + 1)
            if asked.after is not None:
                place = self._place(connection, conversation_id, asked.after)
                query = query.where(number > place if asked.is_ascending else number < place)
            found = connection.execute(query).all()
        return listing.paged([self._item(tenant_id, row) for row in found], asked.limit)

    def item(self, tenant_id: str, conversation_id: str, item_id: str) -> Item:
        """Raises ResourceNotFound."""
        with self._store.begin() as connection:
            self._conversation(connection, tenant_id, conversation_id)
            place = self._place(connection, conversation_id, item_id)
            row = connection.execute(self._items(conversation_id).where(conversation_items.c.number == place)).one()
        return self._item(tenant_id, row)

    def remove(self, tenant_id: str, conversation_id: str, item_id: str) -> Conversation:
        """Delete an item; returns its conversation. Raises ResourceNotFound."""
        with self._store.erasing() as connection:
            found = self._conversation(connection, tenant_id, conversation_id)
            place = self._place(connection, conversation_id, item_id)
            of_it = (conversation_items.c.conversation_id == conversation_id, conversation_items.c.number == place)
            size = connection.scalar(select(conversation_items.c.size_bytes).where(*of_it)) or 0
            connection.execute(delete(conversation_items).where(*of_it))
            smaller = update(conversations).where(conversations.c.id == conversation_id)
            connection.execute(smaller.values(size_bytes=conversations.c.size_bytes - size))
        return found

    def append(self, connection: Connection, caller: Caller, conversation_id: str, said: list[Item]) -> list[Item]:
        """Add items to a conversation that is there, to one that was deleted meanwhile none; returns them as they are kept."""
        self._store.hold(connection, f"conversation {conversation_id}")
        there = self._there(caller.tenant_id, conversation_id)
        last = select(func.max(conversation_items.c.number)).where(
            conversation_items.c.conversation_id == conversation_id
        )
        first = (connection.scalar(last) or 0) + 1
        rows = [self._item_row(caller, conversation_id, number, item) for number, item in enumerate(said, first)]
        size = sum(row["size_bytes"] for row in rows)
        longer = {"size_bytes": conversations.c.size_bytes + size, "expires_at": self._clock() + self._kept_s}
        if connection.execute(update(conversations).where(*there).values(longer)).rowcount == 0 or not rows:
            return []
        if first + len(rows) > ITEMS_MAX + 1:
            raise ContextExceeded(f"The conversation has had {ITEMS_MAX} items: begin another.", param="conversation")
        taken = self._taken(connection, conversation_id, [row["id"] for row in rows])
        kept = list(said)
        for place, row in enumerate(rows):
            if row["id"] in taken:
                # A client sent an item a second time: it was said twice, and has two ids.
                kept[place] = {**said[place], "id": listing.fresh_id("item")}
                row |= self._item_row(caller, conversation_id, row["number"], kept[place])
            taken.add(row["id"])
        connection.execute(insert(conversation_items), rows)
        return kept

    def _size(self, connection: Connection, conversation_id: str) -> int:
        return connection.scalar(select(conversations.c.size_bytes).where(conversations.c.id == conversation_id)) or 0

    def _taken(self, connection: Connection, conversation_id: str, ids: list[str]) -> set[str]:
        table = conversation_items.c
        found: set[str] = set()
        for start in range(0, len(ids), IDS_AT_ONCE):
            some = ids[start : start + IDS_AT_ONCE]
            query = select(table.id).where(table.conversation_id == conversation_id, table.id.in_(some))
            found |= set(connection.scalars(query))
        return found

    def _item_row(self, caller: Caller, conversation_id: str, number: int, item: Item) -> dict[str, Any]:
        plain = msgspec.json.encode(item)
        return {
            "conversation_id": conversation_id,
            "number": number,
            "id": item["id"],
            "user_ref": caller.user_ref,
            "size_bytes": len(plain),
            "sealed": self._vault.seal(plain, _about(caller.tenant_id, f"item {number}", conversation_id)),
        }

    def _item(self, tenant_id: str, row: Row[Any]) -> Item:
        about = _about(tenant_id, f"item {row.number}", row.conversation_id)
        item: Item = msgspec.json.decode(self._vault.open(row.sealed, about))
        return item

    def _items(self, conversation_id: str, *, is_ascending: bool = True) -> Any:
        number = conversation_items.c.number
        query = select(conversation_items).where(conversation_items.c.conversation_id == conversation_id)
        return query.order_by(number if is_ascending else number.desc())

    def _place(self, connection: Connection, conversation_id: str, item_id: str) -> int:
        table = conversation_items.c
        query = select(table.number).where(table.conversation_id == conversation_id, table.id == item_id)
        found: int | None = connection.scalar(query) if "\0" not in item_id else None
        if found is None:
            raise ResourceNotFound(
                f"Item with id '{item_id[:128]}' not found in conversation with id '{conversation_id}'."
            )
        return found

    def _conversation(self, connection: Connection, tenant_id: str, conversation_id: str) -> Conversation:
        query = select(conversations).where(*self._there(tenant_id, conversation_id))
        row = connection.execute(query).one_or_none()
        if row is None:
            raise _not_found(conversation_id)
        plain = self._vault.open(row.sealed_metadata, _about(tenant_id, "conversation", row.id))
        return Conversation(row.id, int(row.created_at), msgspec.json.decode(plain))

    def _sealed_metadata(self, tenant_id: str, conversation_id: str, metadata: dict[str, str]) -> bytes:
        about = _about(tenant_id, "conversation", conversation_id)
        return self._vault.seal(msgspec.json.encode(metadata), about)

    def _there(self, tenant_id: str, conversation_id: str) -> tuple[Any, ...]:
        table = conversations.c
        return (table.id == possible(conversation_id), table.tenant_id == tenant_id, table.expires_at > self._clock())


def require_modest(size_bytes: int, param: str) -> None:
    """Raises ContextExceeded where what was said before is more than an engine is told again."""
    if size_bytes > HISTORY_BYTES_MAX:
        raise ContextExceeded(f"What was said before is more than {HISTORY_BYTES_MAX} bytes: begin anew.", param=param)


def _about(tenant_id: str, kind: str, conversation_id: str) -> bytes:
    return bound_to(tenant_id, kind, conversation_id)


def _not_found(conversation_id: str) -> ResourceNotFound:
    return ResourceNotFound(f"Conversation with id '{conversation_id[:64]}' not found.")
