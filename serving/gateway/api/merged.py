"""Merged: the metrics of a gateway of several workers, on one page; each worker is asked for its own when the page is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import aiohttp
import msgspec

from serving.errors import InternalError
from serving.gateway.api import metrics
from serving.gateway.api.visit import Visit
from serving.gateway.http.asgi import Receive, Request, Responder, Scope, Send
from serving.gateway.observe.activity import Slot
from serving.gateway.observe.pages import Pages

#: Seconds a worker may take for its page, within the ten that Prometheus waits; then its last one stands.
WORKER_S = 4.0
#: Seconds within which all of them are there.
ALL_S = 8.0


class MergedPage:
    """The ASGI application in front of the workers' own pages: `GET /metrics`, and `GET /health/models` of one of them."""

    def __init__(self, workers: Sequence[str], worker_s: float = WORKER_S) -> None:
        self._workers = workers
        self._worker_s = worker_s
        self._pages = Pages()
        #: One at a time: two scrapes at once must not take an older page for a newer one.
        self._reading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        responder = Responder(send, request.request_id())
        if (request.method, request.path) == ("GET", metrics.PATH):
            await responder.whole(200, await self._render(), content_type=metrics.CONTENT_TYPE)
        elif (request.method, request.path) == ("GET", metrics.MODELS_PATH):
            await responder.whole(*await self._models())
        elif (request.method, request.path) == ("GET", metrics.ACTIVITY_PATH):
            await responder.whole(200, msgspec.json.encode(await self._hours()))
        else:
            await responder.whole(404, b"{}")

    async def _render(self) -> bytes:
        async with self._reading, _client(self._worker_s) as client:
            await asyncio.gather(*(self._take(client, place, url) for place, url in enumerate(self._workers)))
            return self._pages.render()

    async def _take(self, client: aiohttp.ClientSession, place: int, url: str) -> None:
        try:
            async with client.get(url + metrics.PATH) as response:
                self._pages.take(place, response.headers[metrics.PROCESS_HEADER], await response.text())
        except (aiohttp.ClientError, TimeoutError, KeyError):
            return

    async def _models(self) -> tuple[int, bytes]:
        async with _client(self._worker_s) as client:
            for url in self._workers:
                try:
                    async with client.get(url + metrics.MODELS_PATH) as response:
                        return response.status, await response.read()
                except (aiohttp.ClientError, TimeoutError):
                    continue
        return 503, b'{"models":{}}'

    async def _hours(self) -> list[list[Slot]]:
        """Each worker's last hour, of those that answer."""
        async with _client(self._worker_s) as client:
            hours = await asyncio.gather(*(_hour(client, url + metrics.ACTIVITY_PATH) for url in self._workers))
        return [it for it in hours if it is not None]


async def _hour(client: aiohttp.ClientSession, url: str) -> list[Slot] | None:
    try:
        async with client.get(url) as response:
            return msgspec.json.decode(await response.read(), type=list[Slot])
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        return None


class MergedHours:
    """The last hour of all workers, for one that is asked; its own where they cannot be read."""

    def __init__(self, url: str | None, own: Callable[[], list[Slot]]) -> None:
        self._url = url
        self._own = own

    async def read(self) -> list[list[Slot]]:
        if self._url is None:
            return [self._own()]
        try:
            async with _client(ALL_S) as client, client.get(self._url + metrics.ACTIVITY_PATH) as response:
                return msgspec.json.decode(await response.read(), type=list[list[Slot]]) or [self._own()]
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            return [self._own()]


class MergedMetrics:
    """The same page on the API's port, where monitoring has none of its own: a worker fetches it."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def show(self, visit: Visit) -> None:
        try:
            async with _client(ALL_S) as client, client.get(self._url + metrics.PATH) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError):
            raise InternalError("The workers' metrics cannot be read.") from None
        await visit.responder.whole(200, body, content_type=metrics.CONTENT_TYPE)


def _client(limit_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=limit_s))
