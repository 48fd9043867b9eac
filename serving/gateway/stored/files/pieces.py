"""Pieces: the bytes of files, sealed in pieces of bounded size, in a folder or an object store.

A piece is an object of its own (`FILE/00000007`), put whole or not at all: a file of any size needs memory for one of them, and one
that is written again after its gateway died replaces the same. A file's pieces are sealed with one key of its own, each bound to its number;
the key is in the file's row, sealed by the vault (BAT-15).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from serving.config import FileSettings
from serving.errors import ContentLost, Refusal, StoreUnavailable
from serving.gateway.stored.vault import bound_to, opened_with, sealed_with

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: Bytes of a piece before it is sealed, at most: what one upload or one batch has in memory of its file.
PIECE_BYTES = 1024 * 1024
FOLDER = "files"
#: An object without bytes beside the files: where it is not, this is another folder or bucket than files were put into (BAT-6).
MARKER = "here"
#: Pieces that are removed at a time: what one request to S3 may name.
DELETED_AT_ONCE = 1000

log = logging.getLogger(__name__)


class Cipher(msgspec.Struct, frozen=True):
    """Seals the pieces of one file."""

    tenant_id: str
    file_id: str
    key: bytes

    def sealed(self, number: int, piece: bytes) -> bytes:
        return sealed_with(self.key, piece, self._about(number))

    def opened(self, number: int, sealed: bytes) -> bytes:
        """Raises VaultFailed."""
        return opened_with(self.key, sealed, self._about(number))

    def _about(self, number: int) -> bytes:
        return bound_to(self.tenant_id, self.file_id, str(number))


class Pieces:
    """Puts, gets and removes pieces; each raises StoreUnavailable while the folder or the object store does not work."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._is_marked = False

    @classmethod
    def open(cls, settings: FileSettings, home: Path) -> Self:
        """The one that the settings name. Raises Refusal when it cannot be used."""
        folder = settings.folder or home / FOLDER
        try:
            if settings.url is not None:
                return cls(from_url(settings.url))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cls(LocalStore(folder, automatic_cleanup=True))
        except BaseError as error:
            raise Refusal(f"gateway.files.url cannot be used ({type(error).__name__}): check its address.") from None
        except OSError as error:
            why = (error.strerror or type(error).__name__).lower()
            raise Refusal(f"The folder {folder} cannot keep files: {why}.") from None

    async def put(self, cipher: Cipher, number: int, piece: bytes) -> None:
        """Keep a piece, in place of one that is there already."""
        sealed = cipher.sealed(number, piece)
        with _working():
            if not self._is_marked:
                await obstore.put_async(self._store, MARKER, b"", use_multipart=False)
                self._is_marked = True
            await obstore.put_async(self._store, _name(cipher.file_id, number), sealed, use_multipart=False)

    async def get(self, cipher: Cipher, number: int) -> bytes:
        """A piece as it was put. Raises ContentLost where it is gone, and VaultFailed for one that was not put there."""
        with _working():
            try:
                found = await obstore.get_async(self._store, _name(cipher.file_id, number))
                sealed = bytes(await found.bytes_async())
            except _MISSING:
                await obstore.head_async(self._store, MARKER)
                raise ContentLost from None
        return cipher.opened(number, sealed)

    async def pieces(self, cipher: Cipher, count: int) -> AsyncIterator[bytes]:
        """A file's pieces in order, one at a time."""
        for number in range(count):
            yield await self.get(cipher, number)

    async def numbers(self, file_id: str) -> list[int]:
        """The pieces that there are of a file."""
        found = []
        with _working():
            async for listed in obstore.list(self._store, prefix=file_id):
                found += [int(name) for it in listed if (name := it["path"].rpartition("/")[2]).isdecimal()]
        return found

    async def file_ids(self) -> list[str]:
        """The files of which there are any."""
        with _working():
            return list((await obstore.list_with_delimiter_async(self._store))["common_prefixes"])

    async def remove(self, file_id: str) -> None:
        """Remove whatever there is of a file."""
        with _working():
            async for listed in obstore.list(self._store, prefix=file_id, chunk_size=DELETED_AT_ONCE):
                with suppress(*_MISSING):
                    await obstore.delete_async(self._store, [it["path"] for it in listed])


_MISSING = (NotFoundError, FileNotFoundError)


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
