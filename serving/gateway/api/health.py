"""Health: what probes ask of this gateway: is it alive, can it take requests, and which models answer."""

from __future__ import annotations

import msgspec

from serving.gateway.api.visit import Visit
from serving.gateway.fleet.fleet import Fleet, Model
from serving.gateway.http.upstream import Upstream
from serving.wire import ASLEEP, ReplicaState

#: The states of a model's replicas, the one that says most about the model first.
_BY_PROMISE = (
    ReplicaState.READY,
    ReplicaState.WARMING,
    ReplicaState.LOADING,
    ReplicaState.STARTING,
    ReplicaState.DRAINING,
    ReplicaState.FAILED,
)


class State(msgspec.Struct):
    status: str


class StateOfModels(msgspec.Struct):
    """Model → its best state, or that it sleeps."""

    models: dict[str, str]


class Health:
    """Answers probes; needs no key."""

    def __init__(self, fleet: Fleet, upstream: Upstream) -> None:
        self._fleet = fleet
        self._upstream = upstream

    async def live(self, visit: Visit) -> None:
        """`GET /health/live` (liveness): the event loop turns."""
        await visit.answer(200, State("ok"))

    async def ready(self, visit: Visit) -> None:
        """`GET /health/ready` (readiness): this gateway takes requests, even while no engine runs."""
        is_ready = self._upstream.is_open
        await visit.answer(200 if is_ready else 503, State("ok" if is_ready else "stopping"))

    async def models(self, visit: Visit) -> None:
        """`GET /health/models`: 200 while at least one model answers."""
        models = self._fleet.models()
        answers = any(ReplicaState.READY in model.states for model in models)
        await visit.answer(200 if answers else 503, StateOfModels({m.name: summary(m) for m in models}))


def summary(model: Model) -> str:
    """READY if any replica is, else how far the best one has got, else that the model sleeps."""
    found = next((state.value for state in _BY_PROMISE if state in model.states), None)
    return found or (ASLEEP if model.wanted == 0 and model.may_sleep else ReplicaState.STARTING)
