"""Files: which a tenant has, and their bytes. Another tenant's are not there.

A file is noted before its bytes come, with as many as are announced, so that a tenant's limits hold for uploads side by side; it can
be read once it is whole. What never got so far is removed like what has expired.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update
from sqlalchemy.engine import RowMapping

from serving.config import FileSettings
from serving.errors import (
    Forbidden,
    InvalidRequest,
    ResourceConflict,
    ResourceNotFound,
    StorageExceeded,
    VaultFailed,
)
from serving.gateway import policies
from serving.gateway.identity.holdings import IS_NAMED
from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from serving.gateway.store.tables import batches, files
from serving.gateway.stored.desk import Desk
from serving.gateway.stored.files.pieces import Cipher, Pieces
from serving.gateway.stored.vault import Vault, bound_to, own_key
from serving.gateway.stored.wishes import possible

#: Seconds after which an upload that has not ended is taken to be none any more, beyond what one may take.
LEFT_S = 3600.0
#: TenantFiles that are removed at a time.
SWEPT_MAX = 20
#: Characters of a name that are kept.
NAME_CHARS_MAX = 255


Row = RowMapping | dict[str, Any]


class Purpose(StrEnum):
    """What a file is for, in OpenAI's words; the others of its API are of services that are not here."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


class File(msgspec.Struct, frozen=True):
    """One file; seconds since the epoch."""

    id: str
    tenant_id: str
    purpose: str
    bytes: int
    pieces: int
    name: str
    created_at: float
    expires_at: float | None
    cipher: Cipher


class _Inside(msgspec.Struct, frozen=True):
    """What of a file is kept sealed: its name, and the key of its pieces."""

    name: str
    key: bytes


class New(msgspec.Struct, frozen=True):
    """A file to be."""

    tenant_id: str
    key_id: str
    user_ref: str | None
    purpose: Purpose
    name: str
    #: None: as the settings say.
    expires_after_s: float | None = None
    #: Of its pieces.
    key: bytes = msgspec.field(default_factory=own_key)


class Page(msgspec.Struct, frozen=True):
    """Some of a tenant's, and whether there are more behind them."""

    files: list[File]
    has_more: bool


def require_consent(caller: Caller) -> None:
    """Raises Forbidden where nothing is kept for this caller: content is at rest only where a tenant's policy turns that on."""
    if not policies.stores(caller.tenant_policy, caller.key_policy):
        raise Forbidden("Files and batches are not kept for this tenant: its policy has to turn `store_responses` on.")


def new_id() -> str:
    """A file's id, which no one guesses."""
    return f"file-{secrets.token_hex(12)}"


def brought_by(caller: Caller, name: str) -> New:
    """A file that a caller uploads."""
    return New(caller.tenant_id, caller.key_id, caller.user_ref, Purpose.BATCH, name[:NAME_CHARS_MAX])


