"""Door: signing in to the console by a key and by single sign-on, what a session can do, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path

import pytest

from serving.config import ConsoleSettings
from serving.gateway.api.console import door
from serving.gateway.audit import reading
from serving.gateway.audit.reading import Asked
from serving.gateway.identity.keys import id_of
from serving.gateway.nouns import Role
from tests.gateway import issuer as issuers
from tests.gateway.api.admin.office_hours import Administered, administered
from tests.gateway.issuer import PERSON, Issuer
from tests.gateway.world import Answer, World, running_gateway, until

HEADERS = {"x-console": "1", "content-type": "application/json", "sec-fetch-site": "same-origin"}


class Browser:
    """Keeps cookies as a browser does, and is the console's page."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cookies: dict[str, str] = {}
        #: Attributes of each that was set, as they were written.
        self.set: list[str] = []

    async def ask(self, method: str, path: str, body: object = None, **changed: str) -> Answer:
        sent = HEADERS | {name.replace("_", "-"): value for name, value in changed.items()}
        sent |= {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {}
        answer = await self.world.ask(method, path, body, {name: it for name, it in sent.items() if it})
        self._take(answer)
        return answer

    async def go(self, path: str) -> Answer:
        """As a person who follows a link."""
        return await self.ask("GET", path, x_console="", sec_fetch_site="cross-site")

    async def sign_in(self, key: str, **changed: str) -> Answer:
        return await self.ask("POST", "/console/session", {"key": key}, **changed)

    def _take(self, answer: Answer) -> None:
        self.set += answer.cookies
        for written in answer.cookies:
            for name, morsel in SimpleCookie(written).items():
                self.cookies.pop(name, None)
                if morsel["max-age"] != "0":
                    self.cookies[name] = morsel.value


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Administered]:
    async with administered(tmp_path) as one:
        yield one


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuers.running() as one:
        yield one


async def test_a_key_opens_a_session_and_never_comes_back(office: Administered) -> None:
    """The page learns who is signed in; the cookie is for the browser alone."""
    browser, key = Browser(office.world), office.world.key
    assert (await browser.ask("GET", "/console/session")).json["who"] is None
    answer = await browser.sign_in(key)
    who = answer.json["who"]
    assert isinstance(who, dict) and (who["tenant"], who["role"], who["key_id"]) == ("acme", "member", id_of(key))
    (written,) = browser.set
    assert "HttpOnly" in written and "SameSite=Strict" in written and "Path=/" in written and "Secure" not in written
    again = await browser.ask("GET", "/console/session")
    assert again.json["who"] == who and again.headers["cache-control"] == "no-store"
    for said in (answer, again):
        assert key not in said.body.decode() + str(said.headers)
    assert (await browser.sign_in(key)).status == 200 and len(browser.cookies) == 1


async def test_over_https_the_cookie_is_of_https_alone(office: Administered) -> None:
    """A proxy ended TLS, and the browser's own word says so."""
    browser = Browser(office.world)
    host = office.world.url.removeprefix("http://")
    await browser.sign_in(office.world.key, origin=f"https://{host}")
    assert list(browser.cookies) == ["__Host-serving-session"] and browser.set[0].endswith("Secure")
    assert (await browser.ask("GET", "/admin/v1/whoami")).status == 200


@pytest.mark.parametrize("role", Role)
async def test_a_session_may_what_its_key_may(office: Administered, role: Role) -> None:
    """Every kind of route answers the page as it answers the key."""
    browser = Browser(office.world)
    await browser.sign_in(office.keys[role])
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/admin/v1/me"),
        ("GET", "/admin/v1/tenants/acme"),
        ("GET", "/admin/v1/tenants/other"),
        ("GET", "/admin/v1/tenants"),
        ("GET", "/admin/v1/fleet"),
        ("POST", "/v1/chat/completions"),
    ):
        own = {"Authorization": f"Bearer {office.keys[role]}", "Content-Type": "application/json"}
        by_key = await office.world.ask(method, path, {} if method == "POST" else None, own)
        by_session = await browser.ask(method, path, {} if method == "POST" else None)
        assert (by_session.status, by_session.json.get("error")) == (by_key.status, by_key.json.get("error")), path


