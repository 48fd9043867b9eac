"""Supervisor: a small process that owns one engine's process tree. Either the whole tree runs, or nothing of it.

    replica (Serve actor) ── lifeline pipe ──► supervisor (subreaper) ──► vLLM API server ──► EngineCore ──► workers

It is no child of its replica: Ray's worker SIGKILLs its children when it exits, before a lifeline is read (ENG-50).

On standard output it reports to its replica its own process id (`supervised by 4711`), which processes joined the tree
(`joined EngineCore`) and, last, why it ended (`ended its replica is gone`). The tree ends when the command ends, when any process that vLLM named dies, or when
the lifeline closes because the replica is gone. The supervisor exits only after the last member: from then on the
devices are free.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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
from serving.lifetime import end_with

#: Seconds between two scans of the tree for processes that join; the end of one that has, of the command or of the lifeline is
#: seen at once. A scan reads every process of the machine (7 ms where there are 190), so they are rare once none has joined for
#: a while.
_POLL_INTERVAL_S = 0.5
_SETTLED_INTERVAL_S = 5.0
_SETTLED_AFTER_S = 60.0
#: Seconds that an engine gets after SIGTERM before everything is killed, and seconds between two scans meanwhile.
_TERM_GRACE_S = 5.0
_STOP_POLL_INTERVAL_S = 0.05
#: Bytes at which an engine's log is rotated; one old log is kept.
_MAX_LOG_BYTES = 32 * 1024 * 1024


class Tree:
    """One command and everything it starts."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._named: dict[psutil.Process, str] = {}
        with log.open("ab") as output:
            self._root = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # A killed supervisor cannot end the tree. This ends its front end at once; the sweep finds the others.
                preexec_fn=functools.partial(end_with, os.getpid(), signal.SIGKILL),
            )
        #: Becomes ready when the command ends, or a process that vLLM named.
        self.ends = select.poll()
        self.ends.register(os.pidfd_open(self._root.pid), select.POLLIN)
        self._joined_at = time.monotonic()

    @property
    def pause_s(self) -> float:
        """Seconds after which to look for processes that have joined."""
        is_settled = time.monotonic() - self._joined_at > _SETTLED_AFTER_S
        return _SETTLED_INTERVAL_S if is_settled else _POLL_INTERVAL_S

    def loss(self) -> str | None:
        """Which required process has died, in one clause; None while all of them run."""
        if (code := self._root.poll()) is not None:
            return f"the engine's server process ended with {_describe(code)}"
        for process, known_as in self._named.items():
            if not processes.is_alive(process):
                return f"the engine's {known_as} process died"
        for process in processes.descendants():
            # A worker's title is `Worker` first, and `Worker_TP0` once it knows its rank.
            name = processes.role(process)
            if name and self._named.get(process) != name and not processes.is_fork(process, name):
                self._join(process, name)
        return None

    def _join(self, process: psutil.Process, name: str) -> None:
        if process not in self._named:
            with contextlib.suppress(ProcessLookupError):  # it has ended already, as the next look shows
                self.ends.register(os.pidfd_open(process.pid), select.POLLIN)
        self._named[process] = name
        self._joined_at = time.monotonic()
        _report(f"joined {name}")

    def stop(self) -> None:
        """End the tree; return when no process of it is left.

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
            time.sleep(_STOP_POLL_INTERVAL_S)
        processes.kill_all(processes.descendants)


def trim(log: Path, limit_bytes: int) -> None:
    """Rotate a log past its limit, one old log kept; the writers' descriptors stay valid because they append.

    A missing log or a full disk must not end an engine.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size <= limit_bytes:
            return
        with contextlib.suppress(OSError):
            shutil.copyfile(log, log.with_suffix(".1.log"))
        os.truncate(log, 0)


def watch(tree: Tree, lifeline_fd: int) -> str:
    """Block until the tree has to end; returns why."""
    tree.ends.register(lifeline_fd, select.POLLHUP)
    while True:
        ready = dict(tree.ends.poll(tree.pause_s * 1000))
        if lifeline_fd in ready:
            return "its replica is gone"
        if reason := tree.loss():
            return reason
        trim(tree.log, _MAX_LOG_BYTES)


def _leave_parent() -> None:
    """Go on as a grandchild: the process that was started ends at once, and its pipes go on with this one."""
    if os.fork():
        os._exit(0)


def _report(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # The replica is gone, as the lifeline shows too.
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def main() -> None:
    """Run `-- COMMAND` until it has to end; the module says what it reports."""
    parser = argparse.ArgumentParser(prog="serving.engine.supervisor", description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    _leave_parent()
    # Only the lifeline decides: Ctrl-C in the terminal, or SIGTERM to the group, reaches the replica too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited by the command
    processes.become_subreaper()
    tree = Tree(arguments.command, arguments.log)
    _report(f"supervised by {os.getpid()}")
    reason = watch(tree, sys.stdin.fileno())
    tree.stop()
    _report(f"ended {reason}")


if __name__ == "__main__":
    main()
