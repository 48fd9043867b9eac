"""Boundary: which requests may reach a vLLM server? An ASGI middleware inside vLLM, loaded by `--middleware`.

vLLM's own `--api-key` guards only some of its routes, and it has routes that sleep, reload or reconfigure an engine.
This allow-list admits only the routes that a gateway or the engine's replica needs, and those require the plane secret.
Metrics leave with our labels (`engine/exposition`). When the middleware is made, methods of vLLM's that turn
conversations into prompts, and Harmony into answers, are replaced (`engine/harmony`, `engine/markers`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from serving.engine import continuation, counting, exposition, harmony, markers
from serving.engine.exposition import LABELS_VARIABLE, relabelled
from serving.secret import PlaneSecret
from serving.wire import ENGINE_ROUTES, LIVENESS_ROUTE

#: Routes for the replica that owns the engine. Loading is not among them: vLLM's own resolver loads, from one folder.
OWNER_ROUTES: frozenset[tuple[str, str]] = frozenset({("POST", "/v1/unload_lora_adapter")})

METRICS_PATH = "/metrics"
#: How the model's conversations become prompts: `harmony` or `template`; not set where there are none.
PROMPTS_VARIABLE = "_SERVING_PROMPTS"
HARMONY, TEMPLATE = "harmony", "template"

#: Names the secret file to the middleware, which vLLM constructs without arguments of ours.
SECRET_FILE_VARIABLE = "_SERVING_PLANE_SECRET_FILE"  # noqa: S105 A variable's name.

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Boundary:
    """Answers 401 without the secret and 404 off the allow-list, both without a body."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._secret = PlaneSecret(Path(os.environ[SECRET_FILE_VARIABLE]))
        match os.environ.get(PROMPTS_VARIABLE):
            case "harmony":
                harmony.install()
            case "template":
                markers.install()
        if PROMPTS_VARIABLE in os.environ:
            continuation.install()
        self._metric_labels = os.environ.get(LABELS_VARIABLE, "").encode()

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http" and (status := self._refusal_status(scope)):
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        elif scope["type"] == "http" and scope["path"] == METRICS_PATH and (names := _names(scope)):
            await self._send_chosen(names, send)
        elif scope["type"] == "http" and scope["path"] == METRICS_PATH and self._metric_labels:
            # Uncompressed, so that it can be read here.
            plain = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}
            await self._app(plain, receive, rewritten(send, lambda page: relabelled(page, self._metric_labels)))
        elif scope["type"] == "http" and counting.asks(scope):
            await self._app(counting.to_render(scope), receive, rewritten(send, counting.counted))
        elif scope["type"] == "http" and (journal := continuation.of_headers(scope["headers"])) is not None:
            await self._app(scope, *await continuation.entered(journal, receive, send))
        else:
            await self._app(scope, receive, send)

    async def _send_chosen(self, names: list[str], send: Callable[[Message], Awaitable[None]]) -> None:
        page = await asyncio.to_thread(exposition.chosen, names)
        body = relabelled(page, self._metric_labels) if self._metric_labels else page
        headers = [(b"content-type", exposition.CONTENT_TYPE), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal_status(self, scope: Scope) -> int | None:
        return refusal_status(scope["method"], scope["path"], _authorization(scope), self._secret)


def rewritten(
    send: Callable[[Message], Awaitable[None]], change: Callable[[bytes], bytes]
) -> Callable[[Message], Awaitable[None]]:
    """A `send` that buffers an answer and changes it when it is complete."""
    start: Message = {}
    body = bytearray()

    async def send_rewritten(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        body.extend(message.get("body", b""))
        if message.get("more_body"):
            return
        changed = change(bytes(body))
        headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(changed)).encode())]})
        await send({"type": "http.response.body", "body": changed})

    return send_rewritten


def refusal_status(method: str, path: str, authorization: bytes, secret: PlaneSecret) -> int | None:
    """The status to refuse this request with; None when it may pass."""
    if (method, path) == LIVENESS_ROUTE:
        return None
    if not secret.accepts(authorization):
        return 401
    return None if (method, path) in ENGINE_ROUTES | OWNER_ROUTES else 404


def _names(scope: Scope) -> list[str]:
    return exposition.names(scope.get("query_string", b""))


def _authorization(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value)
    return b""
