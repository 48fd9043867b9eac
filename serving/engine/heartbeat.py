"""Heartbeat: must a replica report now? One that says what it said before is heard less often (CELL-27)."""

from __future__ import annotations

import math
from collections.abc import Callable

from serving.wire import ReplicaReport

#: Seconds after which a report is repeated that says the same as the last one that arrived: the longest heartbeat that may
#: be set, so directories are made for it.
REPEATED_AFTER_S = 2.0


class Heartbeat:
    """The last report that arrived; the clock given."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._arrived: ReplicaReport | None = None
        self._arrived_at = -math.inf

    def is_due(self, report: ReplicaReport) -> bool:
        """Must this one be sent?"""
        return report != self._arrived or self._clock() - self._arrived_at >= REPEATED_AFTER_S

    def arrive(self, report: ReplicaReport) -> None:
        """The directory has it."""
        self._arrived, self._arrived_at = report, self._clock()
