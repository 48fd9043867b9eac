"""JWKS: the public keys of an issuer, fetched in the background and remembered. A call waits for the issuer only where the key that
signed its token is not known, and then at a bounded rate.

Known keys are looked up in memory, whatever becomes of the issuer: they outlive its outage by `outage_grace_s` (TEN-3).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote_plus, urlsplit

import aiohttp
import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm

from serving import config
from serving.errors import IssuerUnavailable, Refusal, UnknownSigningKey

DISCOVERY_PATH = "/.well-known/openid-configuration"
#: Seconds the issuer may take for one question, discovery and keys together.
FETCH_S = 5.0
#: Bytes of one of its documents, and keys in it.
DOCUMENT_BYTES_MAX = 256 * 1024
KEYS_MAX = 100
#: Seconds between two attempts while the issuer cannot be asked: the first, and at most.
RETRY_S = 1.0
RETRY_MAX_S = 60.0
#: Questions for unknown keys that may follow one another at once: a rotation of several keys.
LOOKUPS_AT_ONCE = 5
#: Names of keys that the issuer was asked for in vain; of more the oldest are forgotten.
MISSING_MAX = 1_000
#: Characters of a key's name; a longer one is looked up nowhere.
KEY_ID_CHARS_MAX = 255

#: Algorithm → the kind of key that it takes, and the curve. A key may name an algorithm itself, and most issuers' do not.
_KINDS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}

log = logging.getLogger(__name__)

T = TypeVar("T")


class PublicKey(NamedTuple):
    """A key as the issuer publishes it, and as one algorithm uses it."""

    published: dict[str, Any]
    jwk: jwt.PyJWK


class Unanswered(Exception):
    """The issuer gave no keys; the reason is for the operator's log."""


#: Name of the key and algorithm → the key. A key without a name has None.
KeySet = dict[tuple[str | None, str], PublicKey]


def read(document: object, algorithms: Sequence[str]) -> KeySet:
    """The keys of a JWKS that verify by these algorithms; others are for something else, or of no use. Raises Unanswered."""
    published = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(published, list):
        raise Unanswered("its keys are no JWKS")
    found = {
        (data.get("kid"), algorithm): PublicKey(data, jwk)
        for data in published[:KEYS_MAX]
        if isinstance(data, dict) and data.get("use", "sig") == "sig" and isinstance(data.get("kid", ""), str)
        for algorithm in algorithms
        if (jwk := _usable(data, algorithm)) is not None
    }
    if not found:
        raise Unanswered("it publishes no key for the algorithms that are allowed")
    return found


