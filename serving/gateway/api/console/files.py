"""Files: the console's page as its build left it, in memory. What a browser may do with it is said in headers: run these files, ask this
gateway, and nothing else (Content Security Policy).
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Iterator
from pathlib import Path

import msgspec

import serving
from serving.errors import RouteNotFound
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.http.asgi import Header
from serving.gateway.http.routing import About, Entry

PATH = "/console"
ASSETS_PATH = f"{PATH}/assets/{{id}}"
#: Where the API's document has the console.
TAG = "console"
FOLDER = Path(serving.__file__).parent / "console"
PAGE = "index.html"
_ASSETS = "assets"

#: Level 3 of the policy (https://www.w3.org/TR/CSP3/): no inline script or style, no eval, no other host.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{what} 'self'" for what in ("script-src", "style-src", "font-src", "connect-src", "form-action")),
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
GUARDS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_OF_PAGE: tuple[Header, ...] = ((b"content-security-policy", _POLICY.encode("ascii")), *GUARDS)
#: Its name changes with what is in it.
_FOR_EVER: Header = (b"cache-control", b"public, max-age=31536000, immutable")
_ASKED_ANEW: Header = (b"cache-control", b"no-cache")


class File(msgspec.Struct, frozen=True):
    """One file, ready to be sent."""

    body: bytes
    gzipped: bytes
    content_type: bytes
    tag: bytes


class Files:
    """Answers `GET /console` and what that page loads."""

    def __init__(self, folder: Path = FOLDER) -> None:
        page = folder / PAGE
        self._page = _read(page) if page.exists() else None
        self._assets = {path.name: _read(path) for path in (folder / _ASSETS).glob("*")}

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of the page, where there is one."""
        if not self.has_page:
            return
        page = About(summary="The page.", tag=TAG, is_open=True, content_type="text/html")
        lead = About(summary="Leads to the page.", tag=TAG, is_open=True, status=308)
        asset = About(summary="What the page loads.", tag=TAG, is_open=True, content_type="application/octet-stream")
        yield Entry("GET", PATH, self.page, about=page)
        yield Entry("GET", f"{PATH}/", self.lead, about=lead)
        yield Entry("GET", ASSETS_PATH, self.asset, about=asset)

    @property
    def has_page(self) -> bool:
        """Was there one at the start? A source tree has none before it is built."""
        return self._page is not None

    async def page(self, visit: Visit) -> None:
        """`GET /console`."""
        if self._page is None:
            raise RouteNotFound("The console's page is not part of this installation.")
        await _answer(visit, self._page, [*_OF_PAGE, _ASKED_ANEW])

    async def asset(self, visit: Visit) -> None:
        """`GET /console/assets/{id}`."""
        found = self._assets.get(visit.argument)
        if found is None:
            raise RouteNotFound("The console's page has no such file.")
        await _answer(visit, found, [*_OF_PAGE, _FOR_EVER])

    async def lead(self, visit: Visit) -> None:
        """`GET /console/`: the page has one address."""
        await visit.responder.whole(308, b"", [(b"location", PATH.encode("ascii"))])


def _read(path: Path) -> File:
    body = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    charset = "; charset=utf-8" if kind.startswith("text/") else ""
    return File(
        body,
        gzip.compress(body),
        f"{kind}{charset}".encode("ascii"),
        f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode("ascii"),
    )


async def _answer(visit: Visit, file: File, headers: list[Header]) -> None:
    headers += [(b"etag", file.tag), (b"vary", b"Accept-Encoding")]
    if file.tag.decode("ascii") in (visit.request.header("if-none-match") or ""):
        await visit.responder.start(304, headers)
        await visit.responder.finish()
        return
    body = file.body
    if "gzip" in (visit.request.header("accept-encoding") or ""):
        body = file.gzipped
        headers.append((b"content-encoding", b"gzip"))
    await visit.responder.whole(200, body, headers, file.content_type)