async def test_another_page_can_neither_use_a_session_nor_begin_one(office: Administered) -> None:
    """Cross-site request forgery: without the header it is no session, and from another origin it is refused."""
    browser = Browser(office.world)
    await browser.sign_in(office.keys[Role.PLATFORM_ADMIN])
    tenant = {"name": "forged"}
    assert (await browser.ask("POST", "/admin/v1/tenants", tenant, x_console="")).status == 401
    forged = await browser.ask("POST", "/admin/v1/tenants", tenant, sec_fetch_site="same-site")
    assert (forged.status, forged.error["code"]) == (403, "insufficient_permissions")
    origin = {"sec_fetch_site": "", "origin": "https://evil.example.com"}
    assert (await browser.ask("POST", "/admin/v1/tenants", tenant, **origin)).status == 403
    assert "forged" not in [it.name for it in office.registry.tenants()]
    for changed in (origin, {"x_console": ""}):
        assert (await browser.sign_in(office.world.key, **changed)).status == 403
        assert (await browser.ask("DELETE", "/console/session", **changed)).status == 403
    assert (await browser.ask("POST", "/admin/v1/tenants", {"name": "own"})).status == 201


async def test_signing_out_and_revoking_end_it(office: Administered) -> None:
    """At once here, and the page learns which it was."""
    browser = Browser(office.world)
    await browser.sign_in(office.world.key)
    kept = dict(browser.cookies)
    out = await browser.ask("DELETE", "/console/session")
    assert (out.status, browser.cookies) == (204, {})
    browser.cookies = kept
    assert (await browser.ask("GET", "/v1/models")).error["code"] == "session_ended"
    assert (await browser.ask("GET", "/console/session")).json["who"] is None and browser.cookies == {}

    await browser.sign_in(office.world.key)
    office.registry.revoke_key(str(id_of(office.world.key)))
    codes: list[object] = []

    async def ask() -> None:
        answer = await browser.ask("GET", "/v1/models")
        codes.append(answer.json.get("error") and answer.error["code"])

    await ask()
    while codes[-1] is None:
        await ask()
    assert codes[-1] == "key_revoked"
    assert (await browser.ask("DELETE", "/console/session")).status == 204


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"key": "sk-nobody"}, 401),
        ({"key": ""}, 400),
        ({"key": "x" * 58}, 400),
        ({}, 400),
        ({"key": 1}, 400),
        (b"no json", 400),
        (b" " * 2000, 413),
    ],
)
async def test_what_is_no_key_opens_nothing(office: Administered, body: object, status: int) -> None:
    """And leaves no cookie."""
    browser = Browser(office.world)
    assert (await browser.ask("POST", "/console/session", body)).status == status
    assert browser.cookies == {} and browser.set == []


async def test_the_audit_has_who_signed_in_and_out(office: Administered) -> None:
    """And how often someone was refused, by the reason."""
    browser = Browser(office.world)
    await browser.sign_in("sk-nobody")
    await browser.sign_in(office.world.key)
    await browser.ask("DELETE", "/console/session")
    kinds = ["session.begin", "session.end"]
    events = reading.page(office.store, Asked(kinds=kinds), limit=10).events
    assert [(it.kind, it.by["key_id"]) for it in events] == [(kind, id_of(office.world.key)) for kind in kinds]
    administrator = await office.ask("GET", "/audit?kind=session.begin")
    assert administrator.status == 200 and len(administrator.json["data"]) == 1  # type: ignore[arg-type]


async def test_a_gateway_without_a_console_takes_no_cookie(office: Administered, tmp_path: Path) -> None:
    """Its routes are not there, and a session that another gateway of the store began opens nothing here."""
    browser = Browser(office.world)
    await browser.sign_in(office.world.key)
    off = ConsoleSettings(enabled=False)
    async with running_gateway(tmp_path / "off", is_awaited=False, console=off) as world:
        browser.world = world
        assert (await browser.ask("GET", "/console/session")).status == 404
        assert (await browser.ask("GET", "/v1/models")).error["code"] == "invalid_api_key"


async def test_single_sign_on_leads_to_the_issuer_and_back(issuer: Issuer, tmp_path: Path) -> None:
    """By links alone, from the issuer's page to ours; then the person is who the issuer said, with that role."""
    trusted = issuer.settings(client_id="console", role_claim="groups", roles={"ops": "platform_admin"})
    issuer.says = {"groups": ["ops"]}
    async with running_gateway(tmp_path, is_awaited=False, oidc=(trusted,)) as world:
        browser = Browser(world)
        ways = (await browser.ask("GET", "/console/session")).json["sign_ins"]
        assert isinstance(ways, list) and len(ways) == 1
        await _there_and_back(browser, ways[0]["url"])
        who = (await browser.ask("GET", "/console/session")).json["who"]
        assert isinstance(who, dict) and (who["tenant"], who["user"], who["role"], who["key_id"]) == (
            "acme",
            PERSON,
            "platform_admin",
            "oidc",
        )
        assert len(browser.cookies) == 1 and (await browser.ask("GET", "/admin/v1/tenants")).status == 200
        me = (await browser.ask("GET", "/admin/v1/me")).json
        assert (me["user"], me["key"]) == (PERSON, None)
        named = await browser.ask("GET", "/v1/models", x_serving_user="eve")
        assert named.status == 403, "a person's session names no other person"


