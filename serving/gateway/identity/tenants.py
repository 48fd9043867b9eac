"""Tenants: whose call is this? Asked once per request, before anything is decided; a `Caller` is the only way on.

Answers are cached and outlive an outage of the database; what operators change is forgotten within a second. A look-up runs in
a thread, once for all requests that need it.
Two clocks: ages are on the monotonic one, which nobody sets; only a key's own end is a date, on the wall clock.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Self

import msgspec
from sqlalchemy import Row, bindparam, or_, select

from serving.errors import (
    KeyExpired,
    KeyRevoked,
    SessionEnded,
    StoreUnavailable,
    TenantDisabled,
    Unauthenticated,
    UnknownTenant,
)
from serving.gateway import policies
from serving.gateway.identity import rights
from serving.gateway.identity.changes import Kind, News
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of
from serving.gateway.nouns import OIDC, Caller
from serving.gateway.store.store import Store
from serving.gateway.store.tables import keys, sessions
from serving.gateway.store.tables import tenants as tenants_table

#: Keys remembered as valid; at about 0.5 KB each some 50 MB where as many are in use.
VALID_KEYS_MAX = 100_000
#: Keys remembered as unknown, apart from the valid ones: a flood of guesses must not push those out.
UNKNOWN_KEYS_MAX = 10_000
#: Seconds a key that was valid keeps working while the store cannot be asked.
OUTAGE_GRACE_S = 3600.0
#: Seconds without asking the store after it failed: requests must not queue behind a database that hangs.
STORE_RETRY_S = 1.0
#: Seconds without a look-up after which its connections are closed: at rest a SQLite file is complete without its log.
LOOKUP_REST_S = 1.0
#: A bulkhead: a hanging database takes these threads and no others.
LOOKUP_THREADS = 4

# Fixed words: the salt key is derived from the pepper and must not equal any key's digest.
_SALT_PURPOSE = "prefix cache salt"

#: In place of the id of what is not there.
_UNKNOWN = ""

log = logging.getLogger(__name__)


class _Answer(msgspec.Struct, frozen=True):
    """What the store said of one key or tenant, and when: its caller, or why there is none."""

    caller: Caller | None
    #: On the monotonic clock.
    asked_at: float
    #: Seconds since the epoch.
    expires_at: float | None = None
    #: Why there is none from then on.
    expiry: type[Unauthenticated] = KeyExpired
    refusal: type[Unauthenticated] = Unauthenticated
    #: Ids of what it was asked about: a change of any makes it old.
    subjects: tuple[str, ...] = ()

    def is_fresh(self, now: float, lifetime_s: float) -> bool:
        return now - self.asked_at < lifetime_s

    def admitted(self, epoch_s: float) -> Caller:
        """Raises Unauthenticated."""
        if self.caller is None:
            raise _REFUSED[self.refusal]()
        if self.expires_at is not None and epoch_s >= self.expires_at:
            raise _REFUSED[self.expiry]()
        return self.caller


class Tenants:
    """Identifies callers by their keys. `with Tenants(store, keyring, key_cache_s=10, lookup_timeout_s=2) as tenants: …`"""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        *,
        key_cache_s: float,
        lookup_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        valid_keys_max: int = VALID_KEYS_MAX,
        unknown_keys_max: int = UNKNOWN_KEYS_MAX,
    ) -> None:
        self._store = store
        self.keyring = keyring
        self._salt_of = lru_cache(valid_keys_max)(partial(_salt, keyring.digest(_SALT_PURPOSE)))
        self._key_cache_s = key_cache_s
        self._lookup_timeout_s = lookup_timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._valid_keys_max = valid_keys_max
        self._unknown_keys_max = unknown_keys_max
        self._valid: OrderedDict[bytes, _Answer] = OrderedDict()
        self._unknown: OrderedDict[bytes, _Answer] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[_Answer | None]] = {}
        #: Id of a key or tenant → when it was learned that it has changed, on the clock: answers from before are old.
        self._changed_at: dict[str, float] = {}
        self._anything_changed_at = -math.inf
        self._ask_again_at = -math.inf
        self._rest: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="key-lookup")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._rest.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def identify(self, key: str | None) -> Caller:
        """The caller behind `key`, as presented.

        Raises Unauthenticated, or a class of it that says more, for a key that is missing, malformed, unknown, revoked, expired or of a disabled tenant,
        and StoreUnavailable when the store cannot be asked about a key that is not remembered.
        """
        if key is None:
            raise Unauthenticated(
                "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY' or as 'x-api-key'."
            )
        if id_of(key) is None:
            raise _REFUSED[Unauthenticated]()
        digest = self.keyring.digest(key)
        answer = await self._answer(digest, partial(self._read, digest))
        return answer.admitted(self._wall_clock())

    async def of_tenant(self, name: str) -> Caller:
        """The caller that a tenant is, for one who has shown to belong to it otherwise than by a key.

        Raises UnknownTenant, TenantDisabled, and StoreUnavailable as `identify` does.
        """
        answer = await self._answer(_NAMED + name.encode(), partial(self._read_tenant, name))
        return answer.admitted(self._wall_clock())

    async def of_session(self, session_id: str, issuers: frozenset[str]) -> Caller:
        """The caller whose session it is; one that single sign-on began counts while its issuer is among `issuers`.

        Raises SessionEnded, what `identify` raises of its key, and StoreUnavailable as `identify` does.
        """
        read = partial(self._read_session, session_id, issuers)
        answer = await self._answer(_SIGNED_IN + session_id.encode(), read)
        return answer.admitted(self._wall_clock())

    async def as_now(self, tenant_id: str, key_id: str) -> Caller:
        """One who called before, as the key and the tenant are now; of a token, its tenant. Raises as `identify` does."""
        if key_id == OIDC:
            answer = await self._answer(_BY_ID + tenant_id.encode(), partial(self._read_tenant_by_id, tenant_id))
            return msgspec.structs.replace(answer.admitted(self._wall_clock()), key_id=OIDC)
        answer = await self._answer(_KEY_BY_ID + key_id.encode(), partial(self._read_key_by_id, key_id))
        return answer.admitted(self._wall_clock())

    def forget(self, news: News) -> None:
        """What has changed is asked for anew; what cannot be asked is remembered on."""
        now = self._clock()
        if news.changes is None:
            self._anything_changed_at = now
            return
        # An answer that is older is asked for anew in any case.
        self._changed_at = {it: at for it, at in self._changed_at.items() if now - at < self._key_cache_s}
        self._changed_at |= {change.subject: now for change in news.changes if change.kind in _REMEMBERED}
        # What was unknown may be what was made.
        self._changed_at[_UNKNOWN] = now

    def cache_salt(self, caller: Caller) -> str:
        """What keeps a tenant's cached prefixes apart from all others': stable, and not guessable from the tenant's id."""
        return self._salt_of(caller.tenant_id)

    def derived_key(self, purpose: bytes) -> bytes:
        """A key for one purpose that all gateways of an installation share."""
        return self.keyring.derived(purpose)

    def _remembered(self, digest: bytes, lifetime_s: float) -> _Answer | None:
        for answers in (self._valid, self._unknown):
            answer = answers.get(digest)
            if answer is not None and answer.is_fresh(self._clock(), lifetime_s) and not self._is_outdated(answer):
                answers.move_to_end(digest)
                return answer
        return None

    def _is_outdated(self, answer: _Answer) -> bool:
        changed_at = self._changed_at
        if changed_at and any(changed_at.get(it, -math.inf) >= answer.asked_at for it in answer.subjects):
            return True
        return self._anything_changed_at >= answer.asked_at

    def _remembered_as_valid(self, digest: bytes) -> _Answer | None:
        answer = self._valid.get(digest)
        return answer if answer is not None and answer.is_fresh(self._clock(), OUTAGE_GRACE_S) else None

    def _remember(self, digest: bytes, answer: _Answer) -> None:
        self._valid.pop(digest, None)
        answers = self._valid if answer.caller else self._unknown
        answers[digest] = answer
        if len(answers) > (self._valid_keys_max if answer.caller else self._unknown_keys_max):
            answers.popitem(last=False)

    async def _answer(self, asked: bytes, read: Callable[[], _Answer]) -> _Answer:
        answer = self._remembered(asked, self._key_cache_s)
        if answer is None:
            answer = await self._ask(asked, read) or self._remembered_as_valid(asked)
        if answer is None:
            raise StoreUnavailable("no answer about a key that is not remembered")
        return answer

    async def _ask(self, asked: bytes, read: Callable[[], _Answer]) -> _Answer | None:
        """The store's answer, asked once for everyone who waits for it; None when it has none in time."""
        if self._clock() < self._ask_again_at:
            return None
        lookup = self._lookups.get(asked)
        if lookup is None:
            lookup = self._lookups[asked] = asyncio.create_task(self._look_up(asked, read))
            lookup.add_done_callback(lambda _: self._lookups.pop(asked, None))
        # Shielded: one client that leaves must not fail the others who wait for the same answer.
        return await asyncio.shield(lookup)

    async def _look_up(self, asked: bytes, read: Callable[[], _Answer]) -> _Answer | None:
        loop = asyncio.get_running_loop()
        thread = loop.run_in_executor(self._threads, read)
        if self._rest:
            self._rest.cancel()
        self._rest = loop.call_later(LOOKUP_REST_S, self._threads.submit, self._store.rest_from_looking)
        try:
            answer = await asyncio.wait_for(thread, self._lookup_timeout_s)
        except (StoreUnavailable, TimeoutError) as error:
            self._ask_again_at = self._clock() + STORE_RETRY_S
            reason = error.reason if isinstance(error, StoreUnavailable) else "no answer in time"
            log.warning("the store cannot be asked about a key: %s", reason)
            return None
        self._remember(asked, answer)
        return answer

    def _read(self, digest: bytes) -> _Answer:
        asked_at = self._clock()
        with self._store.looking() as connection:
            row = connection.execute(_LOOKUP, {"digest": digest}).one_or_none()
        # Compared once more in constant time: an index walk's timing tells nothing about an HMAC, nor may this.
        is_known = hmac.compare_digest(row.digest if row else bytes(len(digest)), digest)
        return _about_key(row if is_known else None, asked_at)

    def _read_key_by_id(self, key_id: str) -> _Answer:
        asked_at = self._clock()
        with self._store.looking() as connection:
            return _about_key(connection.execute(_LOOKUP_BY_ID, {"id": key_id}).one_or_none(), asked_at)

    def _read_session(self, session_id: str, issuers: frozenset[str]) -> _Answer:
        asked_at = self._clock()
        with self._store.looking() as connection:
            row = connection.execute(_SESSION, {"session": session_id}).one_or_none()
        if row is None or (row.issuer is not None and row.issuer not in issuers):
            return _Answer(None, asked_at, refusal=SessionEnded, subjects=(session_id,))
        subjects = (session_id, row.tenant_id, row.id or session_id)
        if row.revoked_at is not None or row.disabled_at is not None:
            why = KeyRevoked if row.revoked_at is not None else TenantDisabled
            return _Answer(None, asked_at, refusal=why, subjects=subjects)
        caller = _of_person(row) if row.id is None else _of_key(row)
        if row.expires_at is not None and row.expires_at < row.ends_at:
            return _Answer(caller, asked_at, row.expires_at, subjects=subjects)
        return _Answer(caller, asked_at, row.ends_at, SessionEnded, subjects=subjects)

    def _read_tenant(self, name: str) -> _Answer:
        asked_at = self._clock()
        with self._store.looking() as connection:
            return _about_tenant(connection.execute(_NAMED_TENANT, {"name": name}).one_or_none(), asked_at)

    def _read_tenant_by_id(self, tenant_id: str) -> _Answer:
        asked_at = self._clock()
        with self._store.looking() as connection:
            return _about_tenant(connection.execute(_TENANT_BY_ID, {"id": tenant_id}).one_or_none(), asked_at)


