"""Keys: what an API key looks like, and the digest under which the store knows it. Nobody keeps the key itself.

`sk-<key id, 10 characters>-<secret, 43 url-safe characters = 256 bits>`
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string

from sqlalchemy import func, select

from serving.errors import Refusal
from serving.gateway.store import Store, keys, locked, write_private

PEPPER_NAME = "pepper"
PEPPER_BYTES = 32
KEY_ID_LENGTH = 10
#: sk- + id + - + secret: whatever is longer is refused before it is looked at.
KEY_LENGTH = 57

_ID_ALPHABET = string.ascii_lowercase + string.digits
_WELL_FORMED = re.compile(r"sk-([a-z0-9]{10})-[A-Za-z0-9_-]{43}")


def mint() -> str:
    """A new key, from the operating system's randomness."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(KEY_ID_LENGTH))
    return f"sk-{key_id}-{secrets.token_urlsafe(32)}"


def id_of(key: str) -> str | None:
    """The public part of a well-formed key; None for anything else."""
    if len(key) != KEY_LENGTH:
        return None
    match = _WELL_FORMED.fullmatch(key)
    return match[1] if match else None


class Keyring:
    """Turns keys into digests. The pepper lives beside the database, so that a copied database opens nothing."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper

    @classmethod
    def open(cls, store: Store) -> Keyring:
        """The keyring of `store.home`, its pepper made at first use; safe when several processes do it at once.

        Raises Refusal when the pepper is lost or damaged: with a new one every key would silently stop working.
        """
        path = store.home / PEPPER_NAME
        try:
            with locked(store.home):
                if not path.exists():
                    _refuse_if_keys_exist(store)
                    write_private(path, secrets.token_bytes(PEPPER_BYTES))
                pepper = path.read_bytes()
        except OSError as error:
            raise Refusal(f"The file {path} cannot be used: {(error.strerror or 'unknown error').lower()}.") from None
        if len(pepper) != PEPPER_BYTES:
            raise Refusal(f"The file {path} is damaged ({len(pepper)} bytes, not {PEPPER_BYTES}): restore it.")
        return cls(pepper)

    def digest(self, key: str) -> bytes:
        """HMAC-SHA256 of the whole key: 32 bytes."""
        return hmac.digest(self._pepper, key.encode(), hashlib.sha256)


def _refuse_if_keys_exist(store: Store) -> None:
    with store.begin() as connection:
        count = connection.scalar(select(func.count()).select_from(keys)) or 0
    if count:
        raise Refusal(
            f"The file {store.home / PEPPER_NAME} is missing and none of the {count} keys works without it: "
            "restore it from your backup."
        )
