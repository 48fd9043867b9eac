"""Keys: what an API key looks like: `sk-<key id, 10 characters>-<secret, 43 url-safe characters = 256 bits>`."""

from __future__ import annotations

import re
import secrets
import string

PEPPER_BYTES = 32
#: Of a key of the vault (`stored/vault`).
VAULT_KEY_BYTES = 32
KEY_ID_LENGTH = 10
#: sk- + id + - + secret: anything longer is refused unread.
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
