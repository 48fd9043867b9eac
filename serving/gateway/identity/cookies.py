"""Cookies: how a browser shows that its user is signed in to the console, and when that counts (CON-3).

A browser sends cookies by itself, whichever page asks it to. So one counts only beside a header that no other origin's page may
set, and not where the browser says that another page asked. Scripts cannot read it, the console's own included.
"""

from __future__ import annotations

from serving.errors import Forbidden
from serving.gateway.http.asgi import Header, Request

#: What the console's page sends with each request; its value says nothing.
HEADER = "x-console"
#: `__Host-`: browsers take it over https alone, and from no other host of the domain.
_SECURE_PREFIX = "__Host-"
_SESSION = "serving-session"
#: A sign-on that is under way. The issuer's page leads back to ours, and `Strict` would hold it back then.
_SIGN_ON = "serving-sign-on"


def session(request: Request) -> str | None:
    """The session that the console's page shows; None where there is none. Raises Forbidden where another page asks."""
    if request.header(HEADER) is None or (word := _value(request, _SESSION)) is None:
        return None
    require_own_page(request)
    return word


def has_session(request: Request) -> bool:
    """Does it show one, whether it counts or not?"""
    return _value(request, _SESSION) is not None


def sign_on(request: Request) -> str | None:
    """What the browser has carried of a sign-on."""
    return _value(request, _SIGN_ON)


def require_own_page(request: Request) -> None:
    """Raises Forbidden for what the console's own page has not asked for (cross-site request forgery)."""
    if request.header(HEADER) is None or not _is_own_page(request):
        raise Forbidden("This is for the console's own page: send it from there, with the header X-Console.")


def _is_own_page(request: Request) -> bool:
    site, origin = request.header("sec-fetch-site"), request.header("origin")
    if site is not None:
        return site == "same-origin"
    # Browsers of before 2023 send an Origin alone, and only with what changes something.
    # An origin is a scheme and a host, and what a client sends in its place may be anything.
    return origin is None or origin.partition("://")[2] == request.header("host")


def begun(word: str, lasts_s: float, *, is_secure: bool) -> Header:
    """The header that gives a browser its session."""
    return _set(_SESSION, word, lasts_s, "/", "Strict", is_secure=is_secure)


def ended(*, is_secure: bool) -> Header:
    """The header that takes it away."""
    return begun("", 0, is_secure=is_secure)


def sign_on_begun(carried: str, lasts_s: float, *, is_secure: bool) -> Header:
    """The header by which a browser carries a sign-on."""
    return _set(_SIGN_ON, carried, lasts_s, "/", "Lax", is_secure=is_secure)


def sign_on_ended(*, is_secure: bool) -> Header:
    """The header that ends that."""
    return sign_on_begun("", 0, is_secure=is_secure)


def is_secure(request: Request, url: str | None) -> bool:
    """Does the browser speak https, as far as the settings, the connection or its own word say?"""
    said = url or request.header("origin") or ""
    return request.scheme == "https" or said.startswith("https://")


def _set(name: str, value: str, lasts_s: float, path: str, same_site: str, *, is_secure: bool) -> Header:
    words = [f"{_SECURE_PREFIX if is_secure else ''}{name}={value}", f"Path={path}", f"Max-Age={round(lasts_s)}"]
    words += ["HttpOnly", f"SameSite={same_site}", *(["Secure"] if is_secure else [])]
    return b"set-cookie", "; ".join(words).encode("ascii")


def _value(request: Request, name: str) -> str | None:
    """The cookie of that name, the one that only https has first."""
    sent = dict(reversed([_pair(it) for it in (request.header("cookie") or "").split(";")]))
    return sent.get(_SECURE_PREFIX + name) or (None if request.scheme == "https" else sent.get(name)) or None


def _pair(cookie: str) -> tuple[str, str]:
    name, _, value = cookie.partition("=")
    return name.strip(), value.strip()
