"""Keyring: the digests under which the store knows keys, made with one pepper. The keys themselves are not kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import func, select, update

from serving.errors import Refusal
from serving.gateway.identity.keys import PEPPER_BYTES
from serving.gateway.store.store import Store, locked, write_private
from serving.gateway.store.tables import keys, meta

#: Bytes of a derived key.
KEY_BYTES = 32
PEPPER_NAME = "pepper"
# A fixed word that cannot be a key.
_CHECKED_WORD = "pepper check"


class Keyring:
    """Turns keys into digests. The pepper lives beside the database, so that a copied database opens nothing."""

    def __init__(self, pepper: bytes) -> None:
        self.pepper = pepper
        # Copied for each key: what hashes all in one go gives the interpreter to other threads, and waits to get it back.
        self._keyed = hmac.new(pepper, digestmod=hashlib.sha256)

    @classmethod
    def open(cls, store: Store, pepper_file: Path | None = None) -> Keyring:
        """The keyring of a store: its pepper read from `pepper_file`, else from `store.home`, where it is made at first use.

        Safe when several processes do it at once. Raises Refusal when the pepper is lost, damaged, or another one than
        this database's: every key would silently stop working.
        """
        path = pepper_file or store.home / PEPPER_NAME
        try:
            if pepper_file is None:
                _make_if_absent(store, path)
            pepper = path.read_bytes()
        except OSError as error:
            raise Refusal(f"The file {path} cannot be used: {(error.strerror or 'unknown error').lower()}.") from None
        if len(pepper) != PEPPER_BYTES:
            raise Refusal(f"The file {path} is damaged ({len(pepper)} bytes, not {PEPPER_BYTES}): restore it.")
        keyring = cls(pepper)
        if not keyring._belongs_to(store):
            raise Refusal(
                f"The pepper in {path} is not the one of the database {store.name}, whose keys would all be refused: "
                "put that one in its place."
            )
        return keyring

    def digest(self, key: str) -> bytes:
        """HMAC-SHA256 of the whole key: 32 bytes."""
        keyed = self._keyed.copy()
        keyed.update(key.encode())
        return keyed.digest()

    def derived(self, purpose: bytes) -> bytes:
        """A key of 32 bytes for one purpose, the same in all gateways that share the pepper (HKDF-SHA256)."""
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=purpose).derive(self.pepper)

    @property
    def check(self) -> bytes:
        """What the database keeps of the pepper: enough to tell it from another."""
        return self.digest(_CHECKED_WORD)

    def _belongs_to(self, store: Store) -> bool:
        """Is this the pepper that the database was first used with? A database without one takes this."""
        with store.begin() as connection:
            known = connection.scalar(select(meta.c.pepper_check))
            if known is None:
                first = update(meta).where(meta.c.pepper_check.is_(None))
                connection.execute(first.values(pepper_check=self.check))
                known = connection.scalar(select(meta.c.pepper_check))
        return known is not None and hmac.compare_digest(known, self.check)


def _make_if_absent(store: Store, path: Path) -> None:
    with locked(store.home):
        if not path.exists():
            _refuse_if_one_was_used(store, path)
            write_private(path, secrets.token_bytes(PEPPER_BYTES))


def _refuse_if_one_was_used(store: Store, path: Path) -> None:
    with store.begin() as connection:
        is_known = connection.scalar(select(meta.c.pepper_check)) is not None
        count = connection.scalar(select(func.count()).select_from(keys)) or 0
    if is_known or count:
        raise Refusal(
            f"The file {path} is missing and none of the {count} keys works without it: restore it from your backup, "
            "or name its place with store.pepper_file."
        )
