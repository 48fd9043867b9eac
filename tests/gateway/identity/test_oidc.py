"""OIDC: each fault of a token is refused by its own code; claims become tenant, person and role."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, get_args

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serving import config
from serving.config import GatewaySettings
from serving.errors import Unauthenticated
from serving.gateway.identity import jwks, oidc
from serving.gateway.identity.oidc import Verified
from serving.gateway.nouns import Role
from tests.gateway.issuer import AUDIENCE, PERSON, Issuer, private_key, unsigned

ISSUER = Issuer()


def verified(token: str, *, issuer: Issuer = ISSUER, **settings: Any) -> Verified:
    """As the gateway does it, with the keys that the issuer publishes."""
    trusted = issuer.settings(**settings)
    heading = oidc.heading(token)
    if heading.issuer != trusted.issuer:
        raise oidc.wrong_issuer()
    algorithm = oidc.algorithm(heading, trusted)
    return oidc.verified(token, trusted, jwks.read(issuer.jwks(), trusted.algorithms)[heading.key_id, algorithm])


def code(token: str, **settings: Any) -> str | None:
    with pytest.raises(Unauthenticated) as refused:
        verified(token, **settings)
    return refused.value.code


def test_a_token_in_order_names_tenant_person_and_role() -> None:
    """The least that it needs: who made it, for whom, until when, whose it is."""
    said = verified(ISSUER.token())
    assert (said.tenant, said.user, said.role) == ("acme", PERSON, Role.MEMBER)


def hs256_with_the_public_key() -> str:
    """The classic forgery: the verifier's public key as a shared secret. PyJWT will not sign so, hence by hand."""
    pem = (
        ISSUER.keys[ISSUER.kid]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    head, body, _ = ISSUER.token().split(".")
    head = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"RS256-0"}').decode()
    signed = algorithm.sign(f"{head}.{body}".encode(), pem)
    return f"{head}.{body}.{jwt.utils.base64url_encode(signed).decode()}"


def other_signature() -> str:
    return ISSUER.token(key=private_key("RS256", 3))


def edited() -> str:
    """Another person's claims under this one's signature."""
    head, _, signature = ISSUER.token().split(".")
    return ".".join((head, ISSUER.token(sub="root").split(".")[1], signature))


