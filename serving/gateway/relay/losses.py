"""Losses: may a stream of a lost replica go on elsewhere though its model's retry budget is spent?

A replica that is lost takes along all its streams at one moment, each of which has cost work that its client has read: they owe
nothing to the share of retries (`relay/retries`). Only streams that were there at the moment of the loss are covered by it, and in a
window of time only the losses of half of a model's replicas are: where more are lost, the fault is not theirs (RLY-55).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

#: Seconds in which the losses of a model are counted together: an engine needs about as long to come back.
WINDOW_S = 300.0


class _Loss(msgspec.Struct, frozen=True):
    """One replica's loss, as the first of its streams saw it."""

    replica_id: str
    at: float
    #: The model's replicas that were ready.
    replicas: int


class Losses:
    """Those of all models of a gateway. Pure: the clock is passed in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        #: Model → losses of the window whose streams are covered, at most half as many as its replicas, or one.
        self._losses: dict[str, list[_Loss]] = {}

    def cover(self, model: str, replica_id: str, begun_at: float, replicas: int) -> bool:
        """Whether a stream that this replica has had since `begun_at`, and has lost, goes on at no cost.

        `replicas` is how many of the model are ready.
        """
        now = self._clock()
        recent = [loss for loss in self._losses.get(model, ()) if now - loss.at < WINDOW_S]
        if not any(loss.replica_id == replica_id and loss.at > begun_at for loss in recent):
            # What is ready falls with each loss: the window began with more.
            most = max(replicas, *(loss.replicas for loss in recent), 0)
            if len(recent) >= max(most // 2, 1):
                return False
            recent.append(_Loss(replica_id, now, replicas))
        self._losses[model] = recent
        return True
