"""Merged: one page of all workers, whichever of them answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from serving.gateway.api.merged import MergedHours, MergedPage
from serving.gateway.http.asgi import Message
from serving.gateway.observe.activity import Slot

PAGE = "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total {calls}\n"


class Worker:
    """A worker's own page."""

    def __init__(self) -> None:
        self.calls = 1.0
        self.process = "10"
        self.is_silent = False

    async def metrics(self, _: web.Request) -> web.Response:
        if self.is_silent:
            await asyncio.sleep(60)
        return web.Response(text=PAGE.format(calls=self.calls), headers={"x-process": self.process})

    async def activity(self, _: web.Request) -> web.Response:
        return web.json_response([{"number": 7, "did": {}}])

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"models": {"a": "READY"}})


@asynccontextmanager
async def listening(worker: Worker) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.get("/metrics", worker.metrics), web.get("/health/models", worker.models)])
    app.add_routes([web.get("/activity", worker.activity)])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def got(page: MergedPage, path: str) -> tuple[int, str]:
    """What it answers to a GET."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "headers": [],
        "query_string": b"",
    }
    await page(scope, receive, send)
    return sent[0]["status"], b"".join(it.get("body", b"") for it in sent).decode()


async def test_a_worker_that_does_not_answer_counts_as_it_did_last() -> None:
    """A busy one must not make sums fall; one that has never answered is not there yet."""
    first, second = Worker(), Worker()
    async with AsyncExitStack() as opened:
        urls = [await opened.enter_async_context(listening(it)) for it in (first, second)]
        page = MergedPage([*urls, "http://127.0.0.1:9"], worker_s=0.5)
        assert "\ncalls_total 2.0\n" in (await got(page, "/metrics"))[1]
        second.is_silent, first.calls = True, 5.0
        status, text = await got(page, "/metrics")
        assert (status, "\ncalls_total 6.0\n" in text) == (200, True)


async def test_another_process_in_a_workers_place_is_told_by_its_header() -> None:
    """What the one before had counted stays."""
    worker = Worker()
    async with listening(worker) as url:
        page = MergedPage([url])
        await got(page, "/metrics")
        worker.process, worker.calls = "11", 2.0
        assert "\ncalls_total 3.0\n" in (await got(page, "/metrics"))[1]


async def test_states_of_models_are_those_of_a_worker_that_answers() -> None:
    """All of them poll the same directories. Without any, no model answers."""
    async with listening(Worker()) as url:
        assert await got(MergedPage(["http://127.0.0.1:9", url]), "/health/models") == (
            200,
            '{"models": {"a": "READY"}}',
        )
    assert (await got(MergedPage(["http://127.0.0.1:9"]), "/health/models"))[0] == 503
    assert (await got(MergedPage([]), "/v1/models"))[0] == 404


async def test_the_last_hour_is_of_all_workers() -> None:
    """Of those that answer; a worker that cannot read them has its own."""
    async with AsyncExitStack() as opened:
        urls = [await opened.enter_async_context(listening(Worker())) for _ in range(2)]
        merged = MergedPage([*urls, "http://127.0.0.1:9"])
        status, text = await got(merged, "/activity")
    assert (status, text) == (200, '[[{"number":7,"did":{}}],[{"number":7,"did":{}}]]')
    own = [Slot(1, {})]
    assert await MergedHours(None, lambda: own).read() == [own]
    assert await MergedHours("http://127.0.0.1:9", lambda: own).read() == [own]