FAULTS: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: ISSUER.token(exp=int(time.time()) - 3600), "token_expired"),
    "nbf in the future": (lambda: ISSUER.token(nbf=int(time.time()) + 3600), "token_not_yet_valid"),
    "iat in the future": (lambda: ISSUER.token(iat=int(time.time()) + 3600), "token_not_yet_valid"),
    "alg none": (lambda: unsigned(ISSUER.claims()), "algorithm_not_allowed"),
    "HS256 with the public key": (hs256_with_the_public_key, "algorithm_not_allowed"),
    "an algorithm that is not in the list": (lambda: ISSUER.token(algorithm="RS512"), "algorithm_not_allowed"),
    "wrong audience": (lambda: ISSUER.token(aud="api://payroll"), "wrong_audience"),
    "no audience": (lambda: ISSUER.token(aud=None), "wrong_audience"),
    "wrong issuer": (lambda: ISSUER.token(iss="https://evil.example.com"), "wrong_issuer"),
    "no issuer": (lambda: ISSUER.token(iss=None), "wrong_issuer"),
    "bad signature": (other_signature, "invalid_signature"),
    "edited": (edited, "invalid_signature"),
    "no signature": (lambda: ISSUER.token().rpartition(".")[0] + ".", "invalid_signature"),
    "no end": (lambda: ISSUER.token(exp=None), "malformed_token"),
    "an end that is no number": (lambda: ISSUER.token(exp="soon"), "malformed_token"),
    "no person": (lambda: ISSUER.token(sub=None), "malformed_token"),
    "a person that is no text": (lambda: ISSUER.token(sub=7), "malformed_token"),
    "a person with a long name": (lambda: ISSUER.token(sub="a" * 256), "malformed_token"),
    "a person with a line break": (lambda: ISSUER.token(sub="ada\nroot"), "malformed_token"),
    "no tenant": (lambda: ISSUER.token(team=None), "unknown_tenant"),
    "two tenants": (lambda: ISSUER.token(team=["acme", "globex"]), "unknown_tenant"),
    "a tenant that is no text": (lambda: ISSUER.token(team={"name": "acme"}), "unknown_tenant"),
    "a tenant that cannot be one": (lambda: ISSUER.token(team="acme\0"), "unknown_tenant"),
    "a tenant with a long name": (lambda: ISSUER.token(team="a" * 64), "unknown_tenant"),
    "a tenant that is half a character": (lambda: ISSUER.token(team="\ud800"), "unknown_tenant"),
    "no JSON": (lambda: "a.b.c", "malformed_token"),
    "empty parts": (lambda: "..", "malformed_token"),
    "no claims": (lambda: ISSUER.token().split(".")[0] + "..", "malformed_token"),
    "a name of its key that is no text": (lambda: jwt.utils.base64url_encode(b'{"alg":"RS256","kid":[]}').decode()
                                          + ISSUER.token()[ISSUER.token().index("."):], "malformed_token"),
    "longer than any": (lambda: ISSUER.token(groups=["a" * 100] * 200), "malformed_token"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_own_code(fault: str) -> None:
    """401, with a sentence that repeats nothing of the token."""
    token, expected = FAULTS[fault][0](), FAULTS[fault][1]
    with pytest.raises(Unauthenticated) as refused:
        verified(token)
    assert (refused.value.status, refused.value.code) == (401, expected)
    assert PERSON not in refused.value.message and "acme" not in refused.value.message


@pytest.mark.parametrize("fault", ["expired", "nbf in the future", "wrong audience", "no end"])
def test_what_is_refused_in_any_case_is_refused_without_a_key(fault: str) -> None:
    """By the same code: such a token is no reason to ask the issuer for the key that signed it."""
    make, expected = FAULTS[fault]
    with pytest.raises(Unauthenticated) as refused:
        oidc.require_claims(make(), ISSUER.settings())
    assert refused.value.code == expected


def test_a_clock_may_differ_by_the_skew() -> None:
    """On either side, and no further."""
    now = int(time.time())
    early, late = ISSUER.token(nbf=now + 60), ISSUER.token(exp=now - 60)
    assert verified(early, clock_skew_s=120).user == verified(late, clock_skew_s=120).user == PERSON
    assert (code(early, clock_skew_s=10), code(late, clock_skew_s=10)) == ("token_not_yet_valid", "token_expired")


def test_a_verified_token_ends_with_its_time() -> None:
    """The skew included: it may be remembered so long."""
    end = int(time.time()) + 100
    said = verified(ISSUER.token(exp=end), clock_skew_s=20)
    said.require_valid(end + 19)
    with pytest.raises(Unauthenticated) as refused:
        said.require_valid(end + 20)
    assert refused.value.code == "token_expired"


@pytest.mark.parametrize("algorithm", get_args(config.Algorithm))
def test_every_algorithm_that_may_be_allowed_verifies(algorithm: str) -> None:
    """With real keys, published without an algorithm as most issuers do."""
    issuer = Issuer()
    issuer.rotate(algorithm)
    assert "alg" not in issuer.jwks()["keys"][0]
    assert verified(issuer.token(), issuer=issuer, algorithms=(algorithm,)).user == PERSON


def test_audiences_are_alternatives() -> None:
    """On both sides: one that a token has must be one of ours."""
    assert verified(ISSUER.token(aud=["other", AUDIENCE]), audiences=("new", AUDIENCE)).user == PERSON
    assert code(ISSUER.token(aud=["other", "another"]), audiences=("new", AUDIENCE)) == "wrong_audience"


def test_a_tenant_may_be_translated_or_fixed() -> None:
    """By the value of a claim, of which others mean nothing; or the issuer's is one."""
    groups: dict[str, Any] = {"tenant_claim": "groups", "tenants": {"g-1": "acme", "g-2": "globex"}}
    assert verified(ISSUER.token(groups=["everyone", "g-2"]), **groups).tenant == "globex"
    assert code(ISSUER.token(groups=["g-1", "g-2"]), **groups) == "unknown_tenant"
    assert code(ISSUER.token(groups=["everyone"]), **groups) == "unknown_tenant"
    assert verified(ISSUER.token(team="x"), tenant_claim=None, tenant="acme").tenant == "acme"


def test_claims_are_named_as_they_are_or_by_a_path() -> None:
    """Some issuers nest them, others put URLs in names."""
    named: dict[str, Any] = {"https://acme.example/role": "ops"}
    nested, url = ISSUER.token(realm_access={"roles": ["ops"]}), ISSUER.token(**named)
    for token, claim in ((nested, "realm_access.roles"), (url, "https://acme.example/role")):
        assert verified(token, role_claim=claim, roles={"ops": "tenant_admin"}).role is Role.TENANT_ADMIN


@pytest.mark.parametrize(
    ("value", "role"),
    [
        ("ops", Role.PLATFORM_ADMIN),
        (["lead", "ops"], Role.PLATFORM_ADMIN),
        (["lead", "unknown"], Role.TENANT_ADMIN),
        ("unknown", Role.MEMBER),
        (None, Role.MEMBER),
        ({"ops": True}, Role.MEMBER),
    ],
)
def test_of_several_roles_the_one_that_may_do_most(value: object, role: Role) -> None:
    """What is not translated is no role, platform_admin by that name included."""
    roles = {"ops": "platform_admin", "lead": "tenant_admin"}
    assert verified(ISSUER.token(role=value), role_claim="role", roles=roles).role is role
    assert verified(ISSUER.token(role="platform_admin"), role_claim="role", roles=roles).role is Role.MEMBER


def test_the_person_is_in_the_claim_that_the_settings_name() -> None:
    """And a token without it is refused."""
    assert verified(ISSUER.token(email="ada@acme.example"), user_claim="email").user == "ada@acme.example"
    assert code(ISSUER.token(), user_claim="email") == "malformed_token"


def test_roles_of_the_settings_are_roles() -> None:
    """The settings know no room of the gateway, so they spell them."""
    values = config.Issuer.model_fields["roles"].annotation
    assert set(get_args(get_args(values)[1])) == set(Role)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"issuer": "http://sso.example.com"}, "https"),
        ({"issuer": "sso.example.com"}, "pattern"),
        ({"audiences": ()}, "at least 1"),
        ({"tenant": "acme"}, "not both"),
        ({"tenant_claim": None}, "either"),
        ({"tenant_claim": None, "tenant": "acme", "tenants": {"a": "b"}}, "tenant_claim"),
        ({"roles": {"ops": "member"}}, "go together"),
        ({"role_claim": "role"}, "go together"),
        ({"role_claim": "role", "roles": {"ops": "root"}}, "member"),
        ({"algorithms": ("HS256",)}, "RS256"),
        ({"algorithms": ("none",)}, "RS256"),
        ({"algorithms": ()}, "at least 1"),
        ({"outage_grace_s": 300}, "longer than refresh_s"),
        ({"secret": "x"}, "Extra"),
    ],
    ids=str,
)
def test_settings_that_contradict_themselves_are_refused(wrong: dict[str, Any], said: str) -> None:
    """With a sentence that says what."""
    with pytest.raises(ValidationError, match=said):
        ISSUER.settings(**wrong)