def _about_key(row: Row[*tuple[Any, ...]] | None, asked_at: float) -> _Answer:
    if row is None:
        return _Answer(None, asked_at, subjects=(_UNKNOWN,))
    subjects = (row.id, row.tenant_id)
    if row.revoked_at is not None or row.disabled_at is not None:
        why = KeyRevoked if row.revoked_at is not None else TenantDisabled
        return _Answer(None, asked_at, refusal=why, subjects=subjects)
    return _Answer(_of_key(row), asked_at, row.expires_at, subjects=subjects)


def _about_tenant(row: Row[*tuple[Any, ...]] | None, asked_at: float) -> _Answer:
    if row is None:
        return _Answer(None, asked_at, refusal=UnknownTenant, subjects=(_UNKNOWN,))
    if row.disabled_at is not None:
        return _Answer(None, asked_at, refusal=TenantDisabled, subjects=(row.id,))
    caller = Caller(row.id, row.name, "", tenant_policy=policies.read(row.policy))
    return _Answer(caller, asked_at, subjects=(row.id,))


def _of_key(row: Row[*tuple[Any, ...]]) -> Caller:
    return Caller(
        row.tenant_id,
        row.name,
        row.id,
        rights.read(row.rights),
        rights.role(row.role),
        policies.read(row.tenant_policy),
        policies.read(row.policy),
    )


