"""Identity: keys and tokens open the same API; who calls is known to log and ledger, and to no engine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import config
from serving.config import GatewaySettings
from serving.errors import ApiError
from serving.gateway.http.asgi import Request
from serving.gateway.identity import identity as limits
from serving.gateway.identity import jwks
from serving.gateway.identity.identity import USER_HEADER, Identity
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of, mint
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.tenants import Tenants
from serving.gateway.nouns import OIDC, Caller, Right, Role
from tests.clock import Clock
from tests.gateway.asgi import Wire
from tests.gateway.issuer import PERSON, Issuer, private_key, running
from tests.gateway.places import Place, SqlitePlace
from tests.gateway.world import CHAT, World, running_gateway, until
from tests.scripted_engine import ScriptedEngine

CHAT_PATH = "/v1/chat/completions"


class Desk:
    """A gateway's identity with an issuer it trusts, and tenant acme with a key."""

    def __init__(self, identity: Identity, registry: Registry, issuer: Issuer, wall_clock: Clock) -> None:
        self.identity = identity
        self.registry = registry
        self.issuer = issuer
        self.wall_clock = wall_clock
        self.key = registry.create_key("acme")

    async def identify(self, credential: str, user: bytes | None = None) -> Caller:
        headers = [(b"authorization", b"Bearer " + credential.encode())]
        if user is not None:
            headers.append((USER_HEADER.encode(), user))
        wire = Wire()
        return await self.identity.identify(Request(wire.scope(headers=tuple(headers)), wire.receive))

    async def code(self, credential: str, user: bytes | None = None) -> str | None:
        """How it ends: `ok`, or the refusal's code."""
        try:
            await self.identify(credential, user)
        except ApiError as error:
            return error.code or error.type
        return "ok"


@asynccontextmanager
async def desk(place: Place, verified_max: int = limits.VERIFIED_MAX, **settings: object) -> AsyncIterator[Desk]:
    async with running() as issuer:
        with place.open() as store:
            wall_clock = Clock(time.time())
            keyring = Keyring.open(store)
            registry = Registry(store, keyring, wall_clock)
            registry.create_tenant("acme")
            with Tenants(store, keyring, key_cache_s=10, lookup_timeout_s=10) as tenants:
                trusted = GatewaySettings(oidc=(issuer.settings(**settings),))
                identity = Identity(trusted, store, tenants, time.monotonic, wall_clock, verified_max)
                async with identity.opened():
                    yield Desk(identity, registry, issuer, wall_clock)


@pytest.fixture
async def at_desk(place: Place) -> AsyncIterator[Desk]:
    async with desk(place) as one:
        yield one


@asynccontextmanager
async def signed_in(home: Path, **settings: object) -> AsyncIterator[tuple[World, ScriptedEngine, Issuer]]:
    """A gateway that trusts an issuer, before an engine."""
    async with (
        running() as issuer,
        ScriptedEngine() as engine,
        running_gateway(home, (engine.url,), oidc=(issuer.settings(**settings),)) as world,
    ):
        yield world, engine, issuer