def test_an_issuer_is_named_once() -> None:
    """Two sets of rules for one token would leave it open which holds."""
    with pytest.raises(ValidationError, match="twice"):
        GatewaySettings(oidc=(ISSUER.settings(), ISSUER.settings(audiences=("other",))))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CLAIMS = ("iss", "aud", "sub", "exp", "nbf", "iat", "jti", "team", "groups")


def part(value: object) -> str:
    return jwt.utils.base64url_encode(json.dumps(value).encode()).decode()


@settings(max_examples=200, deadline=None)
@example({"exp": 10**400}, set())
@example({"team": "acme\0"}, set())
@example({"team": "\ud800"}, set())
@given(st.dictionaries(st.sampled_from(CLAIMS), JSON, max_size=4), st.sets(st.sampled_from(CLAIMS), max_size=2))
def test_whatever_an_issuer_signs_is_taken_or_refused(changed: dict[str, object], left_out: set[str]) -> None:
    """No claim of any form is an error of ours."""
    claims = {name: value for name, value in (ISSUER.claims() | changed).items() if name not in left_out}
    signed = f"{part({'alg': 'RS256', 'kid': ISSUER.kid})}.{part(claims)}"
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    signature = algorithm.sign(signed.encode(), private_key("RS256"))  # type: ignore[arg-type]
    with contextlib.suppress(Unauthenticated):
        verified(f"{signed}.{jwt.utils.base64url_encode(signature).decode()}")


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(("alg", "kid", "typ", "b64", "crit", "jku", "x5c")), JSON) | JSON, JSON, st.text()
)
def test_whatever_anyone_sends_is_refused(header: object, claims: object, signature: str) -> None:
    """Before there is a key, and without one: by 401 alone."""
    for token in (f"{part(header)}.{part(claims)}.{part(signature)}", f"{signature}.{part(claims)}.{part(header)}"):
        with pytest.raises(Unauthenticated):
            looked_at(token)


def looked_at(token: str) -> None:
    """All that is done before a key is looked for."""
    oidc.algorithm(oidc.heading(token), ISSUER.settings())
    oidc.require_claims(token, ISSUER.settings())


def test_only_what_has_two_dots_is_a_token() -> None:
    """A key has none."""
    assert oidc.is_token(ISSUER.token()) and not oidc.is_token("sk-abcdefghij-" + "a" * 43)
