"""Sight: what administrators may see of this gateway as it is now: its fleet, its last hour, what limits have counted.

All of it belongs to the event loop. Handlers run in threads: they ask here, and wait for the loop's answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from serving.errors import StoreUnavailable
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.reservations import Held, Reservations
from serving.gateway.api.health import summary
from serving.gateway.fleet.fleet import Fleet, Model
from serving.gateway.fleet.polls import Polls
from serving.gateway.fleet.replicas import Known
from serving.gateway.nouns import Caller
from serving.gateway.observe.activity import SLOT_S, SLOTS, Series, Slot, merged, series
from serving.gateway.policies import CLASSES, PriorityClass
from serving.wire import ReplicaState

#: Seconds a handler waits for the event loop.
ANSWER_S = 5.0

T = TypeVar("T")


class ReplicaSeen(msgspec.Struct, frozen=True):
    """One engine's replica, as it last reported."""

    id: str
    cell: str
    state: ReplicaState
    #: Why it has failed, or what its start waits for.
    reason: str | None
    #: Share of the weights loaded so far, while it is loading.
    progress: str | None
    node: str
    devices: list[str]
    reported_s_ago: float
    #: It gets no calls, or few, because it failed more than others.
    is_outlier: bool
    running_requests: int
    waiting_requests: int
    kv_cache_used_ratio: float
    #: Calls of this gateway on it.
    own_requests: int


class ModelSeen(msgspec.Struct, frozen=True):
    """One model, its replicas, and what waits for it at this gateway."""

    name: str
    #: Its best replica's, or `asleep`.
    state: str
    context_tokens: int
    adapters: list[str]
    aliases: list[str]
    #: Engines that should run, over all cells.
    wanted: int | None
    may_sleep: bool
    #: The limit that decided that number.
    reason: str | None
    #: Why fewer run than are needed.
    shortage: str | None
    #: Calls that no replica can take, and seconds the first of them has waited.
    waiting_requests: int
    oldest_wait_s: float
    #: Calls that wait for room in the fleet, by their class.
    queued: dict[PriorityClass, int]
    replicas: list[ReplicaSeen]


class SourceSeen(msgspec.Struct, frozen=True):
    """A directory or an engine that is polled."""

    name: str
    is_up: bool


class FleetSeen(msgspec.Struct, frozen=True):
    """What this gateway knows of the fleet."""

    at: float
    models: list[ModelSeen]
    #: Sentences of the cells for their operator.
    warnings: list[str]
    sources: list[SourceSeen]
    #: Gateway processes that share the store.
    gateways: int


class HourSeen(msgspec.Struct, frozen=True):
    """Calls that ended in the last hour, slot by slot, the oldest first; the last slot is the one that runs."""

    #: Gateway processes whose calls these are, of how many share the store.
    covers: int
    gateways: int
    slot_s: int
    slots: int
    ends_at: float
    models: list[Series]


class Sight:
    """What handlers ask, once `open_in` a loop."""

    def __init__(
        self,
        fleet: Fleet,
        polls: Polls,
        admission: Admission,
        reservations: Reservations,
        hours: Callable[[], Awaitable[Sequence[list[Slot]]]],
        gateways: Callable[[], int],
        aliases: Mapping[str, str],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._polls = polls
        self._admission = admission
        self._reservations = reservations
        #: The last hour of each process of this gateway.
        self._hours = hours
        self._gateways = gateways
        self._aliases = aliases
        self._clock = clock
        self._wall_clock = wall_clock
        self._loop: asyncio.AbstractEventLoop | None = None

    def open_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer in this loop from now on."""
        self._loop = loop

    def fleet(self) -> FleetSeen:
        """The fleet as it is now (blocking)."""
        return self._asked(self._see_fleet())

    def hour(self) -> HourSeen:
        """The last hour (blocking)."""
        return self._asked(self._see_hour())

    def levels(self, caller: Caller) -> list[Held]:
        """How much of its limits a caller has taken (blocking)."""
        return self._asked(self._reservations.levels(caller))

    def _asked(self, answer: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            answer.close()
            raise StoreUnavailable("this gateway starts")
        try:
            return asyncio.run_coroutine_threadsafe(answer, self._loop).result(ANSWER_S)
        except TimeoutError:
            raise StoreUnavailable("no answer in time") from None

    async def _see_fleet(self) -> FleetSeen:
        by_model: dict[str, list[Known]] = {}
        for replica in self._fleet.known():
            by_model.setdefault(replica.report.model, []).append(replica)
        queued = {(depth.model, depth.priority): depth.calls for depth in self._admission.depths()}
        return FleetSeen(
            self._wall_clock(),
            [self._model(model, by_model.get(model.name, []), queued) for model in self._fleet.models()],
            self._fleet.warnings(),
            [SourceSeen(name, is_up) for name, is_up in sorted(self._polls.sources_up().items())],
            self._gateways(),
        )

    def _model(self, model: Model, replicas: list[Known], queued: Mapping[tuple[str, PriorityClass], int]) -> ModelSeen:
        plans = self._fleet.plans(model.name)
        own = {standing.replica_id: standing.own_requests for standing in self._fleet.standings(model.name)}
        out = self._fleet.outliers.out(model.name)
        adapters = {it for plan in plans for it in plan.adapters} | {it for of in replicas for it in of.report.adapters}
        return ModelSeen(
            name=model.name,
            state=str(summary(model)),
            context_tokens=model.context_tokens,
            adapters=sorted(adapters),
            aliases=sorted(alias for alias, name in self._aliases.items() if name == model.name),
            wanted=model.wanted,
            may_sleep=model.may_sleep,
            reason=next((plan.reason for plan in plans if plan.reason), None),
            shortage=next((plan.shortage for plan in plans if plan.shortage), None),
            waiting_requests=model.waiting_requests,
            oldest_wait_s=model.oldest_wait_s,
            queued={priority: queued.get((model.name, priority), 0) for priority in CLASSES},
            replicas=[self._replica(it, own, it.report.replica_id in out) for it in replicas],
        )

    def _replica(self, replica: Known, own: Mapping[str, int], is_outlier: bool) -> ReplicaSeen:
        report = replica.report
        return ReplicaSeen(
            id=report.replica_id,
            cell=replica.cell,
            state=self._fleet.state_of(replica),
            reason=report.reason,
            progress=report.progress,
            node=report.node,
            devices=list(report.devices),
            reported_s_ago=max(0.0, self._clock() - replica.reported_at),
            is_outlier=is_outlier,
            running_requests=report.load.running_requests,
            waiting_requests=report.load.waiting_requests,
            kv_cache_used_ratio=report.load.kv_cache_used_ratio,
            own_requests=own.get(report.replica_id, 0),
        )

    async def _see_hour(self) -> HourSeen:
        hours, last = await self._hours(), int(self._wall_clock() // SLOT_S)
        found = series(merged(slot for hour in hours for slot in hour), last)
        return HourSeen(len(hours), self._gateways(), SLOT_S, SLOTS, (last + 1) * SLOT_S, found)
