"""Supervisor: a small process that owns one engine's tree. All of it runs, or none of it.

    replica (Serve actor) ── lifeline pipe ──► supervisor (subreaper) ──► vLLM API server ──► EngineCore ──► workers

It tells its replica on standard output who joined the tree (`joined EngineCore`) and, last, why it ended
(`ended its replica is gone`). The tree ends when the command ends, when any process that vLLM named dies, or when the
lifeline closes because the replica is gone, however it went. The supervisor exits only after the last member has: from
then on the devices are free.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from serving.engine import processes

#: Seconds between two looks at the tree; a death of the command or the lifeline is seen at once.
_LOOK_INTERVAL_S = 0.5
#: Seconds an engine may take to leave on SIGTERM before everything is killed, and between two looks meanwhile.
_TERM_GRACE_S = 5.0
_STOP_LOOK_INTERVAL_S = 0.05
#: Bytes of one engine log; past it the log starts anew and the old one is kept once.
_MAX_LOG_BYTES = 32 * 1024 * 1024


class Tree:
    """One command and everything it starts."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._named: dict[psutil.Process, str] = {}
        with log.open("ab") as output:
            self._root = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.root_pidfd = os.pidfd_open(self._root.pid)

    def loss(self) -> str | None:
        """What has died that should live, or None."""
        if (code := self._root.poll()) is not None:
            return f"the engine's server process ended with {_describe(code)}"
        for process, known_as in self._named.items():
            if not processes.is_alive(process):
                return f"the engine's {known_as} process died"
        for process in processes.descendants():
            # A worker is called `Worker` first and `Worker_TP0` once it knows its rank.
            name = processes.role(process)
            if name and self._named.get(process) != name and not processes.is_fork(process, name):
                self._named[process] = name
                _tell(f"joined {name}")
        return None

    def stop(self) -> None:
        """End the tree and return when nobody is left.

        Front ends go first and at once: asked politely, they end running streams as if these were complete (ENG-7:
        `finish_reason` "abort", then [DONE]). The others may put away what they share before they are killed.
        """
        deadline = time.monotonic() + _TERM_GRACE_S
        self._root.kill()
        for process in processes.descendants():
            is_front_end = (processes.role(process) or "").startswith("APIServer")
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL if is_front_end else signal.SIGTERM)
        while processes.descendants() and time.monotonic() < deadline:
            processes.reap()
            time.sleep(_STOP_LOOK_INTERVAL_S)
        processes.kill_all(processes.descendants)


def trim(log: Path, limit_bytes: int) -> None:
    """Begin a log anew past its limit, the old one kept once; the writers' descriptors stay valid because they append.

    A log that is gone, or a full disk, is no reason to lose an engine.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size <= limit_bytes:
            return
        with contextlib.suppress(OSError):
            shutil.copyfile(log, log.with_suffix(".1.log"))
        os.truncate(log, 0)


def watch(tree: Tree, lifeline_fd: int) -> str:
    """Sleep until the tree has to end; returns why."""
    events = select.poll()
    events.register(lifeline_fd, select.POLLHUP)
    events.register(tree.root_pidfd, select.POLLIN)
    while True:
        ready = dict(events.poll(_LOOK_INTERVAL_S * 1000))
        if lifeline_fd in ready:
            return "its replica is gone"
        if reason := tree.loss():
            return reason
        trim(tree.log, _MAX_LOG_BYTES)


def _tell(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # Nobody is left to tell; the lifeline says the same.
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def main() -> None:
    """Run `-- COMMAND` until it has to end; see the module for what it tells."""
    parser = argparse.ArgumentParser(prog="serving.engine.supervisor", description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    # Only the lifeline decides: a Ctrl-C in the terminal or a SIGTERM to the group reaches the replica first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited by the command
    processes.become_subreaper()
    tree = Tree(arguments.command, arguments.log)
    reason = watch(tree, sys.stdin.fileno())
    tree.stop()
    _tell(f"ended {reason}")


if __name__ == "__main__":
    main()
