"""Line: calls that wait for a place in a model's fleet, in the order of `fair_queue`, as long as `capacity` has no room.

The thin shell around both: it wakes calls when one begins or ends, and when replicas have reported. With room and none waiting, a call
passes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import msgspec

from serving.config import GatewaySettings
from serving.errors import GatewayFull, NoReplicaReady
from serving.gateway.admission.capacity import Capacity, Hold
from serving.gateway.admission.fair_queue import FairQueue, Waiting, cost, urgency
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.router import Need
from serving.gateway.nouns import Caller
from serving.gateway.policies import PriorityClass, priority_of

#: A caller of whom nothing is known, as in tests.
NO_TENANT = ""


class Claim(msgspec.Struct, frozen=True):
    """A call that asks for a place."""

    #: As its engines are called; adapters share their model's.
    model: str
    priority: PriorityClass
    tenant: str
    weight: float
    need: Need
    #: Its engine says when it begins.
    is_streamed: bool
    #: It is a line of a batch: it waits for room, and is no reason to make some.
    is_line: bool = False

    @property
    def tokens(self) -> float:
        """What it will probably cost."""
        return cost(self.need.prompt_tokens, self.need.output_tokens)


def claim_of(caller: Caller | None, model: str, need: Need, *, is_streamed: bool, is_line: bool = False) -> Claim:
    """The class is the key's, within its tenant's; the weight is the tenant's."""
    if caller is None:
        return Claim(model, PriorityClass.STANDARD, NO_TENANT, 1.0, need, is_streamed)
    priority = priority_of(caller.tenant_policy, caller.key_policy)
    weight = caller.tenant_policy.weight or 1.0
    return Claim(model, priority, caller.tenant_id, weight, need, is_streamed, is_line)


class Depth(msgspec.Struct, frozen=True):
    """The calls of one class that wait for one model now."""

    model: str
    priority: PriorityClass
    calls: int


class Place:
    """One call's place in the fleet, until `leave`."""

    __slots__ = ("_line", "_model", "claim", "hold", "is_overtaken", "urgency")

    def __init__(self, line: Line, model: _Model, claim: Claim) -> None:
        self._line = line
        self._model = model
        self.claim = claim
        self.hold = Hold(claim.need.prompt_tokens, claim.need.output_tokens, claim.is_streamed)
        #: What its engine is told of it: the least goes first.
        self.urgency = urgency(claim.priority)
        #: A call that came later had its place first.
        self.is_overtaken = False

    def begun(self) -> None:
        """Its first token has come."""
        self._model.capacity.begun(self.hold)
        self._line.wake(self._model)

    def leave(self, prompt_tokens: int, output_tokens: int) -> None:
        """It is over, and has cost this."""
        model, claim = self._model, self.claim
        model.capacity.give_back(self.hold)
        tokens = cost(prompt_tokens, output_tokens) - claim.tokens
        model.queue.served(claim.priority, claim.tenant, claim.weight, tokens)
        self._line.wake(model)


class _Waiter(msgspec.Struct, eq=False):
    """A call's task, which sleeps, and the place that it will have."""

    place: Place
    woken: asyncio.Future[None]


class _Model:
    """One model's queue, and what its fleet has room for."""

    def __init__(self, late_after_s: Mapping[PriorityClass, float]) -> None:
        self.queue: FairQueue[_Waiter] = FairQueue(late_after_s)
        self.capacity = Capacity()
        #: The answer as of which the capacity is known.
        self.seen = -1


