"""Processes of the benchmark: started, waited for, ended; what a tree of them has used."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from serving.errors import Refusal

#: Seconds a process may take until it answers.
START_S = 60.0
#: Seconds after SIGTERM until it is killed.
STOP_S = 10.0
#: The kind of clock that the kernel keeps for a process: all of its threads, ended ones included (clock_getcpuclockid(3)).
_CPUCLOCK_SCHED = 2
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Tree:
    """A process and all below it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def _pids(self) -> list[int]:
        return [process.pid for process in self.processes()]

    def processes(self) -> list[psutil.Process]:
        """Those that run now, its own among them."""
        return [self._root, *self._root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Seconds of processor time, to the nanosecond."""
        used_s = 0.0
        for pid in self._pids():
            with suppress(OSError):  # it has ended meanwhile
                used_s += time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
        return used_s

    def resident_mb(self) -> float:
        """Resident memory in MB of 10^6 bytes; pages that two of them share count twice."""
        statm = (Path(f"/proc/{pid}/statm").read_text() for pid in self._pids())
        return sum(int(line.split()[1]) for line in statm) * PAGE_BYTES / 1e6


@contextmanager
def running(
    line: Sequence[object],
    log: Path,
    environment: Mapping[str, str],
    is_ready: Callable[[], bool],
    start_s: float = START_S,
    stop_s: float = STOP_S,
) -> Iterator[Tree]:
    """That command, from its being ready to the end of the block; raises Refusal when it does not get there.

    Afterwards nothing that it started is left.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(it) for it in line],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
        )
    tree = Tree(process.pid)
    try:
        _await(process, log, is_ready, start_s)
        yield tree
    finally:
        left = tree.processes() if process.poll() is None else []
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _await(process: subprocess.Popen[bytes], log: Path, is_ready: Callable[[], bool], start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()[-500:]
            raise Refusal(f"{' '.join(map(str, process.args))} does not answer: {said}")  # type: ignore[arg-type]
        time.sleep(0.1)
