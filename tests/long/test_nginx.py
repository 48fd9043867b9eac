"""Through a real nginx for longer than it waits for an answer by default."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.config import Timeouts
from tests.gateway.world import running_gateway
from tests.loadtest import nginx
from tests.loadtest.running import loadtest
from tests.scripted_engine import MODEL, Script, ScriptedEngine, chat_stream

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

#: nginx gives up after 60 s without a byte (proxy_read_timeout).
SILENCE_S = 75.0


async def test_a_long_silence_passes_nginx(tmp_path: Path) -> None:
    """An engine that says nothing for longer than nginx waits: the gateway's comments keep the stream open."""

    def answer(path: str, body: dict[str, object]) -> Script:
        gate = asyncio.Event()
        asyncio.get_running_loop().call_later(SILENCE_S, gate.set)
        return Script(chat_stream(["Hi", "!"]), gate=gate)

    async with (
        ScriptedEngine(improvise=answer) as engine,
        running_gateway(tmp_path / "gateway", (engine.url,), timeouts=Timeouts()) as world,
    ):
        with nginx.before(world.url, tmp_path / "nginx") as url:
            done = await loadtest(
                "--url", url, "--model", MODEL, "--rate", "3", "--duration-s", "2", "--drain-s", "120",
                key=world.key, folder=tmp_path / "report",
            )  # fmt: skip
    assert done.figures.totals.failed == 0, done.said
    assert done.figures.totals.requests == len(engine.received) > 0
