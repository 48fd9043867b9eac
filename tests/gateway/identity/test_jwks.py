"""JWKS: known keys verify whatever becomes of the issuer; a key that was just rotated in is asked for at once, and strangers' at a
bounded rate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import config
from serving.errors import ApiError, Refusal
from serving.gateway.identity import jwks
from serving.gateway.identity.jwks import LOOKUPS_AT_ONCE, Allowance, Endpoint, Keys, Unanswered
from tests.certificates import issue
from tests.clock import Clock
from tests.gateway.issuer import Issuer, private_key, public_jwk, running
from tests.gateway.world import until

INTERVAL_S = 5.0


class World:
    """An issuer, and a gateway's view of its keys."""

    def __init__(self, issuer: Issuer, waiters_max: int = 100) -> None:
        self.issuer = issuer
        self.clock = Clock()
        self.settings = issuer.settings(lookup_interval_s=INTERVAL_S, outage_grace_s=1000)
        self.endpoint = Endpoint(self.settings)
        self.keys = Keys(self.settings, self.endpoint.fetch, self.clock, waiters_max)

    async def found(self, kid: str | None) -> str | None:
        """How a look-up ends: `ok`, or the refusal's code."""
        try:
            await self.keys.found(kid, "RS256")
        except ApiError as error:
            return error.code
        return "ok"


@asynccontextmanager
async def opened(waiters_max: int = 100) -> AsyncIterator[World]:
    async with running() as issuer:
        world = World(issuer, waiters_max)
        async with world.endpoint.opened():
            yield world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """One whose keys are known."""
    async with opened() as world:
        assert await world.keys.refresh()
        yield world


async def test_a_key_that_was_just_rotated_in_is_taken_at_once(world: World) -> None:
    """A moment after the last look at the keys: a company rotates and signs."""
    assert await world.found(world.issuer.rotate()) == "ok"
    assert world.issuer.asked == 2 and world.issuer.discovered == 1


async def test_many_calls_with_a_new_key_ask_once(world: World) -> None:
    """They wait for one answer."""
    kid = world.issuer.rotate()
    assert await asyncio.gather(*(world.found(kid) for _ in range(50))) == ["ok"] * 50
    assert world.issuer.asked == 2


async def test_a_question_that_began_before_the_rotation_does_not_count(world: World) -> None:
    """Its answer may be from before; then the issuer is asked again, once."""
    world.issuer.gate.clear()
    early = asyncio.create_task(world.keys.refresh())
    await until(lambda: world.issuer.asked == 2)
    late = asyncio.create_task(world.found(world.issuer.rotate()))
    await asyncio.sleep(0)
    world.issuer.gate.set()
    assert await early and await late == "ok" and world.issuer.asked == 3


async def test_a_flood_of_unknown_keys_asks_at_a_bounded_rate(world: World) -> None:
    """Some at once, then one in each interval, and known keys are looked up all the while."""
    for number in range(200):
        assert await world.found(f"stranger-{number}") == "unknown_signing_key"
        assert await world.found(world.issuer.kid) == "ok"
    assert world.issuer.asked == 1 + LOOKUPS_AT_ONCE
    for _ in range(3):
        world.clock.advance(INTERVAL_S)
        for number in range(200):
            assert await world.found(f"other-{number}") == "unknown_signing_key"
    assert world.issuer.asked == 1 + LOOKUPS_AT_ONCE + 3


async def test_one_client_with_an_old_token_does_not_use_the_questions_up(world: World) -> None:
    """Its key is asked for once in an interval: the next rotation still finds a question left."""
    for _ in range(100):
        assert await world.found("withdrawn") == "unknown_signing_key"
    assert world.issuer.asked == 2
    assert await world.found(world.issuer.rotate()) == "ok"
    world.clock.advance(INTERVAL_S)
    await world.found("withdrawn")
    assert world.issuer.asked == 4


async def test_a_key_that_was_asked_for_too_early_is_found_an_interval_later(world: World) -> None:
    """An issuer may sign before its key is everywhere."""
    assert await world.found("RS256-1") == "unknown_signing_key"
    world.issuer.rotate()
    world.clock.advance(INTERVAL_S)
    assert await world.found("RS256-1") == "ok"


async def test_known_keys_verify_while_the_issuer_hangs(world: World) -> None:
    """Without waiting; strangers' tokens wait."""
    world.issuer.gate.clear()
    stranger = asyncio.create_task(world.found("stranger"))
    await until(lambda: world.issuer.asked == 2)
    assert world.keys.known(world.issuer.kid, "RS256") is not None and not stranger.done()
    world.issuer.gate.set()
    assert await stranger == "unknown_signing_key"


