"""Routing: from a method and a path to the handler that answers. Every path the gateway answers is an entry of one table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from serving.errors import MethodNotAllowed, RouteNotFound
from serving.gateway.nouns import Route

#: The end of a path that stands for one name: what follows the last slash, slashes of its own included.
PARAMETER = "/{id}"

#: In place of a method: the handler says itself which it takes.
ANY = "*"

HandlerT = TypeVar("HandlerT")


class Entry(msgspec.Struct, Generic[HandlerT], frozen=True):
    """One path, the method it is asked with, and its handler."""

    method: str
    path: str
    handler: HandlerT
    is_billed: bool = False

    @property
    def route(self) -> Route:
        return Route(self.path, self.is_billed)


class Found(msgspec.Struct, Generic[HandlerT], frozen=True):
    """The handler for a path, the route it is counted under, and what stands in place of `{id}`."""

    handler: HandlerT
    route: Route
    method: str
    argument: str = ""


class Routes(Generic[HandlerT]):
    """The table. Exact paths first, then those that end in a name."""

    def __init__(self, entries: Iterable[Entry[HandlerT]]) -> None:
        self._exact: dict[str, Found[HandlerT]] = {}
        self._prefixes: dict[str, Found[HandlerT]] = {}
        for entry in entries:
            found = Found(entry.handler, entry.route, entry.method)
            if entry.path.endswith(PARAMETER):
                self._prefixes[entry.path.removesuffix("{id}")] = found
            else:
                self._exact[entry.path] = found

    def find(self, method: str, path: str) -> Found[HandlerT]:
        """What answers this path; raises RouteNotFound. Whether the method is allowed is for `require_method`."""
        if found := self._exact.get(path):
            return found
        for prefix, found in self._prefixes.items():
            if path.startswith(prefix):
                return msgspec.structs.replace(found, argument=path.removeprefix(prefix))
        raise RouteNotFound(f"Invalid URL ({method} {path[:256]})")


def require_method(method: str, allowed: str) -> None:
    """Raises MethodNotAllowed, which names the method that is. Where GET is, HEAD is too (RFC 9110, 9.3.2)."""
    if allowed not in (method, ANY) and (method, allowed) != ("HEAD", "GET"):
        raise MethodNotAllowed(f"Not allowed to {method[:16]} here; use {allowed}.", allowed=allowed)
