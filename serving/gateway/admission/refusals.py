"""Refusals: a retry budget for each key. A key whose calls were refused in bulk is refused at once, before its body is read.

Clients' own routers (vllm-router, sglang-router) try a refused call five times in half a second, whatever Retry-After says: what
such a call costs until it is refused must not be multiplied by them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from serving.errors import ApiError, GatewayFull, RateLimitExceeded

#: Refused calls that a key earns back in a second, and for a call that was admitted.
EARNED_PER_S = 1.0
EARNED_PER_ADMITTED = 1.0
#: Keys that are remembered; of more, those that were refused longest ago are forgotten.
KEYS_MAX = 10_000


class Refusals:
    """The budgets of all keys of a gateway. Pure but for the clock and the randomness, which are passed in."""

    def __init__(
        self, refused_max: int, clock: Callable[[], float], random_: Callable[[], float] = random.random
    ) -> None:
        self._refused_max = float(refused_max)
        self._clock = clock
        self._random = random_
        #: Key id → refusals it has left, when, and whether its own limits were the last reason. A key that is not here has them all.
        self._left: dict[str, tuple[float, float, bool]] = {}

    def require(self, key_id: str) -> None:
        """Raises GatewayFull when a key has used up its refusals, RateLimitExceeded where its own limits did it; when to come
        back is jittered.
        """
        left = self._refusals_left(key_id)
        if left < 1.0:
            wait_s = (1.0 - left) / EARNED_PER_S
            is_limited = key_id in self._left and self._left[key_id][2]
            kind = RateLimitExceeded if is_limited else GatewayFull
            raise kind(
                "Many calls with this key were refused just now; please wait before trying again.",
                retry_after_s=1.0 + wait_s * (1.0 + self._random()),
            )

    def refused(self, key_id: str, error: ApiError) -> None:
        """One of its calls was refused after it had cost something."""
        is_limited = isinstance(error, RateLimitExceeded)
        self._keep(key_id, max(self._refusals_left(key_id) - 1.0, 0.0), is_limited)

    def admitted(self, key_id: str) -> None:
        """One of its calls was served."""
        if key_id in self._left:
            self._keep(key_id, self._refusals_left(key_id) + EARNED_PER_ADMITTED, self._left[key_id][2])

    def _refusals_left(self, key_id: str) -> float:
        if key_id not in self._left:
            return self._refused_max
        left, counted_at, _ = self._left[key_id]
        return min(left + (self._clock() - counted_at) * EARNED_PER_S, self._refused_max)

    def _keep(self, key_id: str, left: float, is_limited: bool) -> None:
        self._left.pop(key_id, None)
        if left >= self._refused_max:
            return
        if len(self._left) >= KEYS_MAX:
            del self._left[next(iter(self._left))]
        self._left[key_id] = left, self._clock(), is_limited