def bearing(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"} | headers


async def test_a_token_opens_the_api_as_a_key_does(tmp_path: Path) -> None:
    """Its call is its tenant's; the person is in ledger and log as a reference, and in the database by name, once."""
    async with signed_in(tmp_path) as (world, engine, issuer):
        for path in ("/v1/models", "/v1/models/gpt-4o"):
            assert (await world.ask("GET", path, headers=bearing(issuer.token()))).status == 200
        world.lines.clear()
        assert (await world.ask("POST", CHAT_PATH, CHAT, bearing(issuer.token()))).status == 200
        row = await world.row()
        ((ref, name),) = SqlitePlace(tmp_path).execute("select ref, subject from end_users")
        assert (name, row["user_ref"], row["key_id"]) == (PERSON, ref, OIDC)
        assert row["tenant_id"] == world.registry.tenant("acme").id
        (line,) = world.lines
        assert (line["tenant"], line["key_id"], line["user_ref"]) == ("acme", OIDC, ref)
        assert issuer.asked <= 2
        (received,) = engine.received
        said = json.dumps([received.headers, received.body])
        assert PERSON not in said and str(ref) not in said and issuer.url not in said


async def test_a_role_in_a_claim_administers(tmp_path: Path) -> None:
    """What a key of that role may do, and no more."""
    async with signed_in(tmp_path, role_claim="role", roles={"ops": "platform_admin"}) as (world, _, issuer):
        for token, status in ((issuer.token(), 403), (issuer.token(role="ops"), 200), (issuer.token(role="x"), 403)):
            assert (await world.ask("GET", "/admin/v1/tenants", headers=bearing(token))).status == status


async def test_a_keys_last_use_is_written_at_the_end_at_the_latest(tmp_path: Path) -> None:
    """Of a key that opened, and of no other."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        unused = world.registry.create_key("acme")
        assert (await world.ask("GET", "/v1/models", headers=bearing(unused[:-1] + "x"))).status == 401
        assert (await world.ask("GET", "/v1/models")).status == 200
        begun = int(time.time())
    ((used, at),) = SqlitePlace(tmp_path).execute("select id, last_used_at from keys where last_used_at is not null")
    assert used == id_of(world.key)
    assert str(at)[:16] in {time.strftime("%Y-%m-%d %H:%M", time.gmtime(begun - it)) for it in range(180)}


def readme_settings() -> config.Issuer:
    """The README's example, as a gateway loads it."""
    text = (Path(config.__file__).parents[1] / "README.md").read_text().split("## Single sign-on")[1]
    (example,) = re.findall(r"```yaml\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
    (issuer,) = GatewaySettings(**yaml.safe_load(example)["gateway"]).oidc
    return issuer


async def test_the_readmes_example_signs_people_in(place: Place) -> None:
    """Its settings as they stand, but for the issuer's address: claims of that kind become the tenant and the role."""
    shown = readme_settings().model_dump(exclude={"issuer"}, exclude_unset=True)
    async with desk(place, **shown) as one:
        one.registry.create_tenant("research")
        claims: dict[str, Any] = {
            "aud": "llm-api",
            "groups": ["everyone", "llm-research"],
            "realm_access": {"roles": ["llm-owner"]},
        }
        caller = await one.identify(one.issuer.token(**claims))
        assert (caller.tenant, caller.role) == ("research", Role.TENANT_ADMIN)
        assert await one.code(one.issuer.token(aud="llm-api")) == "unknown_tenant"


async def test_no_token_and_no_claim_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In order or not."""
    async with signed_in(tmp_path) as (world, _, issuer):
        tokens = [issuer.token(), issuer.token(exp=1), issuer.token(key=private_key("RS256", 3)), issuer.token(kid="x")]
        for token in tokens:
            await world.ask("POST", CHAT_PATH, CHAT, bearing(token))
        said = caplog.text + json.dumps(world.lines)
    assert PERSON not in said and not any(part in said for token in tokens for part in token.split("."))


async def test_each_refusal_reaches_the_client(tmp_path: Path) -> None:
    """401 in OpenAI's shape, with its code."""
    async with signed_in(tmp_path) as (world, _, issuer):
        world.registry.create_tenant("globex")
        world.registry.update_tenant("globex", is_disabled=True)
        for token, code in {
            issuer.token(exp=1): "token_expired",
            issuer.token(aud="x"): "wrong_audience",
            issuer.token(kid="x"): "unknown_signing_key",
            issuer.token(team="nobody"): "unknown_tenant",
            issuer.token(team="globex"): "tenant_disabled",
            "a.b.c": "malformed_token",
            "sk-abc": "invalid_api_key",
        }.items():
            answer = await world.ask("POST", CHAT_PATH, CHAT, bearing(token))
            assert (answer.status, answer.error["code"]) == (401, code)
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_guess_at_anothers_key_is_answered_like_any_other(tmp_path: Path) -> None:
    """Whether there is a key of that id, and whose, is in no status, header or body; asked once or again."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        theirs = world.key_of_another("globex")
        guesses = (theirs[:14] + mint()[14:], theirs[:-1] + ("a" if theirs[-1] != "a" else "b"), mint(), mint())
        answers = [await world.ask("POST", CHAT_PATH, CHAT, bearing(guess)) for guess in (*guesses, *guesses)]
        assert (await world.ask("POST", CHAT_PATH, CHAT, bearing(theirs))).status == 200
    said = {(it.status, it.body, tuple(sorted(_lasting(it.headers).items()))) for it in answers}
    assert len(said) == 1 and answers[0].error["code"] == "invalid_api_key"


def _lasting(headers: dict[str, str]) -> dict[str, str]:
    """Those that do not name the one request."""
    return {name: value for name, value in headers.items() if name not in ("x-request-id", "date")}


async def test_without_issuers_a_token_is_a_key_like_any_other(tmp_path: Path) -> None:
    """As before there was single sign-on."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.ask("POST", CHAT_PATH, CHAT, bearing(Issuer().token()))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_a_company_rotates_and_signs_at_once(at_desk: Desk) -> None:
    """The first token by the new key is taken, and so are the old ones while their key is published."""
    old = at_desk.issuer.token()
    assert await at_desk.code(old) == "ok"
    for algorithm in ("ES256", "RS256", "ES256"):
        at_desk.issuer.rotate(algorithm, keeps_old=True)
        assert await at_desk.code(at_desk.issuer.token()) == "ok"
    assert await at_desk.code(old) == "ok"


async def test_a_withdrawn_key_takes_its_verified_tokens_along(at_desk: Desk) -> None:
    """What is remembered as verified is so by a key that the issuer still publishes."""
    token = at_desk.issuer.token()
    assert await at_desk.code(token) == "ok"
    at_desk.issuer.rotate()
    assert await at_desk.code(at_desk.issuer.token()) == "ok"
    assert await at_desk.code(token) == "unknown_signing_key"


async def test_a_remembered_token_ends_with_its_time(at_desk: Desk) -> None:
    """To the second, the skew included."""
    token = at_desk.issuer.token(exp=int(at_desk.wall_clock.now) + 100)
    assert await at_desk.code(token) == "ok"
    at_desk.wall_clock.advance(131)
    assert await at_desk.code(token) == "token_expired"


async def test_an_outage_of_the_issuer_costs_known_keys_nothing(at_desk: Desk) -> None:
    """Remembered tokens and new ones; one by an unknown key is 503, and in order once the issuer is back."""
    old = at_desk.issuer.token()
    assert await at_desk.code(old) == "ok"
    await at_desk.issuer.stop()
    assert await at_desk.code(old) == await at_desk.code(at_desk.issuer.token(sub="bob")) == "ok"
    at_desk.issuer.rotate(keeps_old=True)
    assert await at_desk.code(at_desk.issuer.token()) == "issuer_unavailable"
    await at_desk.issuer.start()
    assert await at_desk.code(at_desk.issuer.token()) == "ok"


async def test_known_keys_open_while_the_issuer_hangs_under_a_flood(place: Place) -> None:
    """Strangers' tokens wait for it, up to a share of the open calls; nothing else does."""
    async with desk(place) as one:
        assert await one.code(one.issuer.token()) == "ok"
        asked = one.issuer.asked
        one.issuer.gate.clear()
        flood = [asyncio.create_task(one.code(one.issuer.token(kid=f"x{number}"))) for number in range(300)]
        await until(lambda: one.issuer.asked == asked + 1)
        assert await one.code(one.issuer.token(sub="bob")) == await one.code(one.key) == "ok"
        one.issuer.gate.set()
        codes = await asyncio.gather(*flood)
    assert set(codes) == {"unknown_signing_key", "issuer_unavailable"}
    assert codes.count("issuer_unavailable") == 300 - 1024 // limits.WAITING_SHARE
    assert one.issuer.asked <= asked + jwks.LOOKUPS_AT_ONCE


async def test_a_bad_signature_asks_no_one(at_desk: Desk) -> None:
    """Nor does a token that is refused for what it says: only a key that is not known does, and it may yet be one."""
    assert await at_desk.code(at_desk.issuer.token()) == "ok"
    asked = at_desk.issuer.asked
    assert await at_desk.code(at_desk.issuer.token(key=private_key("RS256", 3))) == "invalid_signature"
    assert await at_desk.code(at_desk.issuer.token(kid="withdrawn", exp=1)) == "token_expired"
    assert await at_desk.code(at_desk.issuer.token(kid="withdrawn", aud="x")) == "wrong_audience"
    assert at_desk.issuer.asked == asked


async def test_what_a_token_says_of_role_and_person_is_the_callers(place: Place) -> None:
    """Two people of a tenant are two, one is the same each time, and each has a budget of refusals of their own."""
    async with desk(place, role_claim="role", roles={"ops": "platform_admin"}) as one:
        ada, again = await one.identify(one.issuer.token(role="ops")), await one.identify(one.issuer.token(iat=1))
        bob = await one.identify(one.issuer.token(sub="bob"))
    assert (ada.role, again.role) == (Role.PLATFORM_ADMIN, Role.MEMBER)
    assert ada.user_ref == again.user_ref != bob.user_ref and ada.credential != bob.credential
    assert (ada.key_id, ada.tenant) == (OIDC, "acme")


async def test_a_service_names_its_users(at_desk: Desk) -> None:
    """Where its key may: the same person as by a token, in any script."""
    trusted = at_desk.registry.create_key("acme", allowed=[Right.NAME_USERS])
    named = await at_desk.identify(trusted, PERSON.encode())
    assert named.user_ref == (await at_desk.identify(at_desk.issuer.token())).user_ref
    assert (await at_desk.identify(trusted)).user_ref is None
    assert (await at_desk.identify(trusted, "Åsa 王".encode())).user_ref not in (None, named.user_ref)


async def test_others_may_not_name_users(at_desk: Desk) -> None:
    """403 for a key without the right, and for a token, which says it itself."""
    assert await at_desk.code(at_desk.key, PERSON.encode()) == "insufficient_permissions"
    assert await at_desk.code(at_desk.issuer.token(), b"bob") == "insufficient_permissions"
    assert await at_desk.code("sk-abc", PERSON.encode()) == "invalid_api_key"


@pytest.mark.parametrize("name", [b"", b"a" * 256, b"ada\tbob", b"\xff", "ada\u200b".encode(), "é".encode() * 256])
async def test_a_name_is_printable_and_bounded(at_desk: Desk, name: bytes) -> None:
    """400 for another."""
    trusted = at_desk.registry.create_key("acme", allowed=[Right.NAME_USERS])
    assert await at_desk.code(trusted, name) == "invalid_request_error"


async def test_a_named_user_does_not_reach_the_engine(tmp_path: Path) -> None:
    """The header ends here; log and ledger know the reference."""
    async with signed_in(tmp_path) as (world, engine, _):
        key = world.registry.create_key("acme", allowed=[Right.NAME_USERS])
        world.lines.clear()
        assert (await world.ask("POST", CHAT_PATH, CHAT, bearing(key, **{"X-Serving-User": PERSON}))).status == 200
        (received,) = engine.received
        (line,) = world.lines
    ((ref,),) = SqlitePlace(tmp_path).execute("select ref from end_users")
    assert line["user_ref"] == ref and PERSON not in json.dumps(line)
    assert PERSON not in json.dumps([received.headers, received.body])


async def test_remembered_tokens_are_bounded(place: Place) -> None:
    """Of more, those that were not seen for longest are verified again."""
    async with desk(place, verified_max=2) as one:
        tokens = [one.issuer.token(sub=name) for name in ("ada", "bob", "eve")]
        for token in (*tokens, tokens[0], tokens[1]):
            assert await one.code(token) == "ok"
        assert len(one.identity._remembered) == 2
