"""A shelf in a store, without a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select

from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from serving.gateway.store.tables import metadata
from serving.gateway.stored import items
from serving.gateway.stored.conversations import SECONDS_PER_DAY, Conversations
from serving.gateway.stored.shelf import New, Shelf
from serving.gateway.stored.vault import Vault
from tests.clock import Clock

ADA = Caller("t1", "acme", "k1", user_ref="ada")
BOB = Caller("t1", "acme", "k1", user_ref="bob")
RIVAL = Caller("t2", "rival", "k2")
KEPT_S = 30 * SECONDS_PER_DAY


class Shelves:
    """Both kinds of things, and the time."""

    def __init__(self, store: Store, home: Path) -> None:
        self.store = store
        self.clock = Clock(1_000_000.0)
        self.vault = Vault.at(home, may_make=True)
        self.conversations = Conversations(store, self.vault, KEPT_S, self.clock)
        self.shelf = Shelf(store, self.vault, self.conversations, KEPT_S, self.clock)

    def put(self, response_id: str, text: str = "said", *, caller: Caller = ADA, **changed: Any) -> None:
        """A response to `text` that says `answer to` it."""
        ancestors = changed.pop("ancestors", ())
        status = changed.pop("status", "completed")
        new = New(
            caller=caller,
            id=response_id,
            created_at=self.clock(),
            said=items.said(text),
            ancestors=ancestors,
            **changed,
        )
        self.shelf.put(new, answer(response_id, text, status), status)

    def rows(self, table: str) -> list[Any]:
        with self.store.begin() as connection:
            return list(connection.execute(select(metadata.tables[table])))

    def count(self, table: str) -> int:
        return len(self.rows(table))


def answer(response_id: str, text: str, status: str = "completed") -> bytes:
    part = {"type": "output_text", "text": f"answer to {text}", "annotations": []}
    message = {"id": f"msg_{response_id}", "type": "message", "role": "assistant", "content": [part]}
    return msgspec.json.encode({"id": response_id, "status": status, "output": [message]})


def texts(said: list[dict[str, Any]]) -> list[str]:
    return [part["text"] for item in said for part in item["content"]]
