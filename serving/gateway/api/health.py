"""Health: what probes ask of this gateway: is it alive, can it take requests, and which models answer."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from serving.gateway.admission.counters.shared import SharedCounters
from serving.gateway.api.metrics import MODELS_PATH
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.fleet.fleet import Fleet, Model
from serving.gateway.http.routing import About, Entry
from serving.gateway.http.upstream import Upstream
from serving.gateway.identity.identity import Identity
from serving.gateway.ledger.ledger import Ledger
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

#: While gateways cannot count together.
ALONE = "the shared counters do not answer: this gateway counts its share of each limit"


class State(msgspec.Struct, omit_defaults=True):
    status: str
    #: What is not as it should be, though calls are taken.
    limits: str = ""


class StateOfModels(msgspec.Struct, omit_defaults=True):
    """Model → its best state, or that it sleeps."""

    models: dict[str, str]
    #: Sentences of the cells for their operator, where there are any.
    warnings: list[str] = []


class Health:
    """Answers probes. Liveness and readiness need no key; neither do models, asked apart from the API's clients."""

    def __init__(
        self,
        fleet: Fleet,
        upstream: Upstream,
        identity: Identity,
        ledger: Ledger,
        shared: SharedCounters | None = None,
    ) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._identity = identity
        self._ledger = ledger
        self._shared = shared

    def entries(self, *, is_public: bool) -> Iterator[Entry[Handler]]:
        """The routes of probes. `is_public`: the states of models are for everyone."""
        live = About(summary="Liveness: the event loop turns.", tag="service", answer=State, is_open=True)
        ready = About(summary="Readiness: this gateway takes requests.", tag="service", answer=State, is_open=True)
        models = About(
            summary="Which models answer: 200 while one does.", tag="service", answer=StateOfModels, is_open=is_public
        )
        yield Entry("GET", "/", self.live, about=live)
        yield Entry("GET", "/health", self.ready, about=ready)
        yield Entry("GET", "/health/live", self.live, about=live)
        yield Entry("GET", "/health/ready", self.ready, about=ready)
        yield Entry("GET", MODELS_PATH, self.models if is_public else self.models_for_callers, about=models)

    async def live(self, visit: Visit) -> None:
        """`GET /health/live` (liveness): the event loop turns."""
        await visit.answer(200, State("ok"))

    async def ready(self, visit: Visit) -> None:
        """`GET /health/ready` (readiness), and `/health` for clients that know one path alone: this gateway takes requests, even while no engine runs."""
        if not self._upstream.is_open:
            await visit.answer(503, State("stopping"))
        elif not self._ledger.takes_calls:
            await visit.answer(503, State("the ledger cannot be written"))
        else:
            is_alone = self._shared is not None and self._shared.is_alone
            await visit.answer(200, State("ok", ALONE if is_alone else ""))

    async def models(self, visit: Visit) -> None:
        """`GET /health/models`: 200 while at least one model answers."""
        status, states = self.of_models()
        await visit.answer(status, states)

    async def models_for_callers(self, visit: Visit) -> None:
        """The same where clients reach it and monitoring has a port of its own: the fleet is not everyone's to see."""
        visit.record.caller = await self._identity.identify(visit.request)
        await self.models(visit)

    def of_models(self) -> tuple[int, StateOfModels]:
        """The status and the body that say which models answer."""
        models = self._fleet.models()
        answers = any(ReplicaState.READY in model.states for model in models)
        return 200 if answers else 503, StateOfModels(
            {model.name: summary(model) for model in models}, self._fleet.warnings()
        )


def summary(model: Model) -> str:
    """READY if any replica is, else how far the best one has got, else that the model sleeps."""
    found = next((state.value for state in _BY_PROMISE if state in model.states), None)
    return found or (ASLEEP if model.wanted == 0 and model.may_sleep else ReplicaState.STARTING)
