"""Sign-on: to a real issuer and back, and everything that is no such way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from serving.errors import (
    InvalidSignature,
    IssuerUnavailable,
    MalformedToken,
    SessionEnded,
    Unauthenticated,
    WrongAudience,
)
from serving.gateway.identity.jwks import Endpoint, Keys
from serving.gateway.identity.oidc import Verified
from serving.gateway.identity.sign_on import CARRIED_S, Departure, SignOn, Slips
from tests.clock import Clock
from tests.gateway import issuer as issuers
from tests.gateway.issuer import PERSON, Issuer, private_key

BACK = "http://gateway.example.com/console/callback"


class Way:
    """The console, registered at an issuer, and a browser that goes there and back."""

    def __init__(self, issuer: Issuer, client: aiohttp.ClientSession, **changed: object) -> None:
        self.issuer, self.client = issuer, client
        self.clock = Clock()
        settings = issuer.settings(client_id="console one", **changed)
        self.endpoint = Endpoint(settings)
        self.slips = Slips(bytes(32), self.clock)
        self.sign_on = SignOn(settings, self.endpoint, Keys(settings, self.endpoint.fetch, Clock(), 4), self.slips)

    async def travel(self) -> tuple[Departure, str, str]:
        """To the issuer and back: what the browser carries, and the issuer's code and state."""
        departure = await self.sign_on.departure(BACK)
        async with self.client.get(departure.url, allow_redirects=False) as answer:
            place = urlsplit(answer.headers["location"])
        assert place._replace(query="").geturl() == BACK
        said = parse_qs(place.query)
        return departure, said["code"][0], said["state"][0]

    async def arrive(self) -> Verified:
        departure, code, state = await self.travel()
        return await self.sign_on.arrival(self.slips.read(departure.carried, state), code)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuers.running() as one:
        yield one


@pytest.fixture
async def way(issuer: Issuer) -> AsyncIterator[Way]:
    async with aiohttp.ClientSession() as client:
        one = Way(issuer, client)
        async with one.endpoint.opened():
            yield one


async def test_one_comes_back_as_who_the_issuer_says(way: Way) -> None:
    """By a code that is good once, for a token that was made for this console."""
    departure, code, state = await way.travel()
    verified = await way.sign_on.arrival(way.slips.read(departure.carried, state), code)
    assert (verified.tenant, verified.user) == ("acme", PERSON)
    with pytest.raises(Unauthenticated):
        await way.sign_on.arrival(way.slips.read(departure.carried, state), code)


@pytest.mark.parametrize("ways", [["client_secret_basic"], ["client_secret_post"]])
async def test_a_client_with_a_secret_shows_it(issuer: Issuer, tmp_path: Path, ways: list[str]) -> None:
    """As the issuer's discovery says; a wrong one lets no one in, and a file that is gone is an outage."""
    issuer.secret, issuer.ways, file = "s%c:ret+", ways, tmp_path / "secret"
    file.write_text("s%c:ret+\n")
    async with aiohttp.ClientSession() as client:
        way = Way(issuer, client, client_secret_file=file)
        async with way.endpoint.opened():
            assert (await way.arrive()).user == PERSON
            file.write_text("another")
            with pytest.raises(Unauthenticated):
                await way.arrive()
            file.unlink()
            with pytest.raises(IssuerUnavailable):
                await way.arrive()


async def test_what_the_browser_carries_is_ours_and_belongs_to_the_answer(way: Way) -> None:
    """Another sign-in's answer, a slip that someone wrote, none at all, or one of too long ago: begin again."""
    departure, _, state = await way.travel()
    other, _, other_state = await way.travel()
    written_elsewhere = Slips(bytes([1]) * 32, way.clock).written(way.slips.read(departure.carried, state))
    for carried, said in (
        (departure.carried, other_state),
        (other.carried, state),
        (departure.carried, None),
        (written_elsewhere, state),
        (None, state),
        ("", ""),
    ):
        with pytest.raises(SessionEnded):
            way.slips.read(carried, said)
    way.clock.advance(CARRIED_S)
    with pytest.raises(SessionEnded):
        way.slips.read(departure.carried, state)


async def test_a_code_needs_the_verifier_of_its_own_sign_in(way: Way) -> None:
    """Whoever sees a code on its way cannot use it (PKCE)."""
    _, code, _ = await way.travel()
    other, _, state = await way.travel()
    with pytest.raises(Unauthenticated):
        await way.sign_on.arrival(way.slips.read(other.carried, state), code)


@pytest.mark.parametrize(
    ("says", "refusal"),
    [
        ({"nonce": "another"}, MalformedToken),
        ({"nonce": None}, MalformedToken),
        ({"aud": issuers.AUDIENCE}, WrongAudience),
        ({"azp": "another client"}, WrongAudience),
        ({"sub": None}, MalformedToken),
    ],
)
async def test_a_token_that_is_no_answer_signs_no_one_in(
    way: Way, says: dict[str, object], refusal: type[Unauthenticated]
) -> None:
    """One of another sign-in, or for another party."""
    way.issuer.says = says
    with pytest.raises(refusal):
        await way.arrive()


async def test_a_token_that_the_issuer_did_not_sign_signs_no_one_in(way: Way) -> None:
    """Though it came from its address."""
    way.issuer.signer = private_key("RS256", 3)
    with pytest.raises(InvalidSignature):
        await way.arrive()


async def test_an_issuer_that_is_away_is_an_outage(way: Way) -> None:
    """On the way there and on the way back."""
    departure, code, state = await way.travel()
    await way.issuer.stop()
    with pytest.raises(IssuerUnavailable):
        await way.sign_on.arrival(way.slips.read(departure.carried, state), code)
    with pytest.raises(IssuerUnavailable):
        await way.sign_on.departure(BACK)