async def test_a_bounded_number_of_calls_waits_for_an_issuer() -> None:
    """More are refused at once: each holds a place that a call with a known key needs."""
    async with opened(waiters_max=2) as world:
        assert await world.keys.refresh()
        world.issuer.gate.clear()
        waiting = [asyncio.create_task(world.found(f"stranger-{number}")) for number in range(2)]
        await until(lambda: world.issuer.asked == 2)
        assert await world.found("stranger-2") == "issuer_unavailable"
        world.issuer.gate.set()
        assert set(await asyncio.gather(*waiting)) == {"unknown_signing_key"}


async def test_known_keys_outlive_an_outage_by_the_grace_and_no_longer(world: World) -> None:
    """Then it is not known whether they were withdrawn: 503, until the issuer is back."""
    kid = world.issuer.kid
    await world.issuer.stop()
    world.clock.advance(1000)
    assert not await world.keys.refresh() and await world.found(kid) == "ok"
    assert await world.found("stranger") == "issuer_unavailable"
    world.clock.advance(1)
    assert await world.found(kid) == "issuer_unavailable"
    await world.issuer.start()
    assert await world.keys.refresh() and await world.found(kid) == "ok"


async def test_before_the_first_answer_nothing_is_known() -> None:
    """503 and not 401: only the issuer can say that a key is unknown. The first token asks, however early it comes."""
    async with opened() as world:
        world.issuer.status = 500
        assert await world.found(world.issuer.kid) == "issuer_unavailable"
        world.issuer.status = 200
        assert await world.found(world.issuer.kid) == "ok"


async def test_a_withdrawn_key_is_refused_after_the_next_look(world: World) -> None:
    """As one that was never there."""
    old = world.issuer.kid
    world.issuer.rotate()
    await world.keys.refresh()
    assert await world.found(old) == "unknown_signing_key"


async def test_what_has_not_changed_stays_the_same(world: World) -> None:
    """So that what was verified with it need not be verified again; a key replaced under its name is another."""
    key = world.keys.known("RS256-0", "RS256")
    world.issuer.rotate(keeps_old=True)
    await world.keys.refresh()
    assert world.keys.known("RS256-0", "RS256") is key
    world.issuer.keys["RS256-0"] = private_key("RS256", 2)
    await world.keys.refresh()
    assert world.keys.known("RS256-0", "RS256") not in (key, None)


async def test_a_token_may_leave_its_keys_name_out_where_there_is_one(world: World) -> None:
    """Of several, the wrong one may not be tried."""
    assert await world.found(None) == "ok"
    world.issuer.rotate(keeps_old=True)
    await world.keys.refresh()
    assert await world.found(None) == "unknown_signing_key"


@pytest.mark.parametrize("document", [{"keys": []}, {"keys": "none"}, [], {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}])
async def test_an_answer_without_keys_is_none(world: World, document: object, caplog: pytest.LogCaptureFixture) -> None:
    """The keys stay, and the log says so, once."""
    world.issuer.document = document
    with caplog.at_level(logging.INFO):
        assert not await world.keys.refresh() and not await world.keys.refresh()
        assert await world.found(world.issuer.kid) == "ok" and not world.keys.is_answering
        world.issuer.document = None
        assert await world.keys.refresh() and world.keys.is_answering
    assert [it.levelname for it in caplog.records if it.name == jwks.__name__] == ["WARNING", "INFO"]


async def test_a_place_of_keys_that_has_moved_is_discovered_anew(world: World) -> None:
    """After the old one has failed."""
    world.issuer.status = 404
    assert not await world.keys.refresh()
    world.issuer.status = 200
    assert await world.keys.refresh() and world.issuer.discovered == 2


async def test_keys_are_looked_at_again_and_again(world: World) -> None:
    """In the background, until it is cancelled."""
    task = asyncio.create_task(world.keys.run())
    await until(lambda: world.issuer.asked == 2)
    assert not task.done()
    task.cancel()


