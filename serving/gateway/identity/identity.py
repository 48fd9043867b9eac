"""Identity: who is calling, by a key, by a token of the company's single sign-on, or by a session that either has begun? Asked once per
request; a `Caller` is the only way on.

A token is verified once and then remembered by its digest until it ends: what RS256 and ES256 cost is paid once per token, in the
event loop, because a thread would cost as much again (TEN-5).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from serving import config
from serving.config import GatewaySettings
from serving.errors import Forbidden, InvalidRequest
from serving.gateway.http.asgi import Request
from serving.gateway.identity import cookies, oidc, sessions, sign_on
from serving.gateway.identity.changes import News
from serving.gateway.identity.end_users import NAME_CHARS_MAX, EndUsers, is_name
from serving.gateway.identity.jwks import Endpoint, Keys, PublicKey
from serving.gateway.identity.oidc import Verified
from serving.gateway.identity.sign_on import SignOn, Slips
from serving.gateway.identity.tenants import Tenants
from serving.gateway.identity.uses import Uses
from serving.gateway.nouns import OIDC, Caller, Right
from serving.gateway.store.store import Store

#: In which a service before many people says who is calling, in UTF-8.
USER_HEADER = "x-serving-user"
#: Tokens that are remembered as verified, at about 0.5 KB each.
VERIFIED_MAX = 20_000
#: Share of the open calls that may wait for one issuer: one that hangs must leave room for calls that need nothing of it.
WAITING_SHARE = 4


class _Trusted(msgspec.Struct, frozen=True):
    """An issuer and its keys."""

    settings: config.Issuer
    endpoint: Endpoint
    keys: Keys


class _Remembered(msgspec.Struct, frozen=True):
    """A verified token: what it says, and by which key. Once the issuer has withdrawn that, it must be verified again."""

    verified: Verified
    key: PublicKey
    key_id: str | None
    algorithm: str
    trusted: _Trusted

    @property
    def stands(self) -> bool:
        return self.trusted.keys.known(self.key_id, self.algorithm) is self.key


class Identity:
    """Identifies callers, while `opened`. `clock` is monotonic, `wall_clock` in seconds since the epoch."""

    def __init__(
        self,
        settings: GatewaySettings,
        store: Store,
        tenants: Tenants,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        verified_max: int = VERIFIED_MAX,
    ) -> None:
        """Raises Refusal when an issuer's CA cannot be used."""
        waiters_max = max(1, settings.max_open_requests // WAITING_SHARE)
        self._tenants = tenants
        self._wall_clock = wall_clock
        self._end_users = EndUsers(
            store, lookup_timeout_s=settings.timeouts.key_lookup_s, clock=clock, wall_clock=wall_clock
        )
        self._uses = Uses(store, wall_clock)
        self._issuers = {it.issuer: _trusted(it, clock, waiters_max) for it in settings.oidc}
        self._trusted = frozenset(self._issuers)
        self._takes_sessions = settings.console.enabled
        self.slips = Slips(tenants.derived_key(sign_on.PURPOSE), wall_clock)
        #: Issuer → how people come from there to the console.
        self.sign_ons = {
            name: SignOn(it.settings, it.endpoint, it.keys, self.slips)
            for name, it in self._issuers.items()
            if it.settings.client_id is not None
        }
        self._verified_max = verified_max
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    async def identify(self, request: Request) -> Caller:
        """The caller behind a request.

        Raises Unauthenticated, or a class of it that says more; Forbidden where it names an end user and may not, or shows a session from
        another page than the console's; InvalidRequest where it names one by what is no name; StoreUnavailable and IssuerUnavailable where
        its key or token cannot be checked now.
        """
        key, user = request.presented_key(), request.header(USER_HEADER)
        if key is None and self._takes_sessions and (word := cookies.session(request)) is not None:
            caller = await self._tenants.of_session(sessions.id_of(word), self._trusted)
        elif key is not None and self._issuers and oidc.is_token(key):
            caller = await self._by_token(key)
        else:
            caller = await self._tenants.identify(key)
        if caller.key_id != OIDC:
            self._uses.note(caller.key_id)
        return caller if user is None else await self._for_user(caller, user)

    async def of_key(self, key: str) -> Caller:
        """The caller whose key this is, which signs in with it. Raises as `identify` does."""
        caller = await self._tenants.identify(key)
        self._uses.note(caller.key_id)
        return caller

    async def of_person(self, verified: Verified) -> Caller:
        """The caller that a verified token says. Raises UnknownTenant, TenantDisabled, and StoreUnavailable."""
        tenant = await self._tenants.of_tenant(verified.tenant)
        ref = await self._end_users.reference(tenant.tenant_id, verified.user)
        return msgspec.structs.replace(tenant, key_id=OIDC, role=verified.role, user_ref=ref)

    def forget(self, news: News) -> None:
        """What has changed in the database is asked for anew."""
        self._tenants.forget(news)
        self._end_users.forget(news)

    def running(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What runs beside the calls until it is cancelled, each with the name of what it follows."""
        return [
            ("end users", self._end_users.run()),
            ("last use of keys", self._uses.run()),
            *((f"issuer {name}", it.keys.run()) for name, it in self._issuers.items()),
        ]

    def issuers_up(self) -> dict[str, bool]:
        """Issuer → did it publish its keys when it was last asked?"""
        return {name: it.keys.is_answering for name, it in self._issuers.items()}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the ways to the issuers, in the running event loop; at the end, write down what waits for the database."""
        async with AsyncExitStack() as opened:
            for it in self._issuers.values():
                await opened.enter_async_context(it.endpoint.opened())
                opened.callback(it.keys.close)
            try:
                yield
            finally:
                await self._end_users.write_down()
                await self._uses.write()
                self._end_users.close()
                self._uses.close()

    async def _by_token(self, token: str) -> Caller:
        return await self.of_person(await self._verified(token))

    async def _verified(self, token: str) -> Verified:
        digest = hashlib.sha256(token.encode()).digest()
        known = self._remembered.get(digest)
        if known is None or not known.stands:
            known = await self._verify(token)
            self._remember(digest, known)
        else:
            self._remembered.move_to_end(digest)
        known.verified.require_valid(self._wall_clock())
        return known.verified

    async def _verify(self, token: str) -> _Remembered:
        said = oidc.heading(token)
        trusted = self._issuers.get(said.issuer) if isinstance(said.issuer, str) else None
        if trusted is None:
            raise oidc.wrong_issuer()
        algorithm = oidc.algorithm(said, trusted.settings)
        key = trusted.keys.known(said.key_id, algorithm)
        if key is None:
            oidc.require_claims(token, trusted.settings)
            key = await trusted.keys.found(said.key_id, algorithm)
        return _Remembered(oidc.verified(token, trusted.settings, key), key, said.key_id, algorithm, trusted)

    def _remember(self, digest: bytes, known: _Remembered) -> None:
        self._remembered.pop(digest, None)
        self._remembered[digest] = known
        if len(self._remembered) > self._verified_max:
            self._remembered.popitem(last=False)

    async def _for_user(self, caller: Caller, sent: str) -> Caller:
        if caller.key_id == OIDC:
            raise Forbidden("A token says itself who its user is: X-Serving-User is for keys.")
        if Right.NAME_USERS not in caller.rights:
            raise Forbidden(
                "This key may not name end users (X-Serving-User): a key made with `serving keys create --allow name_users` may."
            )
        ref = await self._end_users.reference(caller.tenant_id, _name(sent))
        return msgspec.structs.replace(caller, user_ref=ref)


def _trusted(settings: config.Issuer, clock: Callable[[], float], waiters_max: int) -> _Trusted:
    endpoint = Endpoint(settings)
    return _Trusted(settings, endpoint, Keys(settings, endpoint.fetch, clock, waiters_max))


def _name(sent: str) -> str:
    """The end user's name in a header; raises InvalidRequest."""
    try:
        name = sent.encode("latin-1").decode()
    except UnicodeDecodeError:
        name = ""
    if not is_name(name):
        raise InvalidRequest(f"X-Serving-User: a name has 1 to {NAME_CHARS_MAX} printable characters, in UTF-8.")
    return name
