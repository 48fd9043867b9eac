"""Through a real nginx with its defaults: streams arrive as they are made."""

from __future__ import annotations

import asyncio
from pathlib import Path

from loadtest.figures import Latencies, Quantiles
from tests.gateway.world import running_gateway
from tests.loadtest import nginx
from tests.loadtest.running import Talker, loadtest
from tests.scripted_engine import MODEL, ScriptedEngine

LOAD = ("--model", MODEL, "--rate", "3", "--duration-s", "3", "--drain-s", "15", "--token-scale", "0.2")
#: Seconds between two pieces: far above what any proxy adds.
PACE_S = 0.04


def known(it: Quantiles | None) -> Quantiles:
    assert it is not None
    return it


async def measured(url: str, key: str, folder: Path) -> tuple[Latencies, Latencies]:
    """The same load sent directly and through nginx, side by side."""
    with nginx.before(url, folder / "nginx") as front:
        direct, through = await asyncio.gather(
            loadtest("--url", url, *LOAD, key=key, folder=folder / "direct"),
            loadtest("--url", front, *LOAD, key=key, folder=folder / "through"),
        )
    for run in (direct, through):
        assert run.figures.totals.failed == 0, run.said
    assert direct.figures.totals.output_tokens == through.figures.totals.output_tokens
    return direct.figures.latencies["all"], through.figures.latencies["all"]


async def test_streams_pass_nginx_as_they_are_made(tmp_path: Path) -> None:
    """The gaps behind nginx are those before it, and its first token comes as long before the last."""
    async with (
        ScriptedEngine(improvise=Talker(PACE_S).answer) as engine,
        running_gateway(tmp_path / "gateway", (engine.url,)) as world,
    ):
        direct, through = await measured(world.url, world.key, tmp_path)
    assert known(through.itl_s).count == known(direct.itl_s).count
    assert 0.5 < known(through.itl_s).p50 / known(direct.itl_s).p50 < 2
    assert known(through.ttft_s).p50 < known(through.latency_s).p50 / 2


async def test_an_nginx_that_holds_streams_back_is_seen(tmp_path: Path) -> None:
    """The test above can fail: an engine without our gateway does not tell nginx to pass streams on, and its pieces come
    in heaps of 4 KiB, at nothing from one another."""
    async with ScriptedEngine(improvise=Talker(PACE_S).answer) as engine:
        direct, through = await measured(engine.url, "any", tmp_path)
    assert known(through.itl_s).p50 < known(direct.itl_s).p50 / 2
