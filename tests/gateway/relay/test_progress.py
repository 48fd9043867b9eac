"""Progress: an engine's own counters say whether it gets on while whole answers are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import pytest
from aiohttp import web

from serving.gateway.http.upstream import Upstream
from serving.gateway.relay.progress import Progress, tokens_in
from tests.clock import Clock

#: Counters whose names begin as those that are read.
OTHERS = ("generation_tokens_created", "prompt_tokens_total_by_source")
PAGE = f"""# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="m"}} 1.5e+02
vllm:prompt_tokens_total{{engine="0",model_name="m"}} 50.0
vllm:{OTHERS[0]}{{engine="0",model_name="m"}} 1.7e+09
vllm:{OTHERS[1]}{{engine="0"}} 9.0
"""


class Counted:
    """An engine whose metrics say what a test wants; its clock goes on with every question."""

    def __init__(self) -> None:
        self._clock = Clock()
        self.looks = 0
        self.tokens = count()
        self.page = "vllm:generation_tokens_total {}"
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        self.url = ""

    def clock(self) -> float:
        self._clock.advance(0.03)
        return self._clock.now

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.looks += 1
        return web.Response(text=self.page.format(next(self.tokens)))


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    engine = Counted()
    await engine.start()
    yield engine
    await engine.stop()


def test_tokens_are_read_off_the_metrics() -> None:
    """Those it made and those it read, whatever labels they have; other lines say nothing."""
    assert tokens_in(PAGE.encode()) == 200.0
    assert tokens_in(b"") is None and tokens_in(b"llamacpp:tokens_predicted_total 5") is None


async def test_an_engine_that_counts_on_is_not_silent(counted: Counted) -> None:
    """However long a whole answer takes; once the counters stand still the limit holds."""
    upstream = Upstream(5.0)
    async with upstream.opened():
        silence = asyncio.create_task(Progress(upstream, None, counted.clock).silence(counted.url, 0.4))
        while counted.looks < 8:
            await asyncio.sleep(0.01)
            assert not silence.done()
        counted.page = "vllm:generation_tokens_total 7"
        await silence


@pytest.mark.parametrize("page", ["", "vllm:generation_tokens_total 7"])
async def test_an_engine_whose_counters_stand_still_or_are_not_there_is_silent(counted: Counted, page: str) -> None:
    """Nothing says that it works on this call."""
    counted.page = page
    upstream = Upstream(5.0)
    async with upstream.opened():
        await Progress(upstream, None, counted.clock).silence(counted.url, 0.4)
    assert counted.looks >= 1
