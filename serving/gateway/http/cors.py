"""CORS: which web pages may call the API from a browser. Off by default: then no answer has any of these headers.

A key is the only thing that lets a caller in, and a page has to send it itself: nothing that a browser adds of its own
(cookies, client certificates) counts here. So credentials are never allowed, and any origin may be (`*`), where the
operator says so. https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from serving.gateway.http.asgi import Header, Request

ANY_ORIGIN = "*"
#: Seconds for which a browser remembers a preflight's answer; it takes a change of `gateway.cors_origins` as long.
PREFLIGHT_AGE_S = 600
#: Headers of an answer that a page may read, beside those that every page may.
EXPOSED = ("x-request-id", "request-id", "x-left-out", "retry-after", "retry-after-ms", "x-should-retry")
#: Every method that a path here takes.
_METHODS = b"GET, HEAD, POST"
#: Names of headers that a page asks for are repeated; they are names, and not without end.
_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}( *, *[A-Za-z0-9-]{1,64}){0,31}")

_VARY: Header = (b"vary", b"Origin")


class Cors:
    """The headers for pages of some origins (`https://chat.example.com`)."""

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._origins = frozenset(origins)
        # Caches must not hand one origin's answer to another.
        self._varies: list[Header] = [_VARY] if self._origins - {ANY_ORIGIN} else []

    def headers(self, request: Request) -> list[Header]:
        """What every answer to this request carries, errors too."""
        allowed = self._allowed(request)
        if allowed is None:
            return self._varies
        exposed = ", ".join(EXPOSED).encode("ascii")
        return [
            (b"access-control-allow-origin", allowed.encode("latin-1")),
            (b"access-control-expose-headers", exposed),
            *self._varies,
        ]

    def preflight(self, request: Request) -> list[Header] | None:
        """What the answer to a browser's question beforehand carries in addition; None where this is no such question.

        Any path is fine: a page can read the 404 of the request that follows.
        """
        if request.method != "OPTIONS" or not request.header("access-control-request-method"):
            return None
        if self._allowed(request) is None:
            return None
        answer: list[Header] = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", str(PREFLIGHT_AGE_S).encode("ascii")),
        ]
        asked = request.header("access-control-request-headers") or ""
        if _NAMES.fullmatch(asked):
            answer.append((b"access-control-allow-headers", asked.encode("ascii")))
        return answer

    def _allowed(self, request: Request) -> str | None:
        origin = request.header("origin")
        if origin is None or not self._origins:
            return None
        if ANY_ORIGIN in self._origins:
            return ANY_ORIGIN
        return origin if origin in self._origins else None
