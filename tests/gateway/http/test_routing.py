"""Routing: one table from paths to handlers; exact paths come first, and nothing else is there."""

from __future__ import annotations

import pytest

from serving.errors import MethodNotAllowed, RouteNotFound
from serving.gateway.http.routing import Entry, Routes, require_method
from serving.gateway.nouns import Route

ROUTES = Routes(
    [
        Entry("GET", "/v1/models/{id}", "one"),
        Entry("GET", "/v1/models", "all"),
        Entry("GET", "/v1/models/special", "special"),
        Entry("POST", "/v1/chat", "chat", is_billed=True),
        Entry("GET", "/v1/talks/{id}", "talk"),
        Entry("GET", "/v1/talks/{id}/items/{item_id}", "item"),
        Entry("DELETE", "/v1/talks/{id}/items/{item_id}", "item"),
    ]
)


@pytest.mark.parametrize(
    ("path", "handler", "argument"),
    [
        ("/v1/models", "all", ""),
        ("/v1/models/m", "one", "m"),
        ("/v1/models/openai/gpt-oss-20b", "one", "openai/gpt-oss-20b"),
        ("/v1/models/", "one", ""),
        ("/v1/models/special", "special", ""),
        ("/v1/models/special/x", "one", "special/x"),
        ("/v1/chat", "chat", ""),
        ("/v1/talks/a/items/b", "item", "a/items/b"),
        ("/v1/talks/a/items/b/c", "talk", "a/items/b/c"),
        ("/v1/talks/a", "talk", "a"),
    ],
)
def test_an_exact_path_comes_before_one_that_ends_in_a_name(path: str, handler: str, argument: str) -> None:
    """Whatever order they are listed in; a name may contain slashes."""
    found = ROUTES.find("GET", path)
    assert (found.handler, found.argument) == (handler, argument)


def test_a_route_is_counted_by_its_pattern() -> None:
    """Not by what stands in it, which is a client's; whether it is billed comes with it."""
    assert ROUTES.find("GET", "/v1/models/m").route == Route("/v1/models/{id}")
    assert ROUTES.find("POST", "/v1/chat").route == Route("/v1/chat", is_billed=True)


@pytest.mark.parametrize("path", ["/", "", "/v1/chat/", "/v1/chats", "/v1", "//v1/chat", "/V1/chat"])
def test_any_other_path_is_not_there(path: str) -> None:
    """In OpenAI's words, which name the method and the path."""
    with pytest.raises(RouteNotFound) as refused:
        ROUTES.find("PUT", path)
    assert (refused.value.status, refused.value.message) == (404, f"Invalid URL (PUT {path})")


def test_an_endless_path_is_not_repeated_whole() -> None:
    """256 characters of it are enough to recognise it."""
    with pytest.raises(RouteNotFound) as refused:
        ROUTES.find("GET", "/" + "x" * 10_000)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "post", "X" * 100])
def test_another_method_is_refused_with_the_one_that_is_allowed(method: str) -> None:
    """Methods are case-sensitive (RFC 9110)."""
    with pytest.raises(MethodNotAllowed) as refused:
        require_method(method, "POST")
    assert (refused.value.status, refused.value.allowed) == (405, "POST") and len(refused.value.message) < 60
    require_method("POST", "POST")
    require_method("HEAD", "GET")


def test_a_path_may_take_several_methods() -> None:
    """Each has its handler; another one is told which there are, and HEAD goes where GET does."""
    routes = Routes([Entry("GET", "/s", "show"), Entry("DELETE", "/s", "end"), Entry("*", "/any/{id}", "any")])
    for method, handler in (("GET", "show"), ("HEAD", "show"), ("DELETE", "end")):
        found = routes.find(method, "/s")
        require_method(method, found.method)
        assert found.handler == handler
    with pytest.raises(MethodNotAllowed) as refused:
        require_method("POST", routes.find("POST", "/s").method)
    assert refused.value.allowed == "GET, DELETE"
    found = routes.find("PATCH", "/any/x/y")
    require_method("PATCH", found.method)
    assert (found.handler, found.argument) == ("any", "x/y")