class TenantFiles:
    """Those of all tenants."""

    def __init__(
        self, settings: FileSettings, store: Store, shelf: Pieces, vault: Vault, desk: Desk, clock: Callable[[], float]
    ) -> None:
        self.settings = settings
        self._store = store
        self.shelf = shelf
        self._vault = vault
        self._desk = desk
        self._clock = clock

    async def begin(self, new: New, announced_bytes: int) -> Cipher:
        """Room for a file that is about to come; returns what seals it. Raises StorageExceeded."""
        return await self._desk.done(self._begin, new, announced_bytes)

    async def finish(self, cipher: Cipher, size: int, pieces: int, expires_after_s: float | None = None) -> File:
        """Its bytes are kept. Raises StorageExceeded where they are too many after all."""
        return await self._desk.done(self._finish, cipher, size, pieces, expires_after_s)

    async def find(self, tenant_id: str, file_id: str) -> File:
        """Raises ResourceNotFound."""
        return await self._desk.done(self._find, tenant_id, file_id)

    async def input_of(self, tenant_id: str, file_id: str) -> File:
        """What a batch reads: it is there for the batch past its time too. Raises ResourceNotFound."""
        return await self._desk.done(self._find, tenant_id, file_id, is_read=True)

    async def page(
        self, tenant_id: str, *, purpose: str | None, after: str | None, limit: int, is_ascending: bool
    ) -> Page:
        """A tenant's files by the time they came; raises ResourceNotFound where there is no file `after`."""
        return await self._desk.done(self._page, tenant_id, purpose, after, limit, is_ascending=is_ascending)

    def content(self, file: File) -> AsyncIterator[bytes]:
        """Its bytes, a piece at a time."""
        return self.shelf.pieces(file.cipher, file.pieces)

    async def remove(self, tenant_id: str, file_id: str) -> None:
        """Delete it. Raises ResourceNotFound, and ResourceConflict while a batch reads it."""
        file = await self._desk.done(self._forget, tenant_id, file_id)
        await self.abandon(file.id)

    async def abandon(self, file_id: str) -> None:
        """Nothing stays of a file that is not whole."""
        # Its bytes first: a row without them is found again.
        await self.shelf.remove(file_id)
        await self._desk.done(self._drop, file_id)

    async def total_bytes(self) -> int:
        """Of all tenants' files."""
        return await self._desk.done(self._total_bytes)

    async def sweep(self) -> int:
        """Remove some of what has expired, and uploads that were never finished; returns how many there were."""
        gone = await self._desk.done(self._expired)
        for file_id in gone:
            await self.abandon(file_id)
        return len(gone)

    def written(self, connection: Connection, file_id: str, new: New, size: int, pieces: int) -> None:
        """A file that a batch has written, in the transaction that ends the batch."""
        connection.execute(insert(files).values(**self._row(file_id, new, size, pieces), is_whole=True))

    def _begin(self, new: New, announced_bytes: int) -> Cipher:
        file_id, settings = new_id(), self.settings
        with self._store.begin() as connection:
            self._store.hold(connection, f"files of {new.tenant_id}")
            count, size = self._used(connection, new.tenant_id)
            if count >= settings.tenant_files_max:
                raise StorageExceeded(f"There is room for {settings.tenant_files_max} files; delete some first.")
            _require_room(size + announced_bytes, settings)
            connection.execute(insert(files).values(**self._row(file_id, new, announced_bytes, 0), is_whole=False))
        return Cipher(new.tenant_id, file_id, new.key)

    def _finish(self, cipher: Cipher, size: int, pieces: int, expires_after_s: float | None) -> File:
        tenant_id, file_id = cipher.tenant_id, cipher.file_id
        with self._store.begin() as connection:
            self._store.hold(connection, f"files of {tenant_id}")
            found = connection.execute(select(files).where(files.c.id == file_id)).mappings().one_or_none()
            if found is None:
                raise ResourceNotFound
            _require_room(self._used(connection, tenant_id)[1] - found["bytes"] + size, self.settings)
            whole: dict[str, Any] = {"bytes": size, "pieces": pieces, "is_whole": True}
            whole["expires_at"] = found["created_at"] + self._lifetime_s(expires_after_s)
            # One that was erased meanwhile stays so.
            if not connection.execute(update(files).where(files.c.id == file_id, IS_NAMED).values(**whole)).rowcount:
                raise ResourceNotFound
        return self._file({**found, **whole})

    def _find(self, tenant_id: str, file_id: str, *, is_read: bool = False) -> File:
        is_there = _is_whole(tenant_id) if is_read else self._is_there(tenant_id)
        with self._store.begin() as connection:
            found = connection.execute(select(files).where(*is_there, files.c.id == possible(file_id)))
            row = found.mappings().one_or_none()
        if row is None:
            raise ResourceNotFound
        return self._file(row) if is_read else self._shown(row)

    def _page(self, tenant_id: str, purpose: str | None, after: str | None, limit: int, *, is_ascending: bool) -> Page:
        query = select(files).where(*self._is_there(tenant_id))
        if purpose is not None:
            query = query.where(files.c.purpose == possible(purpose))
        at, name = files.c.created_at, files.c.id
        with self._store.begin() as connection:
            if after is not None:
                before = connection.execute(
                    select(at, name).where(files.c.tenant_id == tenant_id, name == possible(after))
                ).one_or_none()
                if before is None:
                    raise InvalidRequest("after: There is no such file.", param="after")
                moment, known = before
                is_behind = (at > moment, name > known) if is_ascending else (at < moment, name < known)
                query = query.where(or_(is_behind[0], and_(at == moment, is_behind[1])))
            order = (at, name) if is_ascending else (at.desc(), name.desc())
            rows = connection.execute(query.order_by(*order).limit(limit + 1)).mappings().all()
        return Page([self._shown(row) for row in rows[:limit]], len(rows) > limit)

    def _forget(self, tenant_id: str, file_id: str) -> File:
        with self._store.begin() as connection:
            found = connection.execute(select(files).where(*self._is_there(tenant_id), files.c.id == possible(file_id)))
            row = found.mappings().one_or_none()
            if row is None:
                raise ResourceNotFound
            reader = connection.scalar(
                select(batches.c.id).where(batches.c.input_file_id == file_id, _is_read).limit(1)
            )
            if reader is not None:
                raise ResourceConflict(f"The batch {reader} reads this file; cancel it first.")
            # It is gone for its tenant from now on; until its bytes are, it is one that was never finished.
            connection.execute(update(files).where(files.c.id == file_id).values(is_whole=False, created_at=0.0))
        return self._shown(row)

    def _drop(self, file_id: str) -> None:
        with self._store.begin() as connection:
            connection.execute(delete(files).where(files.c.id == file_id, files.c.is_whole.is_(False)))

    def _expired(self) -> list[str]:
        now = self._clock()
        is_left = and_(files.c.is_whole.is_(False), files.c.created_at < now - self.settings.upload_s - LEFT_S)
        is_input = select(batches.c.input_file_id).where(_is_read)
        is_over = and_(files.c.expires_at <= now, files.c.id.not_in(is_input))
        with self._store.begin() as connection:
            gone = list(connection.scalars(select(files.c.id).where(or_(is_left, is_over)).limit(SWEPT_MAX)))
            connection.execute(update(files).where(files.c.id.in_(gone)).values(is_whole=False, created_at=0.0))
        return gone

    def _total_bytes(self) -> int:
        with self._store.begin() as connection:
            return int(connection.scalar(select(func.coalesce(func.sum(files.c.bytes), 0))) or 0)

    def _used(self, connection: Connection, tenant_id: str) -> tuple[int, int]:
        used = select(func.count(), func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.tenant_id == tenant_id)
        count, size = connection.execute(used).one()
        return int(count), int(size)

    def _is_there(self, tenant_id: str) -> tuple[ColumnElement[bool], ...]:
        is_valid = or_(files.c.expires_at.is_(None), files.c.expires_at > self._clock())
        return *_is_whole(tenant_id), is_valid

    def _row(self, file_id: str, new: New, size: int, pieces: int) -> dict[str, object]:
        now, inside = self._clock(), _Inside(new.name.encode(errors="replace").decode(), new.key)
        return {
            "id": file_id,
            "tenant_id": new.tenant_id,
            "key_id": new.key_id,
            "user_ref": new.user_ref,
            "purpose": new.purpose,
            "bytes": size,
            "pieces": pieces,
            "sealed": self._vault.seal(msgspec.json.encode(inside), bound_to(new.tenant_id, file_id)),
            "created_at": now,
            "expires_at": now + self._lifetime_s(new.expires_after_s),
        }

    def _lifetime_s(self, wanted_s: float | None) -> float:
        longest_s = self.settings.expires_after_s
        return longest_s if wanted_s is None else min(wanted_s, longest_s)

    def _file(self, row: Row) -> File:
        return file_of(row, self._vault)

    def _shown(self, row: Row) -> File:
        """As its tenant sees it: one that does not open has no name and no content, and can be deleted; the others stay in sight."""
        try:
            return self._file(row)
        except VaultFailed:
            return _named(row, _Inside("", b""))


def file_of(row: Row, vault: Vault) -> File:
    """A file as its row has it. Raises VaultFailed."""
    about = bound_to(row["tenant_id"], row["id"])
    return _named(row, msgspec.json.decode(vault.open(row["sealed"], about), type=_Inside))


def _named(row: Row, inside: _Inside) -> File:
    tenant_id, file_id = row["tenant_id"], row["id"]
    return File(
        id=file_id,
        tenant_id=tenant_id,
        purpose=row["purpose"],
        bytes=row["bytes"],
        pieces=row["pieces"],
        name=inside.name,
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        cipher=Cipher(tenant_id, file_id, inside.key),
    )


_is_read = batches.c.ended_at.is_(None)


def _is_whole(tenant_id: str) -> tuple[ColumnElement[bool], ...]:
    return files.c.tenant_id == tenant_id, files.c.is_whole.is_(True)


def _require_room(size: int, settings: FileSettings) -> None:
    if size > settings.tenant_bytes_max:
        raise StorageExceeded(f"There is room for {settings.tenant_bytes_max} bytes of files; delete some first.")
