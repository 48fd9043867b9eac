"""Routing: from a method and a path to the handler that answers. Every path the gateway answers is an entry of one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

from serving.errors import MethodNotAllowed, RouteNotFound
from serving.gateway.nouns import Route

#: The end of a path that stands for one name: what follows the last slash, slashes of its own included.
PARAMETER = "/{id}"

#: What stands for one name within a path: no slash.
_NAME = re.compile(r"\{[a-z_]+\}")

#: In place of a method: the handler says itself which it takes.
ANY = "*"

HandlerT = TypeVar("HandlerT")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the API's document says of a route."""

    summary: str
    tag: str
    #: Shapes of a JSON body and of the answer; None where there is none, or it is no JSON.
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    status: int = 200
    #: Of an answer that is no JSON.
    content_type: str = "application/json"
    #: Parameter of the query → what it means.
    query: Mapping[str, str] = {}
    #: It takes no key.
    is_open: bool = False


class Entry(msgspec.Struct, Generic[HandlerT], frozen=True):
    """One path, the method it is asked with, and its handler."""

    method: str
    path: str
    handler: HandlerT
    is_billed: bool = False
    #: None where a document of its own, or a dialect's fields, say it.
    about: About | None = None

    @property
    def route(self) -> Route:
        return Route(self.path, self.is_billed)


class Found(msgspec.Struct, Generic[HandlerT], frozen=True):
    """The handler for a path, the route it is counted under, and what stands in place of `{id}`: of a path with names within, all
    from the first name on.
    """

    handler: HandlerT
    route: Route
    #: The one that it takes; those of the path, with commas between them, where none is the one that was asked.
    method: str
    argument: str = ""


#: What one path has for each method, in the order of the table.
_Methods = dict[str, Found[HandlerT]]


class Routes(Generic[HandlerT]):
    """The table. Exact paths first, then those with a name within, then those that end in one."""

    def __init__(self, entries: Iterable[Entry[HandlerT]]) -> None:
        self._exact: dict[str, _Methods[HandlerT]] = {}
        self._patterns: dict[re.Pattern[str], _Methods[HandlerT]] = {}
        self._prefixes: dict[str, _Methods[HandlerT]] = {}
        for entry in entries:
            self._of_path(entry.path)[entry.method] = Found(entry.handler, entry.route, entry.method)

    def _of_path(self, path: str) -> _Methods[HandlerT]:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        if path.index("{") == len(path) - len("{id}") and path.endswith(PARAMETER):
            return self._prefixes.setdefault(path.removesuffix("{id}"), {})
        before = path[: path.index("{")]
        pattern = re.compile(f"{re.escape(before)}({_NAME.sub('[^/]+', path[len(before) :])})")
        return self._patterns.setdefault(pattern, {})

    def find(self, method: str, path: str) -> Found[HandlerT]:
        """What answers this path; raises RouteNotFound. Whether the method is allowed is for `require_method`."""
        if methods := self._exact.get(path):
            return _of_method(methods, method)
        for pattern, methods in self._patterns.items():
            if match := pattern.fullmatch(path):
                return msgspec.structs.replace(_of_method(methods, method), argument=match[1])
        for prefix, methods in self._prefixes.items():
            if path.startswith(prefix):
                return msgspec.structs.replace(_of_method(methods, method), argument=path.removeprefix(prefix))
        raise RouteNotFound(f"Invalid URL ({method} {path[:256]})")


def _of_method(methods: _Methods[HandlerT], method: str) -> Found[HandlerT]:
    found = methods.get(method) or methods.get("GET" if method == "HEAD" else ANY) or methods.get(ANY)
    return found or msgspec.structs.replace(next(iter(methods.values())), method=", ".join(methods))


def require_method(method: str, allowed: str) -> None:
    """Raises MethodNotAllowed, which names those that are. Where GET is, HEAD is too (RFC 9110, 9.3.2)."""
    if allowed not in (method, ANY) and (method, allowed) != ("HEAD", "GET"):
        raise MethodNotAllowed(f"Not allowed to {method[:16]} here; use {allowed}.", allowed=allowed)