def test_keys_for_something_else_are_left_out() -> None:
    """Of another use, kind, curve or algorithm, too short, without sense; those that are left are there by name and algorithm."""
    rsa, curve = private_key("RS256"), private_key("ES384")
    short = public_jwk(rsa, kid="short") | {"n": public_jwk(rsa)["n"][:100]}
    published = [
        public_jwk(rsa, kid="a", alg="RS256"),
        public_jwk(rsa, kid="any"),
        public_jwk(rsa, kid="b", use="enc"),
        public_jwk(curve, kid="c"),
        {"kty": "RSA", "kid": "d"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "e"},
        public_jwk(rsa) | {"kid": 7},
        short,
        "nothing",
    ]
    found = jwks.read({"keys": published}, ("RS256", "PS256", "ES256"))
    assert set(found) == {("a", "RS256"), ("any", "RS256"), ("any", "PS256")}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(("AQAB", "AA", "RSA", "P-256")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("kty", "use", "alg", "kid", "n", "e", "d", "p", "crv", "x", "y", "key_ops")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(("RS256", "ES256", "ES512", "EdDSA")),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    st.sets(st.sampled_from(FIELDS), max_size=2),
)
def test_whatever_an_issuer_publishes_is_read_or_left_out(
    kind: str, changed: dict[str, object], gone: set[str]
) -> None:
    """No key of any form is an error of ours, and none takes the one beside it along."""
    odd = {name: it for name, it in (public_jwk(private_key(kind), kid="odd") | changed).items() if name not in gone}
    sound = public_jwk(private_key("ES384"), kid="sound")
    found = jwks.read({"keys": [odd, sound]}, ("RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"))
    assert ("sound", "ES384") in found


@given(JSON)
def test_whatever_else_it_publishes_is_no_answer(document: object) -> None:
    """As long as there is no key in it."""
    with pytest.raises(Unanswered):
        jwks.read(document, ("RS256",))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"issuer": "https://other.example.com"}, "another issuer's"),
        ({"jwks_uri": 7}, "place of keys"),
        ({"jwks_uri": "file:///etc/passwd"}, "place of keys"),
        ({"jwks_uri": "https://[::1"}, "ValueError"),
        ({"jwks_uri": "http://a b/keys"}, "Invalid|Error"),
        (b"no json", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b" " * (jwks.DOCUMENT_BYTES_MAX + 1), "more than"),
    ],
    ids=lambda it: str(it)[:40],
)
async def test_a_discovery_document_is_the_issuers_own(document: object, said: str) -> None:
    """And leads to nowhere that is less safe than the issuer; size and form are bounded."""
    app = web.Application()
    runner = web.AppRunner(app)

    async def discover(request: web.Request) -> web.Response:
        if isinstance(document, bytes):
            return web.Response(body=document)
        url = f"http://{request.host}"
        return web.json_response({"issuer": url, "jwks_uri": f"{url}/keys"} | document)  # type: ignore[operator]

    app.router.add_get(jwks.DISCOVERY_PATH, discover)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    issuer = Issuer()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    endpoint = Endpoint(issuer.settings())
    async with endpoint.opened():
        with pytest.raises(Unanswered, match=said):
            await endpoint.fetch()
    await runner.cleanup()


async def test_a_redirect_is_not_followed() -> None:
    """It could lead anywhere."""
    async with opened() as world:
        world.issuer.status = 302
        with pytest.raises(Unanswered, match="302"):
            await world.endpoint.fetch()


async def test_a_closed_endpoint_asks_nothing() -> None:
    """While the gateway starts or stops."""
    with pytest.raises(Unanswered):
        await Endpoint(Issuer().settings()).fetch()


def test_a_ca_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """In a sentence, when the gateway starts; one in order is taken."""
    for text in (None, "no certificate"):
        if text:
            (tmp_path / "ca.crt").write_text(text)
        with pytest.raises(Refusal, match=r"ca\.crt"):
            Endpoint(_with_ca(tmp_path / "ca.crt"))
    Endpoint(_with_ca(issue(tmp_path, "sso.example.com").ca_file))


def _with_ca(ca_file: Path) -> config.Issuer:
    return Issuer().settings(ca_file=ca_file)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 5), st.floats(0.1, 10))
def test_an_allowance_is_never_exceeded(waits: list[float], at_once: int, interval_s: float) -> None:
    """In no window of time more than what is allowed at once and one in each interval of it."""
    clock = Clock(0.0)
    allowance, taken = Allowance(at_once, interval_s, clock), []
    for wait_s in waits:
        clock.advance(wait_s)
        if allowance.take():
            taken.append(clock.now)
    for first, start in enumerate(taken):
        for count, end in enumerate(taken[first:], start=1):
            assert count <= at_once + (end - start) / interval_s + 1e-6
