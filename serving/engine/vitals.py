"""Vitals: states and processor time of an engine's processes, read from the kernel."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import psutil

from serving.engine import processes

#: Stopped by a signal, or by a debugger.
_STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})
#: vLLM's roles that compute; the others take requests, or keep the cores in step.
_COMPUTING = ("EngineCore", "Worker")
#: The tree's root, which keeps its own title.
_SERVER = "server"


class Reading(msgspec.Struct, frozen=True):
    """The kernel's word on an engine's processes at one moment."""

    #: The first that is stopped.
    stopped: str | None = None
    #: Processor seconds of cores and workers so far.
    computing_s: float = 0.0


class Vitals:
    """The named processes of one engine, found once: when one ends, the engine does."""

    def __init__(self, supervisor_pid: int) -> None:
        self._named = dict(_named(supervisor_pid))

    def read(self) -> Reading:
        """What they are doing; reads a few small files of /proc."""
        stopped: str | None = None
        computing_s = 0.0
        for process, name in self._named.items():
            try:
                with process.oneshot():
                    if process.status() in _STOPPED:
                        stopped = stopped or name
                    times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            computing_s += times.user + times.system if name.startswith(_COMPUTING) else 0.0
        return Reading(stopped, computing_s)


def _named(supervisor_pid: int) -> Iterable[tuple[psutil.Process, str]]:
    try:
        supervisor = psutil.Process(supervisor_pid)
        roots = set(supervisor.children())
        below = supervisor.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in below:
        name = processes.role(process)
        if name and not processes.is_fork(process, name):
            yield process, name
        elif process in roots:
            yield process, _SERVER
