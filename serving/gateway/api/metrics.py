"""Metrics: the page that Prometheus scrapes, beside the API or on a port of its own; there, the models' states too."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from serving.gateway.api.visit import Visit
from serving.gateway.http.asgi import Receive, Request, Responder, Scope, Send
from serving.gateway.observe.activity import Slot
from serving.gateway.observe.metrics import Metrics

PATH = "/metrics"
MODELS_PATH = "/health/models"
#: What this process did in the last hour, for the other processes of its gateway.
ACTIVITY_PATH = "/activity"
#: A name of the process that counts, drawn at its start: another one counts from 0.
PROCESS_HEADER = "x-process"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsPage:
    """`GET /metrics`, and on a port of its own `GET /health/models`."""

    def __init__(
        self, metrics: Metrics, models: Callable[[], tuple[int, msgspec.Struct]], slots: Callable[[], list[Slot]]
    ) -> None:
        self._metrics = metrics
        self._models = models
        self._slots = slots
        self._process = (PROCESS_HEADER.encode(), secrets.token_hex(8).encode())

    async def show(self, visit: Visit) -> None:
        await self._answer(visit.responder)

    async def _answer(self, responder: Responder) -> None:
        await responder.whole(200, await self._metrics.render(), [self._process], content_type=CONTENT_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of the page's own port: nothing else is there."""
        request = Request(scope, receive)
        responder = Responder(send, request.request_id())
        if (request.method, request.path) == ("GET", PATH):
            await self._answer(responder)
        elif (request.method, request.path) == ("GET", MODELS_PATH):
            status, states = self._models()
            await responder.whole(status, msgspec.json.encode(states))
        elif (request.method, request.path) == ("GET", ACTIVITY_PATH):
            await responder.whole(200, msgspec.json.encode(self._slots()))
        else:
            await responder.whole(404, b"{}")
