"""Parts: the processes that a stack on one machine cannot be without. Is one of them gone?

Engines are no parts: Serve replaces their replicas, and fleets shrink on purpose. The gateway's end is seen by `up` itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Set

import msgspec
import psutil

from serving.engine import processes

#: Seconds that Ray and Serve get to start one of their actors again. It takes 3 to 5 on two cores (measured) and many
#: times that where others want them; meanwhile requests are served, so that an early end would be the greater harm.
HEAL_S = 60.0
#: Seconds between two searches for parts that are new; the end of a known one is seen at once. A search reads every process of
#: the machine, for 7 ms where there are 190, so they are rare once nothing has changed for a while.
_INTERVAL_S = 2.0
_SETTLED_INTERVAL_S = 15.0
_SETTLED_AFTER_S = 60.0
#: Seconds between a part's end and the look at it: a signal that went to the whole stack reaches this process meanwhile.
_SIGNAL_S = 0.3


class Part(msgspec.Struct, frozen=True):
    """A process by its role."""

    name: str
    #: Is it started again by Ray when it ends? Whatever else ends takes Ray's node with it, or is never replaced.
    is_restarted: bool = False


#: What the command line or the title of a part contains. Ray 2.60's raylet ends with either of its agents (source).
_PARTS = {
    "gcs/gcs_server": Part("Ray's GCS"),
    "raylet/raylet": Part("Ray's raylet"),
    "dashboard/dashboard.py": Part("Ray's dashboard"),
    "ray::DashboardAgent": Part("Ray's dashboard agent"),
    "ray::RuntimeEnvAgent": Part("Ray's runtime environment agent"),
    "ray::ServeController": Part("Serve's controller", is_restarted=True),
    "ray::ProxyActor": Part("Serve's proxy", is_restarted=True),
    "ray::ServeReplica:directory": Part("the directory", is_restarted=True),
    "serving.engine.keeper": Part("the keeper"),
}


class Parts:
    """The parts seen so far; who lives and the time are given."""

    def __init__(self) -> None:
        self._seen: dict[Part, Set[int]] = {}
        #: When each part that may come back was first missed.
        self._missed_at: dict[Part, float] = {}
        self._has_serve = True

    def end_serve(self) -> None:
        """From here on Serve's own parts end on purpose."""
        self._has_serve = False
        self._missed_at.clear()

    def loss(self, present: Mapping[Part, Set[int]], now: float) -> Part | None:
        """The part without which the stack is over, given each part's process ids; None while there is none."""
        for part in self._seen.keys() | present.keys():
            if part.is_restarted and not self._has_serve:
                continue
            ids = present.get(part, frozenset())
            before = self._seen.get(part, frozenset())
            if part.is_restarted and not ids:
                if now - self._missed_at.setdefault(part, now) > HEAL_S:
                    return part
                continue
            if before - ids and not part.is_restarted:
                return part
            self._seen[part] = ids
            self._missed_at.pop(part, None)
        return None

    @property
    def missing(self) -> set[Part]:
        """The parts that Ray is starting again."""
        return set(self._missed_at)


class Watch:
    """A thread that looks at the parts below this process.

    It calls `say` with a line when Ray has to start one again, and `on_loss` once with a sentence when one is lost.
    """

    def __init__(self, on_loss: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._on_loss = on_loss
        self._say = say
        self._stopped = threading.Event()
        self._looking = threading.Lock()
        self._parts = Parts()
        #: The living parts, each with a descriptor that is ready when it ends.
        self._known: dict[psutil.Process, tuple[Part, int]] = {}
        self._ends = select.epoll()
        self._changed_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """From here on parts end on purpose."""
        self._stopped.set()

    def end_serve(self) -> None:
        """From here on Serve's own parts end on purpose."""
        with self._looking:
            self._parts.end_serve()

    def look(self) -> str | None:
        """Which part is gone now, in a sentence."""
        with self._looking:
            part = self._parts.loss(self._present(), time.monotonic())
        if part is None:
            return None
        again = f" and did not come back within {HEAL_S:.0f} s" if part.is_restarted else ""
        return f"{part.name} ended{again}, and with it this stack; Ray's logs are in logs/ray of its home."

    def _run(self) -> None:
        missing: set[Part] = set()
        while True:
            if self._ends.poll(self._pause_s):
                self._stopped.wait(_SIGNAL_S)
            loss = self.look()
            if self._stopped.is_set():
                return
            if loss:
                self._on_loss(loss)
                return
            for part in self._parts.missing - missing:
                self._say(f"  {part.name} ended; Ray starts it again")
            missing = self._parts.missing

    @property
    def _pause_s(self) -> float:
        is_settled = not self._parts.missing and time.monotonic() - self._changed_at > _SETTLED_AFTER_S
        return _SETTLED_INTERVAL_S if is_settled else _INTERVAL_S

    def _present(self) -> dict[Part, set[int]]:
        for process in processes.descendants():
            if process not in self._known and (part := _part_of(process)):
                with contextlib.suppress(ProcessLookupError):  # ended since
                    self._know(process, part)
        for process in [it for it in self._known if not processes.is_alive(it)]:
            _, end = self._known.pop(process)
            os.close(end)  # which takes it out of the poll
            self._changed_at = time.monotonic()
        result: dict[Part, set[int]] = {}
        for process, (part, _) in self._known.items():
            result.setdefault(part, set()).add(process.pid)
        return result

    def _know(self, process: psutil.Process, part: Part) -> None:
        end = os.pidfd_open(process.pid)
        self._ends.register(end, select.EPOLLIN)
        self._known[process] = part, end
        self._changed_at = time.monotonic()


def _part_of(process: psutil.Process) -> Part | None:
    try:
        return part_of(process.cmdline())
    except psutil.Error:
        return None


def part_of(line: list[str]) -> Part | None:
    """The part with this command line or title, if it is one."""
    # Ray starts its Python daemons as `python -u FILE …`; what follows may contain anything.
    opening = " ".join(line[:4])
    return next((part for mark, part in _PARTS.items() if mark in opening), None)
