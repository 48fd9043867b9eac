"""Outliers: replicas that fail more than others get no calls for a while, and come back slowly (outlier ejection).

A policy over what calls report; it starts nothing. Consecutive failures or a share of failed calls eject a replica, each time
for twice as long up to a limit, and never more than a share of a model's replicas at once: where all fail, the fault is not theirs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import TypedDict

from serving.config import Outliers as Limits

#: Seconds over which the share of failed calls is taken, in two halves, and the calls from which on it counts.
WINDOW_S = 30.0
WINDOW_CALLS_MIN = 20
#: The share of its calls with which a replica comes back.
FIRST_SHARE = 0.1

_NONE: frozenset[str] = frozenset()


@dataclass
class _Half:
    """Calls that ended in one half of the window."""

    number: int = 0
    calls: int = 0
    failures: int = 0


@dataclass
class _Record:
    """What is held against one replica."""

    consecutive: int = 0
    halves: tuple[_Half, _Half] = field(default_factory=lambda: (_Half(), _Half()))
    ejections: int = 0
    #: On the clock: when its last ejection is over.
    back_at: float = float("-inf")


class States(TypedDict):
    """How many of a model's replicas are ejected, and how many come back."""

    ejected: int
    returning: int


class Outliers:
    """Asked by all calls of a gateway. A replica without calls for a window, and without an ejection to serve, is forgotten."""

    def __init__(
        self, limits: Limits, clock: Callable[[], float], random_: Callable[[], float] = random.random
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._random = random_
        self._records: dict[str, _Record] = {}
        #: Model → its replicas that are ejected or come back.
        self._out: dict[str, set[str]] = {}
        self._half = 0

    def avoided(self, model: str) -> Set[str]:
        """Replicas that one call for a model should not go to: the ejected, and those coming back but for their share of calls."""
        if not self._out.get(model):
            return _NONE
        return {replica_id for replica_id, share in self._shares(model).items() if self._random() >= share}

    def states(self, model: str) -> States:
        """How many of a model's replicas are out now."""
        shares = self._shares(model).values()
        ejected = sum(share == 0.0 for share in shares)
        return States(ejected=ejected, returning=len(shares) - ejected)

    def out(self, model: str) -> Set[str]:
        """The replicas of a model that are ejected or come back."""
        return set(self._shares(model)) if self._out.get(model) else _NONE

    def succeed(self, replica_id: str) -> None:
        """A call on this replica ended well, or by no fault of the replica's."""
        record = self._record(replica_id)
        record.consecutive = 0
        self._this_half(record).calls += 1

    def fail(self, replica_id: str, model: str, replicas: int) -> bool:
        """A call of a model with so many ready replicas failed on this one. True when it is ejected for that."""
        record = self._record(replica_id)
        record.consecutive += 1
        half = self._this_half(record)
        half.calls += 1
        half.failures += 1
        now = self._clock()
        if now < record.back_at or not (self._is_outlier(record) or self._share(record, now) < 1.0):
            return False
        out = {it for it, share in self._shares(model).items() if share == 0.0}
        if len(out) + 1 > int(self._limits.ejected_share_max * replicas):
            return False
        self._eject(record, now)
        self._out.setdefault(model, set()).add(replica_id)
        return True

    def _eject(self, record: _Record, now: float) -> None:
        if now - record.back_at >= self._limits.ejection_max_s:
            record.ejections = 0
        ejection_s = min(self._limits.ejection_s * 2.0**record.ejections, self._limits.ejection_max_s)
        record.ejections += 1
        record.back_at = now + ejection_s
        record.consecutive = 0
        record.halves = (_Half(), _Half())

    def _is_outlier(self, record: _Record) -> bool:
        if record.consecutive >= self._limits.consecutive_failures:
            return True
        recent = [half for half in record.halves if half.number >= self._half - 1]
        calls = sum(half.calls for half in recent)
        failures = sum(half.failures for half in recent)
        return calls >= WINDOW_CALLS_MIN and failures >= self._limits.failure_share * calls

    def _share(self, record: _Record, now: float) -> float:
        """The share of its calls that a replica may get now: none while it is ejected, then a growing one."""
        since_s = now - record.back_at
        if since_s < 0:
            return 0.0
        return min(FIRST_SHARE + (1 - FIRST_SHARE) * since_s / self._limits.return_s, 1.0)

    def _shares(self, model: str) -> dict[str, float]:
        """Of a model's replicas that are out. Those that are wholly back are no longer."""
        now = self._clock()
        shares = {it: self._share(self._records[it], now) for it in self._out.get(model, ()) if it in self._records}
        shares = {it: share for it, share in shares.items() if share < 1.0}
        if shares:
            self._out[model] = set(shares)
        else:
            self._out.pop(model, None)
        return shares

    def _record(self, replica_id: str) -> _Record:
        half = int(self._clock() // (WINDOW_S / 2))
        if half != self._half:
            self._half = half
            self._forget()
        record = self._records.get(replica_id)
        if record is None:
            record = self._records[replica_id] = _Record()
        return record

    def _this_half(self, record: _Record) -> _Half:
        half = record.halves[self._half % 2]
        if half.number != self._half:
            half.number, half.calls, half.failures = self._half, 0, 0
        return half

    def _forget(self) -> None:
        now, kept_s = self._clock(), max(self._limits.ejection_max_s, self._limits.return_s)
        self._records = {
            replica_id: record
            for replica_id, record in self._records.items()
            if max(half.number for half in record.halves) >= self._half - 1 or now - record.back_at < kept_s
        }
