"""The laptop's stack under more than it can do: `make loadtest`, and ten minutes at twice its capacity."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from loadtest import report
from loadtest.failures import NEVER_EXCUSED
from loadtest.figures import Figures
from tests.long.test_soak import gateway_of, held, until_idle
from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import CACHE, Stack, free_port, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]
#: Users, sizes and SLO of `make loadtest`; tests/loadtest/test_readme.py compares them with the Makefile.
USERS = ("--mix", "chat=8,agent=1,document=1", "--token-scale", "0.2", "--tpot-s", "0.25")
#: More sessions a second than two cores can serve: what is answered meanwhile is what they can.
CROWD_PER_S = 6
MINUTES = 10
#: How a stack says that it has enough to do; each has OpenAI's shape, or it would count as malformed.
REFUSALS = {"503 overloaded", "503 no_replica_ready", "504 engine_timeout"}
#: MiB the gateway may hold more than before, at its fullest and once it is idle again: 1,024 open requests, each with its
#: body, its connections and its buffers, at most 64 KiB together.
RSS_PEAK_MAX_MIB, RSS_GROWTH_MAX_MIB = 96.0, 48.0


def test_make_loadtest_starts_a_stack_and_ends_it(tmp_path: Path) -> None:
    """Where nothing answers: a stack, a report of a ramp whose lowest load had answers inside the SLO, and nothing left
    running."""
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    (home / "models").symlink_to(CACHE / "models")
    line = ["make", "loadtest", f"PORT={port}", "LOADTEST_S=60", f"REPORT={tmp_path / 'report'}"]
    environment = dict(os.environ) | {"SERVING_HOME": str(home)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = report.read(tmp_path / "report" / report.JSON)
    assert figures.windows[0].goodput_per_s > 0 and not _inexcusable(figures), done.stdout
    assert any(look.replicas[SMOLLM2].get("ready") == 1.0 for look in figures.sightings)
    assert (tmp_path / "report" / report.HTML).exists()
    until(lambda: not _of(home), 30)


def _of(home: Path) -> list[psutil.Process]:
    """Processes that were started with this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SERVING_HOME") == str(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_ten_minutes_at_twice_the_capacity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing crashes, leaks or answers with a malformed body; whoever is not served is refused as documented, and the
    stack serves again as soon as it is let."""
    with running(tmp_path / "home", SMOLLM2) as stack:
        began_at = time.monotonic()
        crowd = loadtest(stack, tmp_path / "crowd", "--rate", str(CROWD_PER_S), "--duration-s", "60")
        capacity_per_s = (crowd.totals.requests - crowd.totals.failed) / (time.monotonic() - began_at)
        until_idle(stack)
        gateway, engine = gateway_of(stack), {role: it.pid for role, it in stack.engine_members().items()}
        before = held(gateway)
        with _fullest(gateway) as peak_mib:
            twice = str(2 * capacity_per_s)
            loaded = loadtest(stack, tmp_path / "twice", "--rate", twice, "--duration-s", str(60 * MINUTES))
        until_idle(stack)
        until(lambda: gateway.num_fds() <= before.file_descriptors, 60)
        after = held(gateway)
        assert gateway_of(stack) == gateway, "the gateway was replaced"
        assert {role: it.pid for role, it in stack.engine_members().items()} == engine, "the engine was replaced"
        body = {"model": SMOLLM2, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 4}
        assert call(stack.url, "POST", "/v1/chat/completions", body, bearer(stack.key))[0] == 200
    with capsys.disabled():
        print(f"\ncapacity {capacity_per_s:.2f}/s; gateway {before} → at most {peak_mib[0]:.1f} MiB → {after}")
        print(*report.summary(loaded), sep="\n")
    assert loaded.totals.inside_slo < 0.9, "that was not more than the stack can do"
    assert not _inexcusable(loaded)
    assert {it.said for it in loaded.failures if it.kind == "refused"} <= REFUSALS
    assert {it.kind for it in loaded.failures} <= {"refused", "unfinished", "timedout"}
    assert peak_mib[0] - before.rss_mib < RSS_PEAK_MAX_MIB
    assert after.rss_mib - before.rss_mib < RSS_GROWTH_MAX_MIB


def _inexcusable(figures: Figures) -> list[str]:
    return [f"{it.count} {it.kind}: {it.said}" for it in figures.failures if it.kind in NEVER_EXCUSED | {"lost"}]


def loadtest(stack: Stack, folder: Path, *options: str) -> Figures:
    """A run in a process of its own."""
    line = [sys.executable, "-m", "loadtest", "run", "--url", stack.url, "--key-file", str(stack.home / "admin.key")]
    line += [*USERS, "--drain-s", "120", "--out", str(folder), *options]
    subprocess.run(line, cwd=ROOT, check=True)
    return report.read(folder / report.JSON)


@contextmanager
def _fullest(process: psutil.Process) -> Iterator[list[float]]:
    """The most MiB a process holds while inside; one number, looked for every second."""
    most, is_over = [0.0], threading.Event()

    def look() -> None:
        while not is_over.wait(1.0):
            most[0] = max(most[0], held(process).rss_mib)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        is_over.set()
        looking.join()
