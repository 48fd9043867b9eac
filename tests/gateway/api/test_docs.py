"""Docs: the API's document for people: one page, without a script and without anything from elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from html.parser import HTMLParser

from serving.gateway.api.docs import html
from tests.gateway.world import World


class Page(HTMLParser):
    """Tags that are open and what was seen of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_it_needs_nothing_but_itself(world: World) -> None:
    """No script, no address of another host; its one style is the one that its policy names."""
    answer = await world.ask("GET", "/docs", headers={})
    text, policy = answer.body.decode(), answer.headers["content-security-policy"]
    page = Page()
    page.feed(text)
    assert page.open == [] and "script" not in {tag for tag, _ in page.seen}
    assert not any("style" in attributes or "src" in attributes for _, attributes in page.seen)
    links = {attributes["href"] for tag, attributes in page.seen if tag == "a"}
    assert all(link and link.startswith(("#", "/openapi.json")) for link in links)
    (style,) = re.findall("<style>(.*)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ") and "unsafe" not in policy


async def test_it_has_every_operation_and_field(world: World) -> None:
    """As the document has them."""
    document = (await world.ask("GET", "/openapi.json", headers={})).json
    text = (await world.ask("GET", "/docs", headers={})).body.decode()
    paths = document["paths"]
    assert isinstance(paths, dict)
    for path, operations in paths.items():
        assert text.count(f"<code>{path}</code>") >= len(operations)
    assert "<code>frequency_penalty</code>" in text and "<code>use_beam_search</code>" not in text


async def test_both_are_made_once_and_kept_by_their_name(world: World) -> None:
    """A browser that has it is told so, and it travels compressed."""
    first = await world.ask("GET", "/openapi.json", headers={"Accept-Encoding": "identity"})
    again = await world.ask("GET", "/openapi.json", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    async with world.client.get(
        world.url + "/docs", headers={"Accept-Encoding": "gzip"}, auto_decompress=False
    ) as answer:
        assert answer.headers["content-encoding"] == "gzip" and gzip.decompress(await answer.read()).startswith(b"<!")


def test_what_is_written_in_it_is_text() -> None:
    """Whatever a summary or a name has in it."""
    operation = {"tags": ["t"], "summary": "<script>`a`</script>", "responses": {}}
    document = {
        "info": {"title": "<b>", "version": "1", "description": "x"},
        "tags": [{"name": "t", "description": "&"}],
        "paths": {"/<i>": {"get": operation}},
    }
    text = html(document)
    assert "<script" not in text and "<i>" not in text and "&lt;script&gt;<code>a</code>" in text
