"""Presence: are files' bytes where they were put, and do they open? For operators: after a restore the two come from two places.

Rows are asked in threads of their own; bytes are read one piece at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
from sqlalchemy import RowMapping, select

from serving.errors import ContentLost, VaultFailed
from serving.gateway.store.store import Store
from serving.gateway.store.tables import batches, files
from serving.gateway.stored.files.files import file_of
from serving.gateway.stored.files.pieces import Pieces
from serving.gateway.stored.vault import Vault

#: Rows that are read at a time.
PAGE_ROWS = 200


class Lack(msgspec.Struct, frozen=True):
    """What is wrong with a file."""

    file_id: str
    tenant_id: str
    purpose: str
    why: str


class Presence:
    """Looks at all files of a store."""

    def __init__(self, store: Store, vault: Vault, shelf: Pieces) -> None:
        self._store = store
        self._vault = vault
        self._shelf = shelf
        #: Files that were looked at.
        self.count = 0

    async def lacking(self) -> AsyncIterator[Lack]:
        """Those that cannot be read to their end, by id. Raises StoreUnavailable where nothing can be read at all."""
        last = ""
        while rows := await asyncio.to_thread(self._rows, last):
            for row in rows:
                self.count += 1
                wrong = await self._wrong(row)
                if wrong is None:
                    continue
                # One that was deleted meanwhile lacks nothing.
                is_there = await asyncio.to_thread(self._is_there, row["id"])
                if is_there:
                    yield Lack(row["id"], row["tenant_id"], row["purpose"], wrong)
            last = rows[-1]["id"]

    async def astray(self) -> list[str]:
        """Files that have bytes and no row: no one can reach them, and nothing removes them."""
        # Their bytes first: a row is there before any.
        found = await self._shelf.file_ids()
        known = await asyncio.to_thread(lambda: set(self._known(found)))
        # A folder may be empty.
        return [it for it in found if it not in known and await self._shelf.numbers(it)]

    async def _wrong(self, row: RowMapping) -> str | None:
        try:
            file = file_of(row, self._vault)
            missing = set(range(file.pieces)) - set(await self._shelf.numbers(file.id))
            if missing:
                return f"{len(missing)} of its {file.pieces} pieces are missing"
            size = 0
            async for piece in self._shelf.pieces(file.cipher, file.pieces):
                size += len(piece)
        except VaultFailed as failed:
            return f"it does not open: {failed.reason}"
        except ContentLost:
            return "it goes while it is read"
        return None if size == file.bytes else f"it has {size} bytes instead of {file.bytes}"

    def _rows(self, last: str) -> list[RowMapping]:
        query = select(files).where(files.c.is_whole.is_(True), files.c.id > last).order_by(files.c.id)
        with self._store.begin() as connection:
            return list(connection.execute(query.limit(PAGE_ROWS)).mappings())

    def _is_there(self, file_id: str) -> bool:
        query = select(files.c.id).where(files.c.id == file_id, files.c.is_whole.is_(True))
        with self._store.begin() as connection:
            return connection.scalar(query) is not None

    def _known(self, file_ids: list[str]) -> Iterator[str]:
        columns = files.c.id, batches.c.output_file_id, batches.c.error_file_id
        for first in range(0, len(file_ids), PAGE_ROWS):
            some = file_ids[first : first + PAGE_ROWS]
            with self._store.begin() as connection:
                for column in columns:
                    yield from connection.scalars(select(column).where(column.in_(some)))