def _usable(data: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    kind, curve = _KINDS[algorithm]
    if data.get("kty") != kind or data.get("alg", algorithm) != algorithm or (curve and data.get("crv") != curve):
        return None
    try:
        jwk = jwt.PyJWK(data, algorithm)
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
        return None
    # Too short to be safe (RFC 7518, section 3).
    return None if jwk.Algorithm.check_key_length(jwk.key) else jwk


class Allowance:
    """So many at once, then one in each interval."""

    def __init__(self, at_once: int, interval_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._ahead_s = (at_once - 1) * interval_s
        self._clock = clock
        #: When all of them are free again.
        self._full_at = -math.inf

    def take(self) -> bool:
        full_at = max(self._full_at, now := self._clock())
        if full_at - now > self._ahead_s:
            return False
        self._full_at = full_at + self._interval_s
        return True


class Keys:
    """The keys of one issuer. `fetch` gives its JWKS or raises Unanswered."""

    def __init__(
        self,
        settings: config.Issuer,
        fetch: Callable[[], Awaitable[object]],
        clock: Callable[[], float],
        waiters_max: int,
    ) -> None:
        self._settings = settings
        self._fetch = fetch
        self._clock = clock
        self._waiters_max = waiters_max
        self._keys: KeySet = {}
        self._answered_at = -math.inf
        self._fetching: asyncio.Task[bool] | None = None
        self._waiting = 0
        self._lookups = Allowance(LOOKUPS_AT_ONCE, settings.lookup_interval_s, clock)
        #: Name of a key that the issuer did not have → when it was asked.
        self._missing: OrderedDict[str, float] = OrderedDict()
        self._is_answering = False
        self._failures = 0

    @property
    def is_answering(self) -> bool:
        """Did the issuer publish its keys when it was last asked?"""
        return self._is_answering

    async def run(self) -> None:
        """Keep them fresh until cancelled."""
        while True:
            if await self.refresh():
                # Gateways that started together need not ask together.
                await asyncio.sleep(self._settings.refresh_s * random.uniform(0.9, 1.1))  # noqa: S311 No secret.
            else:
                await asyncio.sleep(min(RETRY_S * 2.0 ** min(self._failures - 1, 16), RETRY_MAX_S))

    async def refresh(self) -> bool:
        """Ask the issuer, once for everyone who wants to know; False where it does not answer."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._ask())
        # Shielded: a client that leaves must not fail the others.
        return await asyncio.shield(self._fetching)

    def close(self) -> None:
        """Give up the question that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()

    def known(self, key_id: str | None, algorithm: str) -> PublicKey | None:
        """A key in memory. A token need not name its key where only one fits (OpenID Connect Core, section 10.1)."""
        if self._clock() - self._answered_at > self._settings.outage_grace_s:
            return None
        if key_id is not None:
            return self._keys.get((key_id, algorithm))
        fitting = [key for (_, made_for), key in self._keys.items() if made_for == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    async def found(self, key_id: str | None, algorithm: str) -> PublicKey:
        """A key, from the issuer where it is not in memory: it may have been rotated in a moment ago.

        Raises UnknownSigningKey where the issuer has none of that name, or was asked too often just now to be asked again, and
        IssuerUnavailable where it does not answer.
        """
        if key := self.known(key_id, algorithm):
            return key
        if self._waiting >= self._waiters_max:
            raise IssuerUnavailable
        self._waiting += 1
        try:
            return await self._looked_up(key_id, algorithm)
        finally:
            self._waiting -= 1

    async def _looked_up(self, key_id: str | None, algorithm: str) -> PublicKey:
        # A question that was under way already may have been answered before the rotation: then it is asked once more.
        for _ in range(2):
            is_ours = self._fetching is None
            if is_ours and not self._may_ask_for(key_id):
                break
            is_answered = await self.refresh()
            if key := self.known(key_id, algorithm):
                return key
            if is_ours and is_answered:
                self._note_missing(key_id)
            if is_ours or not is_answered:
                break
        if not self._is_answering:
            raise IssuerUnavailable
        raise UnknownSigningKey("The key that signed this token is not one that its issuer publishes.")

    def _may_ask_for(self, key_id: str | None) -> bool:
        if key_id is None or len(key_id) > KEY_ID_CHARS_MAX:
            return False
        asked_at = self._missing.get(key_id, -math.inf)
        # One client with an old token must not use up the questions that a rotated key needs.
        return self._clock() - asked_at >= self._settings.lookup_interval_s and self._lookups.take()

    def _note_missing(self, key_id: str | None) -> None:
        if key_id is None:
            return
        self._missing.pop(key_id, None)
        self._missing[key_id] = self._clock()
        if len(self._missing) > MISSING_MAX:
            self._missing.popitem(last=False)

    async def _ask(self) -> bool:
        try:
            self._take(read(await self._fetch(), self._settings.algorithms))
        except Unanswered as error:
            if self._is_answering or not self._failures:
                log.warning("no keys from the issuer %s: %s", self._settings.issuer, error)
            self._is_answering, self._failures = False, self._failures + 1
        else:
            if self._failures:
                log.info("the issuer %s publishes its keys again", self._settings.issuer)
            self._is_answering, self._failures = True, 0
        finally:
            self._fetching = None
        return self._is_answering

    def _take(self, keys: KeySet) -> None:
        for name, key in keys.items():
            old = self._keys.get(name)
            # What has not changed stays the same object: what was verified with it stays verified.
            if old is not None and old.published == key.published:
                keys[name] = old
        self._keys, self._answered_at = keys, self._clock()


class Places(NamedTuple):
    """Where an issuer takes people in and codes back."""

    authorization: str
    token: str
    #: The client's secret goes into a header (`client_secret_basic`), and else into the form.
    takes_basic: bool


class Endpoint:
    """Where an issuer publishes its keys, and signs people in: asks over HTTP, while `opened`."""

    def __init__(self, settings: config.Issuer) -> None:
        """Raises Refusal when the file of its CA cannot be used."""
        self._issuer = settings.issuer
        self._tls = _trusting(settings.ca_file) if settings.ca_file else True
        self._session: aiohttp.ClientSession | None = None
        #: What discovery said; None until it did, and after a question that failed.
        self._document: dict[str, Any] | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open its connections in the running event loop, and close them at the end."""
        timeout = aiohttp.ClientTimeout(total=FETCH_S)
        connector = aiohttp.TCPConnector(ssl=self._tls, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            try:
                yield
            finally:
                self._session = None

    async def fetch(self) -> object:
        """Its JWKS. Where the place that discovery named does not answer, it is discovered anew the next time."""
        return await self._asked(self._fetch())

    async def places(self) -> Places:
        """Where people sign in. Raises Unanswered."""
        return await self._asked(self._places())

    async def redeem(self, form: Mapping[str, str], client_id: str, secret: str | None) -> dict[str, Any]:
        """What its token endpoint gives for a code; empty where it takes the code or the client for wrong. Raises Unanswered."""
        return await self._asked(self._redeem(form, client_id, secret))

    async def _asked(self, answer: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(FETCH_S):
                return await answer
        except Unanswered:
            self._document = None
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._document = None
            raise Unanswered(type(error).__name__) from None

    async def _fetch(self) -> object:
        return await self._get(self._place(await self._discovered(), "jwks_uri", "place of keys"))

    async def _places(self) -> Places:
        document = await self._discovered()
        ways = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return Places(
            self._place(document, "authorization_endpoint", "page to sign in"),
            self._place(document, "token_endpoint", "place of tokens"),
            "client_secret_basic" in ways,
        )

    async def _redeem(self, form: Mapping[str, str], client_id: str, secret: str | None) -> dict[str, Any]:
        places = await self._places()
        headers, said = {}, dict(form)
        if secret is not None and places.takes_basic:
            # Encoded once more before base64 (RFC 6749, section 2.3.1).
            headers["authorization"] = aiohttp.encode_basic_auth(quote_plus(client_id), quote_plus(secret))
        else:
            said |= {"client_id": client_id} | ({} if secret is None else {"client_secret": secret})
        response = self._opened_session.post(places.token, data=said, headers=headers, allow_redirects=False)
        answer = await self._read(response, also=(400, 401, 403))
        return answer if isinstance(answer, dict) else {}

    async def _discovered(self) -> dict[str, Any]:
        if self._document is None:
            document = await self._get(self._issuer.rstrip("/") + DISCOVERY_PATH)
            if not isinstance(document, dict) or document.get("issuer") != self._issuer:
                raise Unanswered("its discovery document is another issuer's, or none")
            self._document = document
        return self._document

    def _place(self, document: dict[str, Any], name: str, what: str) -> str:
        url = document.get(name)
        if not isinstance(url, str) or urlsplit(url).scheme not in ("https", urlsplit(self._issuer).scheme):
            raise Unanswered(f"its discovery document names no {what} that is as safe as the issuer")
        return url

    @property
    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise Unanswered("this gateway starts or stops")
        return self._session

    async def _get(self, url: str) -> object:
        # A redirect could lead anywhere.
        return await self._read(self._opened_session.get(url, allow_redirects=False))

    async def _read(
        self, asked: AbstractAsyncContextManager[aiohttp.ClientResponse], also: Collection[int] = ()
    ) -> object:
        async with asked as response:
            if response.status != 200 and response.status not in also:
                raise Unanswered(f"status {response.status}")
            body = await _bounded(response.content)
        try:
            return msgspec.json.decode(body)
        except (ValueError, RecursionError):
            raise Unanswered("an answer that is no JSON") from None


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise Refusal(f"The file {ca_file} is no CA certificate that can be used: {error.strerror}.") from None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > DOCUMENT_BYTES_MAX:
            raise Unanswered(f"an answer of more than {DOCUMENT_BYTES_MAX} bytes")
    return bytes(body)
