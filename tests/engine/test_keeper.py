"""When `up` is killed, nothing that it started is left."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.engine import processes
from tests.waiting import until

#: What `up` does around its stack, with two programs for a stack: one in a session of its own, one whose parent ends.
UP = """
import os, signal, subprocess, time
from serving.engine import keeper, processes
signal.signal(signal.SIGTERM, lambda *_: exit())
with keeper.kept():
    stack = os.environ[processes.STACK_VARIABLE] = processes.new_tree()
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
    subprocess.run(["sh", "-c", "trap '' HUP; sleep 3600 &"])
    print(stack, flush=True)
    time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["kill -9", "the terminal closes"])
def test_nothing_outlives_a_killed_up(tmp_path: Path, number: signal.Signals) -> None:
    """Whatever session and parent a process has, and though the keeper is sent the same signal, unless that is SIGKILL."""
    with subprocess.Popen([sys.executable, "-c", UP], stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        stack = up.stdout.readline().strip()
        below = psutil.Process(up.pid).children(recursive=True) + processes.of_stack(stack)
        (keeper,) = [it for it in below if "serving.engine.keeper" in " ".join(it.cmdline())]
        until(lambda: number != signal.SIGHUP or _ignores(keeper, number))
        if number == signal.SIGHUP:
            keeper.send_signal(number)
        up.send_signal(number)
    until(lambda: not any(processes.is_alive(it) for it in below))


def test_the_keeper_ends_with_an_up_that_ends_by_itself() -> None:
    """Its work is done then."""
    with subprocess.Popen([sys.executable, "-c", UP], stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        stack = up.stdout.readline().strip()
        (keeper,) = [
            it for it in psutil.Process(up.pid).children() if "serving.engine.keeper" in " ".join(it.cmdline())
        ]
        up.terminate()
    assert not processes.is_alive(keeper)
    processes.kill_all(lambda: processes.of_stack(stack))


def _ignores(process: psutil.Process, number: signal.Signals) -> bool:
    (ignored,) = [
        int(line.split()[1], 16)
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("SigIgn")
    ]
    return bool(ignored >> (number.value - 1) & 1)