def _of_person(row: Row[*tuple[Any, ...]]) -> Caller:
    return Caller(
        row.tenant_id,
        row.name,
        OIDC,
        role=rights.role(row.said_role),
        tenant_policy=policies.read(row.tenant_policy),
        user_ref=row.user_ref,
    )


#: Kinds of what answers are about.
_REMEMBERED = (Kind.KEY, Kind.TENANT, Kind.SESSION)
# Before a tenant's name, or a session's id: no digest of a key is as long as this and a name.
_NAMED = b"a tenant by its name, which is longer: "
_SIGNED_IN = b"a session by its id, which is longer: "
_BY_ID = b"a tenant by its id, which is longer: "
_KEY_BY_ID = b"a key by its id, which is longer than a digest: "
_TENANT_BY_ID = select(tenants_table).where(tenants_table.c.id == bindparam("id"))
_NAMED_TENANT = select(tenants_table).where(tenants_table.c.name == bindparam("name"))
# What is told of a key and its tenant, however it was found.
_KEY = (
    keys.c.id,
    keys.c.revoked_at,
    keys.c.expires_at,
    keys.c.rights,
    keys.c.role,
    keys.c.policy,
    tenants_table.c.policy.label("tenant_policy"),
    tenants_table.c.name,
    tenants_table.c.disabled_at,
)
_KEYS = select(*_KEY, keys.c.digest, keys.c.tenant_id).join_from(keys, tenants_table)
_LOOKUP = _KEYS.where(keys.c.digest == bindparam("digest"))
_LOOKUP_BY_ID = _KEYS.where(keys.c.id == bindparam("id"))


