"""Seal: reasoning that a client carries and only gateways open, any of an installation's, for a while and for its own tenant.

AES-256-GCM with a key derived from the keys' pepper; the tenant is associated data, so that no other tenant's call opens it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Seconds a sealed reasoning opens: a session that is taken up again next week thinks anew.
SEALED_S = 7 * 24 * 3600
#: What the key is derived for.
PURPOSE = b"sealed reasoning, version 1"

_NONCE_BYTES = 12
_UNTIL = struct.Struct(">Q")


class Seal:
    """Seals and opens texts. The wall clock, because what one gateway sealed another opens."""

    def __init__(self, key: bytes, wall_clock: Callable[[], float]) -> None:
        self._cipher = AESGCM(key)
        self._wall_clock = wall_clock

    def seal(self, tenant_id: str, text: str) -> str:
        """The text as something to carry, in base64's letters for addresses."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        plain = _UNTIL.pack(int(self._wall_clock()) + SEALED_S) + text.encode()
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, plain, _bound_to(tenant_id))).decode()

    def open(self, tenant_id: str, sealed: str) -> str | None:
        """The text; None where this tenant's calls were never given it, or too long ago."""
        try:
            raw = base64.b64decode(sealed, altchars=b"-_", validate=True)
            plain = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound_to(tenant_id))
        except (binascii.Error, ValueError, InvalidTag):
            return None
        (until,) = _UNTIL.unpack_from(plain)
        return plain[_UNTIL.size :].decode() if self._wall_clock() < until else None


def _bound_to(tenant_id: str) -> bytes:
    return PURPOSE + b"\0" + tenant_id.encode()
