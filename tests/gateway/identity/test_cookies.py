"""Cookies: when one counts, and what a browser is told of it."""

from __future__ import annotations

import pytest

from serving.errors import Forbidden
from serving.gateway.http.asgi import Request
from serving.gateway.identity import cookies
from tests.gateway.asgi import Wire

OWN = {"x-console": "1", "cookie": "a=b; serving-session=word"}


def request(headers: dict[str, str], scheme: str = "http") -> Request:
    wire = Wire()
    sent = tuple((name.encode(), value.encode()) for name, value in ({"host": "ai.example.com"} | headers).items())
    scope = wire.scope("GET", "/", sent)
    scope["scheme"] = scheme
    return Request(scope, wire.receive)


def test_a_session_counts_beside_the_header_of_its_page() -> None:
    """No form and no link of another page can send that."""
    assert cookies.session(request(OWN)) == "word"
    assert cookies.session(request({"cookie": OWN["cookie"]})) is None
    assert cookies.session(request({"x-console": "1", "cookie": "other=1; serving-session="})) is None


@pytest.mark.parametrize(
    "sent",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example.com"},
        {"origin": "null"},
        {"origin": "https://[ai.example.com"},
    ],
)
def test_another_page_is_refused(sent: dict[str, str]) -> None:
    """Whatever it could make a browser send: the browser says where it comes from."""
    with pytest.raises(Forbidden):
        cookies.session(request(OWN | sent))
    with pytest.raises(Forbidden):
        cookies.require_own_page(request(OWN | sent))


def test_the_page_itself_is_not() -> None:
    """As new browsers say it, and as old ones do."""
    for sent in ({"sec-fetch-site": "same-origin"}, {"origin": "https://ai.example.com"}, {}):
        assert cookies.session(request(OWN | sent)) == "word"
    with pytest.raises(Forbidden):
        cookies.require_own_page(request({"sec-fetch-site": "same-origin"}))


def test_over_https_only_a_cookie_of_https_counts() -> None:
    """Another host of the domain could have set one without the prefix."""
    both = OWN | {"cookie": "__Host-serving-session=safe; serving-session=planted"}
    assert cookies.session(request(both)) == cookies.session(request(both, "https")) == "safe"
    assert cookies.session(request(OWN, "https")) is None


def test_a_browser_keeps_it_from_scripts_and_other_sites() -> None:
    """And over https from plain connections and other hosts; single sign-on has to find its own on the way back."""
    assert cookies.begun("w", 60, is_secure=False) == (
        b"set-cookie",
        b"serving-session=w; Path=/; Max-Age=60; HttpOnly; SameSite=Strict",
    )
    assert cookies.begun("w", 60, is_secure=True)[1] == (
        b"__Host-serving-session=w; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure"
    )
    assert b"SameSite=Lax" in cookies.sign_on_begun("w", 60, is_secure=True)[1]
    assert b"Max-Age=0" in cookies.ended(is_secure=True)[1] and b"Max-Age=0" in cookies.sign_on_ended(is_secure=True)[1]


def test_https_is_what_the_settings_the_connection_or_the_browser_says() -> None:
    """A proxy that ends TLS speaks http to us."""
    assert cookies.is_secure(request({}), "https://ai.example.com")
    assert cookies.is_secure(request({}, "https"), None)
    assert cookies.is_secure(request({"origin": "https://ai.example.com"}), None)
    assert not cookies.is_secure(request({"origin": "http://ai.example.com"}), None)
    assert not cookies.is_secure(request({}), None)
