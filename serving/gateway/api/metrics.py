"""Metrics: the page that Prometheus scrapes, beside the API or on a port of its own."""

from __future__ import annotations

from serving.gateway.api.visit import Visit
from serving.gateway.http.asgi import Receive, Request, Responder, Scope, Send
from serving.gateway.observe.metrics import Metrics

PATH = "/metrics"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsPage:
    """`GET /metrics`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def show(self, visit: Visit) -> None:
        await self._answer(visit.responder)

    async def _answer(self, responder: Responder) -> None:
        await responder.whole(200, await self._metrics.render(), content_type=CONTENT_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of the page's own port: nothing else is there."""
        request = Request(scope, receive)
        responder = Responder(send, request.request_id())
        if (request.method, request.path) == ("GET", PATH):
            await self._answer(responder)
        else:
            await responder.whole(404, b"{}")
