"""Sign-on: people of a company's single sign-on come to the console: to their issuer and back, by an authorization code with PKCE
(OpenID Connect Core 3.1, RFC 7636).

What must be known when they come back travels with the browser, signed and for ten minutes: any gateway takes them in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import jwt
import msgspec

from serving import config
from serving.errors import IssuerUnavailable, SessionEnded, Unauthenticated
from serving.gateway.identity import oidc
from serving.gateway.identity.jwks import Endpoint, Keys, Unanswered
from serving.gateway.identity.oidc import Verified

#: What the key is derived for that signs what browsers carry.
PURPOSE = b"console sign-on, version 1"
#: Seconds in which one has to come back from the issuer.
CARRIED_S = 600.0
#: People at one issuer's token endpoint at a time: one that hangs must not hold more of the open requests.
REDEEMED_MAX = 32

log = logging.getLogger(__name__)

_ALGORITHM = "HS256"
_SECRET_BYTES = 32


class Departure(msgspec.Struct, frozen=True):
    """Where a browser goes, and what it carries meanwhile."""

    url: str
    carried: str


class Carried(msgspec.Struct, frozen=True):
    """What one takes along to the issuer and back."""

    issuer: str
    state: str
    nonce: str
    verifier: str
    #: The address here that the issuer leads back to.
    back: str


class Slips:
    """What browsers carry, as tokens that this installation alone makes."""

    def __init__(self, key: bytes, wall_clock: Callable[[], float]) -> None:
        self._key = key
        self._wall_clock = wall_clock

    def written(self, carried: Carried) -> str:
        claims = {"exp": self._wall_clock() + CARRIED_S, **msgspec.structs.asdict(carried)}
        return jwt.encode(claims, self._key, _ALGORITHM)

    def read(self, slip: str | None, state: str | None) -> Carried:
        """Raises SessionEnded for one that is not ours, has come too late, or belongs to another answer of the issuer."""
        try:
            # Its end is looked at below, by the clock that is given.
            claims = jwt.decode(slip or "", self._key, [_ALGORITHM], options={"verify_exp": False, "verify_iss": False})
            carried = msgspec.convert(claims, Carried)
        except (jwt.PyJWTError, msgspec.ValidationError):
            raise _started_elsewhere() from None
        is_ours = hmac.compare_digest(carried.state.encode(), (state or "").encode())
        if not is_ours or self._wall_clock() >= claims["exp"]:
            raise _started_elsewhere()
        return carried


class SignOn:
    """One issuer at which the console is registered."""

    def __init__(self, settings: config.Issuer, endpoint: Endpoint, keys: Keys, slips: Slips) -> None:
        client_id = settings.client_id or ""
        # ID tokens are made for the one who asked.
        self._settings = settings.model_copy(update={"audiences": (client_id,)})
        self._client_id = client_id
        self._endpoint = endpoint
        self._keys = keys
        self._slips = slips
        self._redeemed = 0

    async def departure(self, back: str) -> Departure:
        """Where to send a browser, which the issuer sends `back`. Raises IssuerUnavailable."""
        carried = Carried(self._settings.issuer, _random(), _random(), _random(), back)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(carried.verifier.encode()).digest()).rstrip(b"=")
        asked = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": back,
            "scope": " ".join(self._settings.scopes),
            "state": carried.state,
            "nonce": carried.nonce,
            "code_challenge": challenge.decode(),
            "code_challenge_method": "S256",
        }
        try:
            places = await self._endpoint.places()
        except Unanswered:
            raise IssuerUnavailable from None
        joint = "&" if "?" in places.authorization else "?"
        return Departure(f"{places.authorization}{joint}{urlencode(asked)}", self._slips.written(carried))

    async def arrival(self, carried: Carried, code: str) -> Verified:
        """Who came back with that code. Raises Unauthenticated, by the class that says why, and IssuerUnavailable."""
        if self._redeemed >= REDEEMED_MAX:
            raise IssuerUnavailable
        self._redeemed += 1
        try:
            answer = await self._endpoint.redeem(self._form(carried, code), self._client_id, self._secret())
        except Unanswered:
            raise IssuerUnavailable from None
        finally:
            self._redeemed -= 1
        token = answer.get("id_token")
        if not isinstance(token, str):
            # Such as `invalid_client`: then no one can sign in, and the operator alone can tell why.
            log.warning("the issuer %s takes a code for wrong: %.64r", self._settings.issuer, answer.get("error"))
            raise Unauthenticated("The issuer of single sign-on does not take this sign-in.")
        return await self._verified(token, carried.nonce)

    async def _verified(self, token: str, nonce: str) -> Verified:
        said = oidc.heading(token)
        algorithm = oidc.algorithm(said, self._settings)
        key = self._keys.known(said.key_id, algorithm)
        if key is None:
            oidc.require_claims(token, self._settings)
            key = await self._keys.found(said.key_id, algorithm)
        return oidc.verified(token, self._settings, key, nonce)

    def _form(self, carried: Carried, code: str) -> dict[str, str]:
        return {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": carried.back,
            "code_verifier": carried.verifier,
        }

    def _secret(self) -> str | None:
        return None if self._settings.client_secret_file is None else _line_of(self._settings.client_secret_file)


def _line_of(path: Path) -> str:
    """Read anew at each sign-in: it may have been replaced."""
    try:
        return path.read_text().strip()
    except OSError:
        raise Unanswered("the file of the client's secret cannot be read") from None


def _random() -> str:
    return secrets.token_urlsafe(_SECRET_BYTES)


def _started_elsewhere() -> SessionEnded:
    return SessionEnded("This sign-in was not begun in this browser, or too long ago: begin again.")
