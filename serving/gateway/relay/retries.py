"""Retries: may a failed attempt be tried again, and after what pause? A retry budget for each model, with jitter.

A call earns its model a share of a retry, so that a fleet that fails everywhere is not asked several times as much because it
fails. What a healthy time has earned is kept for the moment when an engine dies with all its calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable

#: Retries that a model has before any call, for a fleet with little traffic.
FIRST_RETRIES = 10.0
#: Retries that are kept: all the calls that one engine computes at a time by vLLM's default (`--max-num-seqs`).
KEPT_RETRIES_MAX = 256.0
#: Seconds of the first pause at most, doubled with each retry up to the longest.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 4.0


class Retries:
    """The budgets of all models of a gateway. Pure but for the randomness, which is passed in."""

    def __init__(self, share: float, random_: Callable[[], float] = random.random) -> None:
        self._share = share
        self._random = random_
        #: Model → retries it may still have.
        self._left: dict[str, float] = {}

    def arrive(self, model: str) -> None:
        """One call came in: it earns its share of a retry."""
        self._left[model] = min(self._left.get(model, FIRST_RETRIES) + self._share, KEPT_RETRIES_MAX)

    def take(self, model: str) -> bool:
        """Take one retry out of a model's budget; False when there is none left."""
        left = self._left.get(model, FIRST_RETRIES)
        if left < 1.0:
            return False
        self._left[model] = left - 1.0
        return True

    def pause_s(self, retry: int) -> float:
        """Seconds before a call's retry of this number, from 1 on (full jitter): an engine's calls do not all move at one moment."""
        return self._random() * min(FIRST_PAUSE_S * 2.0 ** (retry - 1), LONGEST_PAUSE_S)
