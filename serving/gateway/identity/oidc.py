"""OIDC: what a token of single sign-on says, once it is verified: the tenant, the person, the role. Pure but for the clock that PyJWT
reads; the issuer's keys are passed in.

PyJWT verifies (TEN-2); each of its refusals becomes one of ours, in a sentence of our own: what a token claims is repeated nowhere.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import Any

import jwt
import msgspec
from jwt.types import Options

from serving import config
from serving.errors import (
    AlgorithmNotAllowed,
    InvalidSignature,
    MalformedToken,
    TokenExpired,
    TokenNotYetValid,
    Unauthenticated,
    UnknownTenant,
    WrongAudience,
    WrongIssuer,
)
from serving.gateway.identity.end_users import is_name
from serving.gateway.identity.jwks import PublicKey
from serving.gateway.identity.records import NAME_PATTERN
from serving.gateway.nouns import Role

#: Characters of a token; one that names two hundred groups has 12,000.
TOKEN_CHARS_MAX = 16 * 1024

#: A date is a number, and no float holds every one of those.
_END_MAX = 2**53
# A token without an end would be one for ever.
_EVERYTHING: Options = {"require": ["exp"]}
# Without the signature's check PyJWT makes none of the others, except those that are named.
_ALL_BUT_THE_SIGNATURE: Options = {
    "verify_signature": False,
    "require": ["exp"],
    "verify_exp": True,
    "verify_nbf": True,
    "verify_iat": True,
    "verify_aud": True,
    "verify_iss": True,
}

_TENANT = re.compile(NAME_PATTERN)
#: From the least to the most.
_ROLES = (Role.MEMBER, Role.TENANT_ADMIN, Role.PLATFORM_ADMIN)


class Heading(msgspec.Struct, frozen=True):
    """What a token says of itself, of which nothing is verified."""

    issuer: object
    algorithm: object
    key_id: str | None


class Verified(msgspec.Struct, frozen=True):
    """What a verified token says."""

    #: The tenant's name.
    tenant: str
    user: str
    role: Role
    #: Seconds since the epoch, the clock's skew included.
    ends_at: float

    def require_valid(self, epoch_s: float) -> None:
        """Raises TokenExpired: its time may have run out since it was verified."""
        if epoch_s >= self.ends_at:
            raise _refused(TokenExpired)


def is_token(key: str) -> bool:
    """Is this rather a token than a key? Keys have no dots."""
    return key.count(".") == 2


def heading(token: str) -> Heading:
    """Raises MalformedToken."""
    if len(token) > TOKEN_CHARS_MAX:
        raise _refused(MalformedToken)
    try:
        read = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError):
        raise _refused(MalformedToken) from None
    key_id = read["header"].get("kid")
    if key_id is not None and not isinstance(key_id, str):
        raise _refused(MalformedToken)
    return Heading(read["payload"].get("iss"), read["header"].get("alg"), key_id)


def algorithm(read: Heading, issuer: config.Issuer) -> str:
    """The algorithm of a token; raises AlgorithmNotAllowed."""
    for allowed in issuer.algorithms:
        if read.algorithm == allowed:
            return allowed
    raise _refused(AlgorithmNotAllowed)


def require_claims(token: str, issuer: config.Issuer) -> None:
    """Raises what `verified` would, before there is a key: a token that is refused in any case is no reason to look for one."""
    _decoded(token, issuer, None)


def verified(token: str, issuer: config.Issuer, key: PublicKey, nonce: str | None = None) -> Verified:
    """What it says; raises Unauthenticated, by the class that says why.

    An ID token answers one question, of which `nonce` is the name, and was made for one party (OpenID Connect Core 3.1.3.7).
    """
    claims = _decoded(token, issuer, key)
    if nonce is not None:
        _require_answers(claims, issuer, nonce)
    return Verified(
        tenant=_tenant(claims, issuer),
        user=_user(claims, issuer),
        role=_role(claims, issuer),
        ends_at=min(int(claims["exp"]), _END_MAX) + issuer.clock_skew_s,
    )


def _require_answers(claims: dict[str, Any], issuer: config.Issuer, nonce: str) -> None:
    if not hmac.compare_digest(str(claims.get("nonce")).encode(), nonce.encode()):
        raise MalformedToken("The token answers another sign-in.")
    if claims.get("azp", issuer.audiences[0]) not in issuer.audiences:
        raise _refused(WrongAudience)


def _decoded(token: str, issuer: config.Issuer, key: PublicKey | None) -> dict[str, Any]:
    try:
        return jwt.decode(
            token,
            key.jwk if key else "",
            algorithms=issuer.algorithms,
            options=_EVERYTHING if key else _ALL_BUT_THE_SIGNATURE,
            audience=issuer.audiences,
            issuer=issuer.issuer,
            leeway=issuer.clock_skew_s,
        )
    except jwt.MissingRequiredClaimError as error:
        raise _refused({"aud": WrongAudience, "iss": WrongIssuer}.get(error.claim, MalformedToken)) from None
    except jwt.PyJWTError as error:
        raise _refused(_ours(error)) from None


def _ours(error: jwt.PyJWTError) -> type[Unauthenticated]:
    return next((ours for theirs, ours in _OURS if isinstance(error, theirs)), MalformedToken)


def wrong_issuer() -> Unauthenticated:
    """The refusal of a token whose issuer is not trusted here."""
    return _refused(WrongIssuer)


def _claim(claims: dict[str, Any], name: str) -> object:
    """A claim of that name, else what the dots in the name lead to."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _values(claim: object) -> list[str]:
    """The texts of a claim that may be one or a list."""
    listed: Iterable[object] = claim if isinstance(claim, list) else [claim]
    return [it for it in listed if isinstance(it, str)]


