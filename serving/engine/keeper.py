"""Keeper: ends what is left of `serving up` when `up` itself is gone, however it went: kill -9, the OOM killer, a closed
terminal.

    serving up ─┬─ keeper (waits for the end of `up`)
                └─ everything else, with the stack's name in its environment

It carries no mark itself and ignores what a terminal sends. When `up` ends as it should, it ends this process last.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

from serving.engine import leftovers


@contextlib.contextmanager
def kept() -> Iterator[subprocess.Popen[bytes]]:
    """Start the keeper of this process; it is killed at the end, when there is nothing left for it to do."""
    keeper = subprocess.Popen(
        [sys.executable, "-m", "serving.engine.keeper", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield keeper
    finally:
        keeper.kill()
        keeper.wait()


def wait_for_end(pid: int) -> None:
    """Return when process `pid`, which started this one, is gone."""
    with contextlib.suppress(ProcessLookupError):
        events = select.poll()
        events.register(os.pidfd_open(pid), select.POLLIN)
        if os.getppid() == pid:  # else the number may be another process's by now
            events.poll()


def main() -> None:
    """Wait for the end of process PID, then sweep."""
    parser = argparse.ArgumentParser(prog="serving.engine.keeper", description=__doc__)
    parser.add_argument("pid", type=int)
    pid = parser.parse_args().pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wait_for_end(pid)
    leftovers.sweep()


if __name__ == "__main__":
    main()
