"""Repetitions: a creation that is asked for again with the same `Idempotency-Key` happens once, and has the same answer.

What is made and its answer are kept in one transaction: there is no moment in which one is there without the other, on any
gateway. An answer may hold a new key, so it is kept sealed (AES-256-GCM, under a key derived from the pepper), for a day.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, delete, insert, select

from serving.errors import IdempotencyKeyReused
from serving.gateway.identity.registry import Registry
from serving.gateway.nouns import Caller
from serving.gateway.store.tables import idempotency

#: Seconds for which an answer is kept.
KEPT_S = 24 * 3600.0
#: What the key is derived for.
PURPOSE = b"answers to creations, version 1"

_NONCE_BYTES = 12


class Asked(msgspec.Struct, frozen=True):
    """One creation: who asks, under which `Idempotency-Key`, for what."""

    caller: Caller
    key: str
    #: The same for the same request.
    request: bytes


class Repetitions:
    """Creations of one store. Methods block; they raise StoreUnavailable in an outage."""

    def __init__(self, key: bytes, wall_clock: Callable[[], float]) -> None:
        self._key = key
        self._cipher = AESGCM(key)
        self._wall_clock = wall_clock

    def once(self, registry: Registry, asked: Asked, make: Callable[[Registry], bytes]) -> bytes:
        """The answer that `make` gives, or gave. Where it raises, nothing is kept.

        Raises IdempotencyKeyReused where the caller sent that key with another request.
        """
        entry = self._digest(asked.caller.tenant_id, asked.caller.key_id, asked.caller.user_ref or "", asked.key).hex()
        digest = self._digest(asked.request)
        with registry.together() as (acts, connection):
            self._remove_old(connection)
            kept = connection.execute(select(idempotency).where(idempotency.c.id == entry)).one_or_none()
            if kept is None:
                answer = make(acts)
                values = {"request_digest": digest, "sealed": self._sealed(answer, entry)}
                connection.execute(insert(idempotency).values(id=entry, made_at=self._wall_clock(), **values))
                return answer
        if not hmac.compare_digest(kept.request_digest, digest):
            raise IdempotencyKeyReused("This Idempotency-Key was sent before, with another request.")
        return self._cipher.decrypt(kept.sealed[:_NONCE_BYTES], kept.sealed[_NONCE_BYTES:], entry.encode())

    def remove_old(self, registry: Registry) -> None:
        """Remove answers whose day is over."""
        with registry.together() as (_, connection):
            self._remove_old(connection)

    def _remove_old(self, connection: Connection) -> None:
        connection.execute(delete(idempotency).where(idempotency.c.made_at <= self._wall_clock() - KEPT_S))

    def _sealed(self, answer: bytes, entry: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, answer, entry.encode())

    def _digest(self, *parts: str | bytes) -> bytes:
        return hmac.digest(self._key, msgspec.json.encode(parts), "sha256")
