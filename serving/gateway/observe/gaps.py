"""Gaps: the seconds between two pieces of a stream, counted where they pass and added up when the stream ends.

prometheus-client takes a lock and several function calls for each observation, which is fine per request and not per
token: a stream counts its own gaps, and its model's totals take them all at once.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

#: Upper bounds in seconds: from a small model's steps on a GPU to an engine that stalls.
BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)


class Gaps:
    """How many gaps were how long, and their sum in seconds."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def add(self, other: Gaps) -> None:
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total_s += other.total_s

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus has them."""
        bounds = [*(repr(float(bound)) for bound in BUCKETS_S), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))
