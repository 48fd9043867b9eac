"""Workers: several processes of one gateway on one port. Their parent forks them, replaces those that die, and ends them all.

    parent ─┬─ worker 1, 2, …: each the whole gateway, with a socket of its own on the one port (GW-53)
            └─ page: adds up what they count (GW-54)

The parent serves nothing and has no threads: it can fork at any time, and what its children share of its memory exists once.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple

from serving.config import GatewaySettings
from serving.errors import Refusal
from serving.lifetime import end_with

#: Seconds between two looks at the children while no signal comes.
LOOK_S = 0.5
#: Seconds without a turn of its event loop after which a child is killed: as long as a liveness probe would wait for it.
STUCK_S = 60.0
#: Seconds until a child that died is replaced, at first; each further death doubles it, until one has lived for a while.
FIRST_DELAY_S, DELAY_MAX_S = 0.1, 10.0
#: Seconds after which a child is taken to be sound.
SOUND_S = 60.0
_STOPPING = {signal.SIGTERM, signal.SIGINT}
_AWAITED = _STOPPING | {signal.SIGCHLD}

log = logging.getLogger(__name__)

#: Says that a child's event loop turns and that it serves.
Beat = Callable[[], None]


class Life(NamedTuple):
    """What a child knows of itself."""

    beat: Beat
    #: It has taken the place of one that died.
    is_successor: bool


class Role(NamedTuple):
    """What one child does until it gets SIGTERM: `run` is called in a process of its own and may raise Refusal."""

    name: str
    run: Callable[[Life], None]


def share_of(settings: GatewaySettings) -> GatewaySettings:
    """The settings of one worker: together they hold no more than the gateway may."""
    count = settings.workers
    background_calls_max = -(-settings.stored.background_calls_max // count)
    return settings.model_copy(
        update={
            "stored": settings.stored.model_copy(update={"background_calls_max": background_calls_max}),
            "max_open_requests": -(-settings.max_open_requests // count),
            "max_waiting_requests": -(-settings.max_waiting_requests // count),
            "max_held_bytes": settings.max_held_bytes // count,
        }
    )


def delay_s(deaths: int) -> float:
    """Seconds until the next one starts, after so many deaths in a row."""
    return min(FIRST_DELAY_S * 2.0 ** min(deaths - 1, 16), DELAY_MAX_S)


class Beats:
    """When each child last said that it turns, in memory that the parent and all of them share."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, 8 * count)

    def beat(self, place: int) -> None:
        self._write(place, time.monotonic())

    def clear(self, place: int) -> None:
        self._write(place, 0.0)

    def last(self, place: int) -> float:
        """On the monotonic clock; 0 if it has not said so yet."""
        (at,) = struct.unpack_from("d", self._memory, 8 * place)
        return float(at)

    def _write(self, place: int, at: float) -> None:
        struct.pack_into("d", self._memory, 8 * place, at)


@dataclass
class _Child:
    role: Role
    place: int
    pid: int | None = None
    started_at: float = 0.0
    deaths: int = 0
    #: When it is to be started (again).
    due_at: float | None = 0.0


def supervise(roles: Sequence[Role], release: Callable[[], None], stuck_s: float = STUCK_S) -> int:
    """Run a child for each role until SIGTERM or Ctrl-C; returns the exit code of all.

    `release` closes what only the children need, at the beginning of the end. A second signal is passed on too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    try:
        return _Supervisor(roles, release, stuck_s).run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Supervisor:
    def __init__(self, roles: Sequence[Role], release: Callable[[], None], stuck_s: float) -> None:
        self._children = [_Child(role, place) for place, role in enumerate(roles)]
        self._beats = Beats(len(roles))
        self._release = release
        self._stuck_s = stuck_s
        self._is_stopping = False
        #: Every role has been served once.
        self._has_started = False
        self._code = 0

    def run(self) -> int:
        try:
            while not (self._is_stopping and all(child.pid is None for child in self._children)):
                self._look()
                received = signal.sigtimedwait(_AWAITED, self._until_due_s())
                if received is not None and received.si_signo in _STOPPING:
                    self._stop()
        finally:
            self._kill()
        return self._code

    def _look(self) -> None:
        self._reap()
        if self._is_stopping:
            return
        now = time.monotonic()
        for child in self._children:
            if child.due_at is not None and child.due_at <= now:
                self._start(child, now)
            elif child.pid and self._is_stuck(child, now):
                log.error("%s (pid %d) has hung for %.0f s and is killed", child.role.name, child.pid, self._stuck_s)
                os.kill(child.pid, signal.SIGKILL)
        self._has_started = self._has_started or all(self._beats.last(child.place) for child in self._children)

    def _until_due_s(self) -> float:
        due_at = [child.due_at for child in self._children if child.due_at is not None]
        return min(LOOK_S, max(0.0, min(due_at, default=inf) - time.monotonic()))

    def _is_stuck(self, child: _Child, now: float) -> bool:
        return now - max(self._beats.last(child.place), child.started_at) > self._stuck_s

    def _start(self, child: _Child, now: float) -> None:
        self._beats.clear(child.place)
        child.started_at, child.due_at = now, None
        child.pid = _forked(child.role, Life(partial(self._beats.beat, child.place), is_successor=child.deaths > 0))

    def _reap(self) -> None:
        while (ended := _ended()) is not None:
            pid, code = ended
            # The first process of a container gets other processes' orphans too.
            for child in self._children:
                if child.pid == pid:
                    child.pid = None
                    self._note_end(child, pid, code)

    def _note_end(self, child: _Child, pid: int, code: int) -> None:
        if self._is_stopping:
            self._code = self._code or (0 if code == -signal.SIGTERM else abs(code))
        elif code > 0 and not self._has_started and not self._beats.last(child.place):
            # It has said why. What cannot start once is not tried again.
            self._code = code
            self._stop()
        else:
            self._replace(child, pid, code)

    def _replace(self, child: _Child, pid: int, code: int) -> None:
        now = time.monotonic()
        child.deaths = 1 if now - child.started_at >= SOUND_S else child.deaths + 1
        wait_s = delay_s(child.deaths)
        child.due_at = now + wait_s
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        log.error("%s (pid %d) ended %s; another starts in %.1f s", child.role.name, pid, how, wait_s)

    def _stop(self) -> None:
        if not self._is_stopping:
            self._release()
        self._is_stopping = True
        for child in self._children:
            child.due_at = None
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)

    def _kill(self) -> None:
        """Only after a fault of this process itself are there any left."""
        for child in self._children:
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)


def _ended() -> tuple[int, int] | None:
    """A child that has ended, and its exit code, negative for a signal; None if there is none."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _forked(role: Role, life: Life) -> int:
    """The process id of a child that plays `role`, and ends with this process."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    parent = os.getpid()
    if pid := os.fork():
        return pid
    code = 1
    try:
        # Ctrl-C in a terminal goes to a whole group: the parent passes it on, once.
        os.setpgid(0, 0)
        for number in _AWAITED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        end_with(parent, signal.SIGTERM)
        role.run(life)
        code = 0
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
    except BaseException:  # noqa: BLE001 The outermost edge of a process.
        traceback.print_exc()
    finally:
        if sys.stderr:
            sys.stderr.flush()
        # Not the parent's own `finally`s and exits, which stand below this frame too.
        os._exit(code)
