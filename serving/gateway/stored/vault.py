"""Vault: seals what is kept of prompts and answers, so that neither the database, a file nor a backup of them shows any.

Envelope encryption: each object has a random key of its own (AES-256-GCM), which is wrapped by the installation's key (AES key
wrap, RFC 3394). Sealed, an object is the version, the id of the installation's key, the wrapped key, and the ciphertext:

    1 | key id, 8 bytes | wrapped key, 40 bytes | nonce, 12 bytes | ciphertext and its tag, 16 bytes more than what was sealed

What is kept in many pieces elsewhere has one key for all of them (`sealed_with`), which is kept like any other object.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from serving.errors import Refusal, VaultFailed
from serving.gateway.store.store import locked, write_private

FILE_NAME = "vault.keys"
#: Bytes of a key.
KEY_BYTES = 32
#: Keys that one file may hold: one that seals, and those before it.
KEYS_MAX = 64
#: What is read of a key file: a wrong name may have no end.
FILE_BYTES_MAX = 64 * 1024

_VERSION = b"\x01"
_ID_BYTES = 8
_WRAPPED_BYTES = KEY_BYTES + 8
_NONCE_BYTES = 12
_KEY_AT = len(_VERSION) + _ID_BYTES
#: Where the id of the installation's key stands in what is sealed, as SQL counts bytes: the first, and how many.
KEY_ID_AT = (len(_VERSION) + 1, _ID_BYTES)
_BODY_AT = _KEY_AT + _WRAPPED_BYTES
#: Bytes by which something grows when it is sealed.
OVERHEAD_BYTES = _BODY_AT + _NONCE_BYTES + 16


def bound_to(*names: str) -> bytes:
    """What is sealed belongs to (`about`): tenant, kind of thing, its id. It opens for the same names alone."""
    return "\0".join(names).encode()


def fresh_key() -> str:
    """A new key, as a line of the key file."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def own_key() -> bytes:
    """A key of one object's own."""
    return secrets.token_bytes(KEY_BYTES)


def sealed_with(own: bytes, plain: bytes, about: bytes) -> bytes:
    """A nonce and the ciphertext, by an object's own key; nonces are random, which bounds a key to 2^32 uses."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(own).encrypt(nonce, plain, about)


def opened_with(own: bytes, sealed: bytes | memoryview, about: bytes) -> bytes:
    """What was sealed with that key. Raises VaultFailed."""
    body = memoryview(sealed)
    try:
        return AESGCM(own).decrypt(bytes(body[:_NONCE_BYTES]), body[_NONCE_BYTES:], about)
    except (InvalidTag, ValueError):
        raise VaultFailed("it was changed, or belongs to something else") from None


class Vault:
    """The keys in one file: the first seals, all of them open. The file is read again when it changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        #: Key id → key, the one that seals first; empty without a file.
        self._keys: dict[bytes, bytes] = {}

    @classmethod
    def at(cls, home: Path, path: Path | None = None, *, may_make: bool) -> Self:
        """The vault whose keys are in `path`, else in `home`, where they are made at first use if `may_make`.

        Safe when several processes do it at once. Raises Refusal when the file cannot be used.
        """
        file = path or home / FILE_NAME
        if path is None and not file.exists():
            if not may_make:
                return cls(None)
            with locked(home):
                if not file.exists():
                    write_private(file, f"{fresh_key()}\n".encode())
        vault = cls(file)
        vault._read()
        return vault

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of its keys, the one that seals first: digests, which say nothing of them."""
        return tuple(key_id.hex() for key_id in self._current())

    def seal(self, plain: bytes, about: bytes) -> bytes:
        """`plain` as only this installation opens it, and only as what it is `about`. Raises VaultFailed."""
        own = own_key()
        return self._header(own) + sealed_with(own, plain, about)

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """What was sealed. Raises VaultFailed."""
        return opened_with(self._own_key(sealed), memoryview(sealed)[_BODY_AT:], about)

    def rewrapped(self, sealed: bytes) -> bytes | None:
        """The same under the key that seals now; None where it is already. What is inside stays sealed. Raises VaultFailed."""
        if key_id_of(sealed) in self.key_ids[:1]:
            return None
        return self._header(self._own_key(sealed)) + sealed[_BODY_AT:]

    def _header(self, own: bytes) -> bytes:
        current = self._current()
        if not current:
            raise VaultFailed("there is no key file")
        key_id, key = next(iter(current.items()))
        return _VERSION + key_id + aes_key_wrap(key, own)

    def _own_key(self, sealed: bytes) -> bytes:
        if sealed[:1] != _VERSION or len(sealed) < OVERHEAD_BYTES:
            raise VaultFailed("no vault of this version sealed it")
        key = self._current().get(sealed[1:_KEY_AT])
        if key is None:
            raise VaultFailed(f"the key {key_id_of(sealed)} is not in the key file")
        try:
            return aes_key_unwrap(key, sealed[_KEY_AT:_BODY_AT])
        except InvalidUnwrap:
            raise VaultFailed("its wrapped key was changed") from None

    def _current(self) -> dict[bytes, bytes]:
        """The keys in the file now. One that cannot be read, or that is damaged, keeps the last good ones."""
        if self._path is None:
            return self._keys
        try:
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_ino) != self._seen:
                self._read()
        except (OSError, Refusal):
            pass
        return self._keys

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(FILE_BYTES_MAX)
        except OSError as error:
            raise Refusal(
                f"The file {self._path} cannot be used: {(error.strerror or 'unknown error').lower()}."
            ) from None
        self._keys = {_id_of(key): key for key in _keys_in(content.split(), self._path)}
        self._seen = (status.st_mtime_ns, status.st_ino)


def key_id_of(sealed: bytes) -> str:
    """The id of the installation's key under which something is sealed."""
    return sealed[1:_KEY_AT].hex()


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"vault key id\0" + key).digest()[:_ID_BYTES]


def _keys_in(lines: Iterable[bytes], path: Path) -> list[bytes]:
    keys = []
    for line in lines:
        try:
            key = base64.b64decode(line, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES:
            raise Refusal(f"The file {path} is damaged: a line of it is not {KEY_BYTES} bytes in base64.")
        keys.append(key)
    if not 0 < len(keys) <= KEYS_MAX:
        raise Refusal(f"The file {path} holds {len(keys)} keys: it takes one a line, and {KEYS_MAX} of them at most.")
    return keys
