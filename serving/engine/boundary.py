"""Boundary: which calls may enter a vLLM server? An ASGI middleware inside vLLM, given to it by `--middleware`.

vLLM's own `--api-key` guards some of its routes only, and it has routes that sleep, reload or reconfigure an engine.
Here everything is closed but the routes a gateway needs, and those want the plane secret.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from serving.secret import PlaneSecret
from serving.wire import ENGINE_ROUTES, LIVENESS_ROUTE

#: Names the secret file to the middleware, which vLLM constructs without arguments of ours.
SECRET_FILE_VARIABLE = "_SERVING_PLANE_SECRET_FILE"  # noqa: S105 A variable's name.

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Boundary:
    """Refuses with 401 without the secret and with 404 beyond the allow-list; says nothing about either."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._secret = PlaneSecret(Path(os.environ[SECRET_FILE_VARIABLE]))

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http" and (status := self._refusal_status(scope)):
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send)

    def _refusal_status(self, scope: Scope) -> int | None:
        return refusal_status(scope["method"], scope["path"], _authorization(scope), self._secret)


def refusal_status(method: str, path: str, authorization: bytes, secret: PlaneSecret) -> int | None:
    """The status to refuse this call with, or None when it may enter."""
    if (method, path) == LIVENESS_ROUTE:
        return None
    if not secret.accepts(authorization):
        return 401
    return None if (method, path) in ENGINE_ROUTES else 404


def _authorization(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value)
    return b""