def _tenant(claims: dict[str, Any], issuer: config.Issuer) -> str:
    if issuer.tenant is not None:
        return issuer.tenant
    values = _values(_claim(claims, issuer.tenant_claim or ""))
    named = {issuer.tenants[it] for it in values if it in issuer.tenants} if issuer.tenants else set(values)
    # What cannot be a name is not looked up.
    if len(named) != 1 or not _TENANT.fullmatch(name := named.pop()):
        raise _refused(UnknownTenant)
    return name


def _user(claims: dict[str, Any], issuer: config.Issuer) -> str:
    user = _claim(claims, issuer.user_claim)
    if not isinstance(user, str) or not is_name(user):
        raise MalformedToken("The token does not say who its user is.")
    return user


def _role(claims: dict[str, Any], issuer: config.Issuer) -> Role:
    if issuer.role_claim is None:
        return Role.MEMBER
    given = {issuer.roles[it] for it in _values(_claim(claims, issuer.role_claim)) if it in issuer.roles}
    return max((Role(it) for it in given), key=_ROLES.index, default=Role.MEMBER)


#: PyJWT's refusals → ours; the first that fits, because some are kinds of others.
_OURS: tuple[tuple[type[jwt.PyJWTError], type[Unauthenticated]], ...] = (
    (jwt.ExpiredSignatureError, TokenExpired),
    (jwt.ImmatureSignatureError, TokenNotYetValid),
    (jwt.InvalidAudienceError, WrongAudience),
    (jwt.InvalidIssuerError, WrongIssuer),
    (jwt.InvalidAlgorithmError, AlgorithmNotAllowed),
    (jwt.InvalidSignatureError, InvalidSignature),
)
_SENTENCES: dict[type[Unauthenticated], str] = {
    MalformedToken: "This token cannot be read.",
    TokenExpired: "This token has expired.",
    TokenNotYetValid: "This token is not valid yet.",
    AlgorithmNotAllowed: "This token is unsigned, or signed in a way that is not allowed here.",
    WrongAudience: "This token was made for another service.",
    WrongIssuer: "No issuer that is trusted here made this token.",
    InvalidSignature: "The signature of this token is wrong.",
    UnknownTenant: "The token names no tenant of this service.",
}


def _refused(kind: type[Unauthenticated]) -> Unauthenticated:
    return kind(_SENTENCES[kind])
