"""Pieces: the bytes of files, sealed in pieces of bounded size, in a folder or an object store.

A piece is an object of its own (`FILE/00000007`), put whole or not at all: a file of any size needs memory for one of them, and one
that is written again after its gateway died replaces the same. The vault binds each to its tenant, its file and its number.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from serving.config import FileSettings
from serving.errors import Refusal, StoreUnavailable
from serving.gateway.stored.vault import Vault, bound_to

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: Bytes of a piece before it is sealed, at most: what one upload or one batch has in memory of its file.
PIECE_BYTES = 1024 * 1024
FOLDER = "files"
#: Pieces that are removed at a time: what one request to S3 may name.
DELETED_AT_ONCE = 1000

log = logging.getLogger(__name__)


class Pieces:
    """Puts, gets and removes pieces; each raises StoreUnavailable while the folder or the object store does not work."""

    def __init__(self, store: ObjectStore, vault: Vault) -> None:
        self._store = store
        self._vault = vault

    @classmethod
    def open(cls, settings: FileSettings, home: Path, vault: Vault) -> Self:
        """The one that the settings name. Raises Refusal when it cannot be used."""
        folder = settings.folder or home / FOLDER
        try:
            if settings.url is not None:
                return cls(from_url(settings.url), vault)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cls(LocalStore(folder, automatic_cleanup=True), vault)
        except BaseError as error:
            raise Refusal(f"gateway.files.url cannot be used ({type(error).__name__}): check its address.") from None
        except OSError as error:
            why = (error.strerror or type(error).__name__).lower()
            raise Refusal(f"The folder {folder} cannot keep files: {why}.") from None

    async def put(self, tenant_id: str, file_id: str, number: int, piece: bytes) -> None:
        """Keep a piece, in place of one that is there already."""
        sealed = self._vault.seal(piece, bound_to(tenant_id, file_id, str(number)))
        with _working():
            await obstore.put_async(self._store, _name(file_id, number), sealed, use_multipart=False)

    async def get(self, tenant_id: str, file_id: str, number: int) -> bytes:
        """A piece as it was put."""
        with _working():
            found = await obstore.get_async(self._store, _name(file_id, number))
            sealed = bytes(await found.bytes_async())
        return self._vault.open(sealed, bound_to(tenant_id, file_id, str(number)))

    async def pieces(self, tenant_id: str, file_id: str, count: int, first: int = 0) -> AsyncIterator[bytes]:
        """A file's pieces in order, one at a time."""
        for number in range(first, count):
            yield await self.get(tenant_id, file_id, number)

    async def remove(self, file_id: str) -> None:
        """Remove whatever there is of a file."""
        with _working():
            async for listed in obstore.list(self._store, prefix=file_id, chunk_size=DELETED_AT_ONCE):
                with suppress(NotFoundError, FileNotFoundError):
                    await obstore.delete_async(self._store, [it["path"] for it in listed])


def _name(file_id: str, number: int) -> str:
    return f"{file_id}/{number:08}"


@contextmanager
def _working() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        # Its kind alone: a text has paths and addresses.
        log.warning("files cannot be kept or read: %s", type(error).__name__)
        raise StoreUnavailable(f"the object store: {type(error).__name__}") from None