class Line:
    """The queues of all models of a gateway."""

    def __init__(self, fleet: Fleet, demands: Demands, settings: GatewaySettings, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._demands = demands
        queue = settings.queue
        self._wait_s = {
            PriorityClass.INTERACTIVE: queue.interactive_wait_s,
            PriorityClass.STANDARD: queue.standard_wait_s,
            PriorityClass.BATCH: queue.batch_wait_s,
        }
        self._late_after_s = {
            PriorityClass.STANDARD: queue.standard_passed_over_s,
            PriorityClass.BATCH: queue.batch_passed_over_s,
        }
        self._waiting_requests_max = settings.max_waiting_requests
        self._keep_alive_s = settings.timeouts.keep_alive_s
        self._clock = clock
        #: Only models that a fleet has had ready: names are a client's.
        self._models: dict[str, _Model] = {}
        #: Answers of the fleet so far.
        self._answers = 0
        fleet.observe(self._answered)

    def place_at_once(self, claim: Claim) -> Place | None:
        """A place, where there is room and no call waits for it."""
        model = self._model(claim.model)
        if len(model.queue):
            return None
        now = self._clock()
        place = Place(self, model, claim)
        is_owed = model.queue.is_owed(claim.priority, claim.tenant, claim.weight, claim.tokens, now)
        if not model.capacity.has_room(place.hold, is_owed=is_owed):
            return None
        place.urgency = urgency(claim.priority, is_owed=is_owed)
        model.capacity.take(place.hold, now)
        model.queue.passed(claim.priority, claim.tenant, claim.weight, claim.tokens, now)
        return place

    async def place(self, claim: Claim, keep_alive: Callable[[], Awaitable[None]]) -> Place:
        """A place when it is the call's turn; meanwhile `keep_alive` is called every now and then.

        Raises GatewayFull when too many wait, of its tenant most, and NoReplicaReady when its class's time is over.
        """
        model, now = self._model(claim.model), self._clock()
        if self._demands.held_requests(claim.model) >= self._waiting_requests_max:
            self._make_way(model, claim)
        waiter = _Waiter(Place(self, model, claim), asyncio.get_running_loop().create_future())
        waiting = model.queue.push(waiter, claim.priority, claim.tenant, claim.weight, claim.tokens, now)
        has_place = False
        try:
            held = nullcontext() if claim.is_line else self._demands.held(claim.model, claim.need.prompt_tokens)
            with held:
                self.wake(model)
                await self._turn(waiter, model, now + self._wait_s[claim.priority], keep_alive)
            has_place = True
        finally:
            if not has_place:
                self._give_up(waiter, waiting, model)
        return waiter.place

    def depths(self) -> Iterator[Depth]:
        """What waits now."""
        for name, model in self._models.items():
            for priority, calls in model.queue.depths().items():
                yield Depth(name, priority, calls)

    def wake(self, model: _Model) -> None:
        """Give places to those whose turn it is, as far as there is room."""
        while len(model.queue):
            waiting = model.queue.pop(partial(_has_room, model.capacity), self._clock())
            if waiting is None:
                return
            place = waiting.call.place
            place.is_overtaken = waiting.is_overtaken
            place.urgency = urgency(waiting.priority, is_owed=waiting.is_owed, is_late=waiting.is_late)
            model.capacity.take(place.hold, self._clock())
            waiting.call.woken.set_result(None)

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model(self._late_after_s)
        if model.seen != self._answers:
            model.seen = self._answers
            model.capacity.report(self._fleet.standings(name), self._fleet.count_gateways())
        return model

    def _answered(self) -> None:
        """A directory has answered: what it says counts for calls that wait, and for others once they come."""
        self._answers += 1
        for name, model in self._models.items():
            if len(model.queue):
                self.wake(self._model(name))

    def _make_way(self, model: _Model, claim: Claim) -> None:
        """A full line takes a call in place of the last one of the tenant that has most there; raises GatewayFull where it is its own."""
        last = model.queue.gives_way(claim.tenant)
        if last is None:
            raise self._full(model, claim.priority)
        model.queue.remove(last)
        last.call.woken.set_exception(self._full(model, last.priority))

    def _full(self, model: _Model, priority: PriorityClass) -> GatewayFull:
        retry_after_s = model.queue.retry_after_s(priority, self._clock())
        return GatewayFull("Too many requests wait for this model; please try again.", retry_after_s=retry_after_s)

    async def _turn(
        self, waiter: _Waiter, model: _Model, deadline: float, keep_alive: Callable[[], Awaitable[None]]
    ) -> None:
        alive_at = self._clock()
        while not waiter.woken.done():
            now = self._clock()
            if now >= deadline:
                claim = waiter.place.claim
                raise NoReplicaReady(
                    f"The model '{claim.model}' is busy; try again soon.",
                    retry_after_s=model.queue.retry_after_s(claim.priority, now),
                )
            await asyncio.wait([waiter.woken], timeout=min(deadline, alive_at + self._keep_alive_s) - now)
            if not waiter.woken.done() and self._clock() >= alive_at + self._keep_alive_s:
                await keep_alive()
                alive_at = self._clock()
        waiter.woken.result()

    def _give_up(self, waiter: _Waiter, waiting: Waiting[_Waiter], model: _Model) -> None:
        """It waits no longer, and takes no place; one that it was just given is the next one's."""
        if not waiter.woken.done():
            model.queue.remove(waiting)
            self.wake(model)
        elif waiter.woken.exception() is None:
            waiter.place.leave(0, 0)


def _has_room(capacity: Capacity, waiting: Waiting[_Waiter]) -> bool:
    return capacity.has_room(waiting.call.place.hold, is_owed=waiting.is_owed)
