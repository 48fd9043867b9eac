"""Docs: the API's document as it is served, and as a page for people: plain HTML with its style inside, and no script (CON-9)."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from html import escape
from typing import Any

import msgspec

from serving.gateway.api import openapi
from serving.gateway.api.openapi import Document
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.http.asgi import Header
from serving.gateway.http.routing import About, Entry

PATH = "/docs"
_METHODS = ("get", "post", "put", "patch", "delete")

_STYLE = """
:root{color-scheme:light dark;--line:#8885;--soft:#8881;--link:light-dark(#0b57d0,#8ab4f8)}
body{background:Canvas;color:CanvasText;font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem}
a{color:var(--link)}
code{font-family:ui-monospace,monospace;font-size:.9em;overflow-wrap:anywhere}
h2{border-bottom:1px solid var(--line);margin-top:2.5rem}
section{border:1px solid var(--line);border-radius:.5rem;margin:1rem 0;padding:0 1rem 1rem}
h3{font-size:1rem;margin:.8rem 0 .3rem}
h3 b{background:var(--soft);border-radius:.3rem;padding:.1rem .4rem;margin-right:.4rem}
details{margin:.5rem 0}
summary{cursor:pointer}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{border-top:1px solid var(--line);padding:.3rem .6rem .3rem 0;text-align:left;vertical-align:top}
td:first-child{white-space:nowrap}
p.about{white-space:pre-line}
"""
_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)
_GUARDS: tuple[Header, ...] = (
    (b"content-security-policy", _POLICY.encode("ascii")),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Docs:
    """Answers `GET /openapi.json` and `GET /docs`; both are made at the first request, once."""

    def __init__(self, made: Callable[[], Coroutine[Any, Any, Document]]) -> None:
        self._made = made
        self._written: asyncio.Task[tuple[_Written, _Written]] | None = None

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of the document, which are in it too."""
        about = partial(About, tag="service", is_open=True)
        yield Entry("GET", openapi.PATH, self.document, about=about(summary="This document."))
        page = about(summary="This document, for people.", content_type="text/html")
        yield Entry("GET", PATH, self.page, about=page)

    async def document(self, visit: Visit) -> None:
        """`GET /openapi.json`."""
        await (await self._both())[0].answer(visit)

    async def page(self, visit: Visit) -> None:
        """`GET /docs`."""
        await (await self._both())[1].answer(visit)

    async def _both(self) -> tuple[_Written, _Written]:
        if self._written is None or (self._written.done() and self._written.exception()):
            self._written = asyncio.create_task(self._write())
        # Shielded: one client that leaves must not fail the others who wait for it.
        return await asyncio.shield(self._written)

    async def _write(self) -> tuple[_Written, _Written]:
        return await asyncio.to_thread(_both_of, await self._made())


class _Written:
    """A body as it goes out, whole or compressed."""

    def __init__(self, body: bytes, content_type: bytes) -> None:
        self._body = body
        self._gzipped = gzip.compress(body, mtime=0)
        self._content_type = content_type
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._tag = tag
        self._headers: list[Header] = [
            *_GUARDS,
            (b"etag", tag.encode("ascii")),
            (b"vary", b"Accept-Encoding"),
            (b"cache-control", b"no-cache"),
        ]

    async def answer(self, visit: Visit) -> None:
        responder, header = visit.responder, visit.request.header
        if self._tag in (header("if-none-match") or ""):
            await responder.start(304, self._headers)
            await responder.finish()
        elif "gzip" in (header("accept-encoding") or ""):
            headers = [*self._headers, (b"content-encoding", b"gzip")]
            await responder.whole(200, self._gzipped, headers, self._content_type)
        else:
            await responder.whole(200, self._body, self._headers, self._content_type)


def _both_of(document: Document) -> tuple[_Written, _Written]:
    return (
        _Written(msgspec.json.encode(document), b"application/json"),
        _Written(html(document).encode(), b"text/html; charset=utf-8"),
    )


def html(document: Document) -> str:
    """The document for people."""
    info = document["info"]
    title = f"{info['title']} {info['version']}: the API"
    groups = {tag["name"]: tag["description"] for tag in document["tags"]}
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
    )
    links = "".join(f'<li><a href="#{name}">{escape(said)}</a></li>' for name, said in groups.items())
    opening = (
        f'<h1>{escape(title)}</h1><p class="about">{_words(info["description"])}</p>'
        f'<p>The same for programs: <a href="/openapi.json">openapi.json</a></p><nav aria-label="Groups"><ul>{links}</ul></nav>'
    )
    parts = "".join(_group(name, said, document) for name, said in groups.items())
    return f"{head}<body><main>{opening}{parts}</main></body></html>"


def _group(name: str, said: str, document: Document) -> str:
    return f'<h2 id="{name}">{escape(said)}</h2>' + "".join(
        _operation(method, path, operation, document)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in _METHODS and name in operation["tags"]
    )


def _operation(method: str, path: str, operation: Document, document: Document) -> str:
    said = operation.get("description") or operation.get("summary", "")
    heading = f"<h3><b>{method.upper()}</b><code>{escape(path)}</code></h3><p>{_words(said)}</p>"
    return f"<section>{heading}{''.join(_tables(operation, document))}</section>"


def _tables(operation: Document, document: Document) -> Iterator[str]:
    parameters = operation.get("parameters", [])
    rows = [
        (it["name"], _kind(it["schema"]), it.get("required", False), it.get("description", "")) for it in parameters
    ]
    if rows:
        yield _table(f"Parameters ({len(rows)})", rows)
    body = _schema(operation.get("requestBody", {}).get("content", {}), document)
    if properties := body.get("properties"):
        yield _table(f"Body ({len(properties)} fields)", list(_rows(properties, body.get("required", ()))))
    for status, response in operation["responses"].items():
        answer = _schema(response.get("content", {}), document)
        if status.startswith("2") and (properties := answer.get("properties")):
            yield _table(f"Answer {status} ({len(properties)} fields)", list(_rows(properties, ())))


def _schema(content: Document, document: Document) -> Document:
    schema: Document = content.get("application/json", {}).get("schema", {})
    if name := schema.get("$ref"):
        found: Document = document["components"]["schemas"][name.rpartition("/")[2]]
        return found
    return schema


def _rows(properties: Mapping[str, Document], required: Any) -> Iterator[tuple[str, str, bool, str]]:
    for name, schema in properties.items():
        yield name, _kind(schema), name in required, schema.get("description", "")


def _table(title: str, rows: list[tuple[str, str, bool, str]]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if is_required else ''}</td><td>{escape(kind)}</td><td>{_words(said)}</td></tr>"
        for name, kind, is_required, said in rows
    )
    columns = "".join(f'<th scope="col">{it}</th>' for it in ("name", "kind", "what it is"))
    # In a scrolling box that the keyboard reaches.
    table = f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}"><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'
    return f"<details><summary>{escape(title)}</summary>{table}</details>"


def _words(text: str) -> str:
    """A text in which backticks mean code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def _kind(schema: Document) -> str:
    """A JSON schema in a few words."""
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(it) for it in options))
    if name := schema.get("$ref"):
        return str(name).rpartition("/")[2]
    if "enum" in schema:
        return ", ".join(str(it) for it in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