async def _there_and_back(browser: Browser, url: str) -> Answer:
    left = await browser.go(url)
    assert left.status == 302
    async with browser.world.client.get(left.headers["location"], allow_redirects=False) as answer:
        place = answer.headers["location"]
    assert place.startswith(browser.world.url)
    back = await browser.go(place.removeprefix(browser.world.url))
    assert b'content="0;url=/console"' in back.body, back.body
    return back


async def test_who_comes_back_otherwise_is_led_to_a_reason(issuer: Issuer, tmp_path: Path) -> None:
    """The page has a sentence for each word; log and audit have the status."""
    async with running_gateway(tmp_path, is_awaited=False, oidc=(issuer.settings(client_id="console"),)) as world:
        browser = Browser(world)
        way = f"/console/sign-in?issuer={issuer.url}"
        for said, status, word in (
            ("error=access_denied&state=x", 401, "denied"),
            ("code=1&state=x", 401, "expired"),
            ("", 401, "expired"),
        ):
            back = await browser.go(f"/console/callback?{said}")
            assert back.status == status and f"#/sign-in?error={word}".encode() in back.body
        state = _query(await browser.go(way), "state")
        back = await browser.go(f"/console/callback?code=made-up&state={state}")
        assert back.status == 401 and b"error=refused" in back.body
        state = _query(await browser.go(way), "state")
        await issuer.stop()
        back = await browser.go(f"/console/callback?code=made-up&state={state}")
        assert back.status == 503 and b"error=unavailable" in back.body
        assert browser.cookies == {} and (await browser.go("/console/sign-in?issuer=https://evil")).status == 404
        await until(lambda: [it["status"] for it in world.lines if it["route"] == "/console/callback"][-1:] == [503])


def _query(left: Answer, name: str) -> str:
    return next(
        it.removeprefix(f"{name}=") for it in left.headers["location"].split("?")[1].split("&") if it.startswith(name)
    )


async def test_the_address_that_is_registered_may_be_a_setting(issuer: Issuer, tmp_path: Path) -> None:
    """Behind a proxy that ends TLS, the gateway does not know it; the cookies are of https then."""
    console, oidc = ConsoleSettings(url="https://ai.example.com"), (issuer.settings(client_id="console"),)
    async with running_gateway(tmp_path, is_awaited=False, oidc=oidc, console=console) as world:
        browser = Browser(world)
        left = await browser.go(f"/console/sign-in?issuer={issuer.url}")
        assert "redirect_uri=https%3A%2F%2Fai.example.com%2Fconsole%2Fcallback" in left.headers["location"]
        assert "Secure" in browser.set[0] and list(browser.cookies) == ["__Host-serving-sign-on"]


async def test_so_many_may_sign_in_at_a_time(issuer: Issuer, tmp_path: Path) -> None:
    """Strangers may begin to: an issuer that hangs holds no more of them, and the next one is told to wait."""
    async with running_gateway(tmp_path, is_awaited=False, oidc=(issuer.settings(client_id="console"),)) as world:
        browsers = [Browser(world) for _ in range(door.OPEN_MAX)]
        lefts = [await it.go(f"/console/sign-in?issuer={issuer.url}") for it in browsers]
        issuer.redeems.clear()
        places = [f"/console/callback?code=1&state={_query(left, 'state')}" for left in lefts]
        waiting = [asyncio.create_task(it.go(place)) for it, place in zip(browsers, places, strict=True)]
        await until(lambda: issuer.redeeming == door.OPEN_MAX)
        refused = await Browser(world).sign_in(world.key)
        assert (refused.status, refused.error["code"]) == (503, "overloaded") and refused.headers["retry-after"]
        issuer.redeems.set()
        assert {(await it).status for it in waiting} == {401}
        assert (await Browser(world).sign_in(world.key)).status == 200
