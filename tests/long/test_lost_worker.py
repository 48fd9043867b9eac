"""A load test that loses one of its workers says so."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.loadtest.running import loadtest, processes
from tests.scripted_engine import MODEL, Script, ScriptedEngine, unscripted

pytestmark = pytest.mark.long


async def test_what_a_killed_worker_had_is_counted_as_failed(tmp_path: Path) -> None:
    """Sessions that it did not report are failures by name, the others' figures stay, and the run ends."""
    killed: list[psutil.Process] = []

    def answer(path: str, body: dict[str, object]) -> Script:
        if not killed:
            killed.append(processes("worker")[0])
            killed[0].kill()
        return unscripted(path, body)

    async with ScriptedEngine(improvise=answer) as engine:
        done = await loadtest(
            "--url", engine.url, "--model", MODEL, "--rate", "10", "--duration-s", "4", "--drain-s", "5",
            "--workers", "2", key="any", folder=tmp_path,
        )  # fmt: skip
    totals = done.figures.totals
    assert totals.requests == totals.sessions_planned
    assert totals.sessions_lost >= totals.sessions_planned // 2 - 1
    assert {it.kind: it.count for it in done.figures.failures}["lost"] == totals.sessions_lost
    assert totals.verdicts["met"] > 0
