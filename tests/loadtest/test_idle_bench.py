"""What an idle stack costs is told by process, with its role; here of two processes instead of a stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from loadtest.idle_bench import Row, main, measure, role, table

#: A process that wakes in a second thread, and below it one that sleeps.
RESTLESS = """
import subprocess, threading, time
below = subprocess.Popen(["sleep", "3600"])
def wake():
    while True:
        time.sleep(0.002)
threading.Thread(target=wake, daemon=True).start()
print("ready", flush=True)
below.wait()
"""


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", RESTLESS], stdout=subprocess.PIPE, start_new_session=True) as it:
        assert it.stdout is not None
        it.stdout.readline()
        yield it.pid
        os.killpg(it.pid, signal.SIGKILL)


def test_every_thread_of_every_process_below_counts(pid: int) -> None:
    """A thread that wakes is seen where the main thread sleeps, and so is a process that does nothing."""
    rows = {row.name.split()[0].rpartition("/")[2]: row for row in measure(pid, 0.5)}
    restless, sleeping = rows[sys.executable.rpartition("/")[2]], rows["sleep"]
    assert restless.wakes_per_s > 0 == sleeping.wakes_per_s
    assert len(restless.threads) == 2 and len(sleeping.threads) == 1


def test_the_command_prints_the_sum_first(pid: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Then the processes; what it ran on stands above."""
    main(["--pid", str(pid), "--seconds", "0.1", "--threads"])
    said = capsys.readouterr().out.splitlines()
    assert "cores of" in said[0] and said[1].split() == ["%", "of", "a", "core", "wakes/s", "process"]
    assert said[2].endswith("  all")


def test_a_row_is_summed_once() -> None:
    """What is too small for a line of its own stands in the last one."""
    rows = [Row("gateway", 0.5, 20.0), Row("keeper", 0.001, 1.0), Row("helper", 0.002, 1.0)]
    _, total, gateway, others = table(rows).splitlines()
    assert total.split() == ["0.50", "22", "all"]
    assert gateway.split() == ["0.50", "20", "gateway"]
    assert others.split() == ["0.00", "2", "2", "others"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/v/bin/python -m serving up --model m --port 8080 --parent 7", "serving up"),
        ("/v/bin/python -m serving --settings /h/gateway-settings.yaml gateway --parent 7", "the gateway"),
        ("/v/bin/python -m serving.engine.supervisor --log /h/l -- /v/bin/python", "the engine's supervisor"),
        ("/v/bin/python -m vllm.entrypoints.cli.main serve /models/m", "vLLM's API server"),
        ("VLLM::Worker_TP0", "vLLM's Worker_TP0"),
        ("ray::ServeReplica:model-gpt-oss-120b:Replica", "the replica of gpt-oss-120b"),
        ("ray::ServeController.listen_for_change", "Serve's controller"),
        ("sleep 3600", "sleep 3600"),
        ("", "ended"),
    ],
)
def test_a_process_is_named_by_its_role(line: str, name: str) -> None:
    """By what it is started as; what is no part of a stack by its command line."""
    assert role(line.split()) == name
