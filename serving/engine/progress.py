"""Progress: does a running engine still work? vLLM's `/health` answers 200 while its core hangs, so its work is watched.

    replica ── every second ──► Evidence ──► Watch.judge() ──► nothing, or why it is wedged

Pure, the time given. An engine is wedged when one of its processes is stopped; when calls run, its figures stand
still, it answers with no token and none of its processes computes; or when it stands still for longer than its largest
step can take, computing or not: a GPU that hangs keeps a processor busy (ENG-31). Long prompts are no wedge: vLLM
computes them in steps, and each moves the figures.
"""

from __future__ import annotations

from typing import Self

import msgspec

#: Seconds for which a process may be stopped: debuggers and profilers stop one for less than one.
STOPPED_LIMIT_S = 5.0
#: Seconds for which calls may run while nothing computes. A process that waits for the kernel's scheduler gets its turn
#: several times in it, on a machine with fifty times more work than cores.
QUIET_LIMIT_S = 8.0
#: Seconds of quiet after which a core is asked for one token, and between two such questions; a core that computes is asked
#: only after half of its time to stand still. One with nothing left to do answers: vLLM shows an aborted call as running
#: until its next step.
ASK_AFTER_S = 3.0
ASK_INTERVAL_S = 5.0
#: Processor seconds per second below which nothing computes: an idle engine's core and worker take 0.013 (measured, 2
#: busy cores).
QUIET_SHARE = 0.04
#: Seconds for which an engine's figures may stand still besides the time that its step takes: a kernel compiled on its
#: first use, a wait for the network.
STILL_BASE_S = 20.0
#: Tokens per second that the slowest engine in use computes, on CPUs that are shared with other work and on GPUs;
#: assumed, at a tenth of what was measured (CPU) and is published (GPU).
CPU_PACE_TOKENS_PER_S = 20.0
GPU_PACE_TOKENS_PER_S = 1000.0
#: Seconds between two looks that count at most: when this process itself did not run, nothing was seen to stand still.
_GAP_MAX_S = 2.5


class Evidence(msgspec.Struct, frozen=True):
    """What is seen of an engine at one moment."""

    #: Seconds on a monotonic clock.
    at: float
    #: Figures of which some move with each of its steps; None when its server does not answer.
    figures: tuple[float, ...] | None
    #: Calls that it had, running or waiting, when it last answered.
    calls: int
    #: A process that is stopped, by vLLM's name for it.
    stopped: str | None
    #: Processor seconds of its cores and workers so far.
    computing_s: float


class Limits(msgspec.Struct, frozen=True):
    """How long the figures of a busy engine may stand still."""

    still_s: float

    @classmethod
    def of(cls, step_tokens: int, *, on_gpus: bool) -> Self:
        """Those of an engine that computes at most this many tokens in a step."""
        pace = GPU_PACE_TOKENS_PER_S if on_gpus else CPU_PACE_TOKENS_PER_S
        return cls(STILL_BASE_S + step_tokens / pace)


class Watch:
    """The evidence on one engine so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last: Evidence | None = None
        #: Seconds, up to the last evidence: of a stopped process, of figures that stand still, and of those in which nothing
        #: computed; and of an engine with nothing to do.
        self._stopped_s = self._still_s = self._quiet_s = self._idle_s = 0.0
        self._asked_at: float | None = None

    @property
    def idle_s(self) -> float:
        """Seconds without a call and without a figure that moved."""
        return self._idle_s

    def judge(self, seen: Evidence) -> str | None:
        """Why the engine is wedged, in one clause; None while it is not."""
        last, self._last = self._last, seen
        if last is None:
            return None
        gap_s = min(seen.at - last.at, _GAP_MAX_S)
        self._stopped_s = self._stopped_s + gap_s if seen.stopped and seen.stopped == last.stopped else 0.0
        if seen.figures is not None and seen.figures != last.figures:
            self._still_s = self._quiet_s = self._idle_s = 0.0
        elif self._is_idle(seen):
            self._still_s = self._quiet_s = 0.0
            self._idle_s += gap_s
        else:
            self._idle_s = 0.0
            self._still_s += gap_s
            # A server that does not answer says nothing of calls, so an idle engine on a starved machine looks the same.
            is_quiet = seen.figures is not None and _is_quiet(last, seen)
            self._quiet_s = self._quiet_s + gap_s if is_quiet else 0.0
        return self._verdict(seen)

    def must_ask(self) -> bool:
        """Is it time to ask for one token, to tell an engine that is wedged from one that has nothing left to do?"""
        if self._last is None or (self._quiet_s < ASK_AFTER_S and self._still_s < self._limits.still_s / 2):
            return False
        if self._asked_at is not None and self._last.at - self._asked_at < ASK_INTERVAL_S:
            return False
        self._asked_at = self._last.at
        return True

    def has_answered(self) -> None:
        """Take note that a token came."""
        self._still_s = self._quiet_s = 0.0

    def _is_idle(self, seen: Evidence) -> bool:
        return seen.figures is not None and seen.calls == 0

    def _verdict(self, seen: Evidence) -> str | None:
        if self._stopped_s >= STOPPED_LIMIT_S:
            return f"its {seen.stopped} process is stopped"
        if self._quiet_s >= QUIET_LIMIT_S:
            return "it holds calls, makes no progress and computes nothing"
        if self._still_s >= self._limits.still_s:
            return f"it holds calls and has made no progress for {self._still_s:.0f} s"
        return None


def _is_quiet(last: Evidence, seen: Evidence) -> bool:
    """Did nothing compute between the two? No answer where no process was found: one that serves has computed."""
    return seen.computing_s > 0 and seen.computing_s - last.computing_s < QUIET_SHARE * (seen.at - last.at)