_SESSION = (
    select(
        sessions.c.tenant_id,
        sessions.c.issuer,
        sessions.c.user_ref,
        sessions.c.role.label("said_role"),
        sessions.c.ends_at,
        *_KEY,
    )
    .select_from(
        sessions.join(tenants_table, tenants_table.c.id == sessions.c.tenant_id).outerjoin(
            keys, keys.c.id == sessions.c.key_id
        )
    )
    # Of a key that was withdrawn, nothing is left.
    .where(sessions.c.id == bindparam("session"), or_(keys.c.id.is_not(None), sessions.c.key_id.is_(None)))
)


def _salt(key: bytes, tenant_id: str) -> str:
    return hmac.digest(key, b"prefix-cache:" + tenant_id.encode(), "sha256").hex()


#: Why a credential is refused → the error a client gets.
_REFUSED: dict[type[Unauthenticated], Callable[[], Unauthenticated]] = {
    Unauthenticated: lambda: Unauthenticated("Incorrect API key provided."),
    KeyRevoked: lambda: KeyRevoked("This API key was revoked."),
    SessionEnded: lambda: SessionEnded("This session has ended: sign in again."),
    KeyExpired: lambda: KeyExpired("This API key has expired."),
    TenantDisabled: lambda: TenantDisabled("The tenant of these credentials is disabled."),
    UnknownTenant: lambda: UnknownTenant("The token names no tenant of this service."),
}
