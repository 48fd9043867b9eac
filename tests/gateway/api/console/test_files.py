"""Files: the page, what it may do, and what a browser keeps of it."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from serving.errors import RouteNotFound
from serving.gateway.api.console import files
from serving.gateway.api.console.files import Files
from serving.gateway.api.visit import Visit
from serving.gateway.http.asgi import Request, Responder
from serving.gateway.observe.tracing import Trace
from tests.gateway.asgi import Wire
from tests.gateway.calls import record

SCRIPT = b"console.log('hello')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page as its build leaves it."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "assets" / "app-1a2b.js").write_bytes(SCRIPT)
    (tmp_path / "secret.txt").write_text("not an asset")
    return tmp_path


async def got(files_: Files, asset: str = "", **headers: str) -> Wire:
    wire = Wire()
    sent = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    request = Request(wire.scope("GET", "/console", sent), wire.receive)
    visit = Visit(request, Responder(wire.send, "r"), record(), Trace(), lambda: 0.0)
    visit.argument = asset
    await (files_.asset(visit) if asset else files_.page(visit))
    return wire


async def test_the_page_may_run_its_own_files_and_ask_its_own_gateway(folder: Path) -> None:
    """No inline script, no eval, no other host, no frame around it; a browser asks for it anew each time."""
    wire = await got(Files(folder))
    assert (wire.status, wire.body) == (200, b"<!doctype html>")
    policy = wire.headers[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    said = dict(it.split(" ", 1) for it in policy.split("; "))
    assert said["script-src"] == said["connect-src"] == "'self'" and said["frame-ancestors"] == "'none'"
    assert wire.headers[b"x-content-type-options"] == b"nosniff"
    assert wire.headers[b"referrer-policy"] == b"no-referrer" and wire.headers[b"cache-control"] == b"no-cache"
    assert wire.headers[b"content-type"] == b"text/html; charset=utf-8"


async def test_what_it_loads_is_kept_for_ever_and_travels_compressed(folder: Path) -> None:
    """Its name changes with what is in it."""
    found = Files(folder)
    plain, zipped = await got(found, "app-1a2b.js"), await got(found, "app-1a2b.js", accept_encoding="br, gzip")
    assert b"immutable" in plain.headers[b"cache-control"] and plain.body == SCRIPT
    assert zipped.headers[b"content-encoding"] == b"gzip" and gzip.decompress(zipped.body) == SCRIPT
    assert plain.headers[b"vary"] == zipped.headers[b"vary"] == b"Accept-Encoding"
    assert b"javascript" in plain.headers[b"content-type"]
    again = await got(found, "app-1a2b.js", if_none_match=plain.headers[b"etag"].decode())
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "../index.html", "../secret.txt", "app-1a2b.js.gz", ""])
async def test_nothing_else_is_served(folder: Path, name: str) -> None:
    """What was not in its folder at the start is not there."""
    with pytest.raises(RouteNotFound):
        await got(Files(folder), name or "app")


async def test_a_tree_without_a_page_has_none(tmp_path: Path) -> None:
    """Its gateway starts all the same."""
    assert not Files(tmp_path).has_page
    with pytest.raises(RouteNotFound):
        await got(Files(tmp_path))


def test_the_page_of_this_package_loads_nothing_from_elsewhere() -> None:
    """Where it has been built: every address in it is below the console's own."""
    page = files.FOLDER / files.PAGE
    places = re.findall(r'(?:src|href)="([^"#]+)', page.read_text()) if page.exists() else []
    assert all(it.startswith(("/console/assets/", "data:")) for it in places)
