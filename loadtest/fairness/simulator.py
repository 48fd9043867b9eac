"""Simulator: tenants, gateways with the fair queue, and a fleet that they see late, in virtual time.

The replicas are those of the judge of autoscaling (`loadtest/scaling`). Each reports every half second and a gateway polls every half
second; between, a gateway knows of its own calls when they begin and end, as it does of streams.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from loadtest.scaling.model import ReplicaModel
from loadtest.scaling.simulator import Replica
from loadtest.scaling.traces import TracedCall
from serving.gateway.admission.capacity import Capacity, Hold
from serving.gateway.admission.fair_queue import FairQueue, Waiting, cost, urgency
from serving.gateway.policies import PriorityClass
from serving.gateway.stored.batches.spare import Pace, allowance
from serving.wire import EngineLoad

#: Seconds between two reports of a replica, and between two polls of a gateway: the settings' defaults.
INTERVAL_S = 0.5
#: Seconds that the fleet goes on at a time.
TICK_S = 0.01
#: `gateway.max_waiting_requests`.
WAITING_MAX = 256
#: Weight of the newest call in the mean output that a gateway learns.
LEARNING = 0.1


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls, and how often."""

    name: str
    calls_per_s: float
    weight: float = 1.0
    priority: PriorityClass = PriorityClass.STANDARD
    #: Means: prompts vary by half, outputs as they do where each next token may be the last.
    prompt_tokens: int = 2000
    output_tokens: int = 200
    is_streamed: bool = True
    #: When it begins and ends, in seconds.
    begins_s: float = 0.0
    ends_s: float = 1e9

    def calls(self, span_s: float, chance: random.Random) -> Iterator[TracedCall]:
        """In order of arrival."""
        at = self.begins_s
        if not self.calls_per_s:
            return
        while (at := at + chance.expovariate(self.calls_per_s)) < min(span_s, self.ends_s):
            yield self.call(at, chance)

    def call(self, at: float, chance: random.Random) -> TracedCall:
        """One that comes then."""
        prompt = max(1, round(self.prompt_tokens * chance.uniform(0.5, 1.5)))
        return TracedCall(at, prompt, 1 + round(chance.expovariate(1 / self.output_tokens)))


def lines(name: str, prompt_tokens: int, output_tokens: int) -> Tenant:
    """A tenant with a batch that has always another line: none comes by itself."""
    return Tenant(
        name,
        0.0,
        priority=PriorityClass.BATCH,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        is_streamed=False,
    )


@dataclass(frozen=True, slots=True)
class World:
    """What is the same for all tenants."""

    model: ReplicaModel
    replicas: int = 2
    gateways: int = 1
    span_s: float = 120.0
    #: Not counted.
    warm_up_s: float = 30.0
    #: False: every call goes to the fleet as it comes.
    is_fair: bool = True
    late_after_s: float = 60.0
    #: `gateway.files.careful_tokens_per_s`.
    careful_tokens_per_s: float = 300.0
    seed: int = 1


@dataclass(slots=True)
class Had:
    """What one tenant had after the warm-up."""

    ttfts_s: list[float] = field(default_factory=list)
    #: Seconds in the gateway.
    waits_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    refused: int = 0

    @property
    def tokens(self) -> float:
        """As the queue counts them."""
        return cost(self.prompt_tokens, self.output_tokens)

    def ttft_s(self, share: float) -> float:
        """For ever, where hardly any call has begun."""
        if len(self.ttfts_s) < 2:
            return math.inf
        return statistics.quantiles(self.ttfts_s, n=100, method="inclusive")[round(share * 100) - 1]


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all have the same, 1/n where one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


class _Replica(Replica):
    __slots__ = ("begun", "priorities")

    def __init__(self, model: ReplicaModel, number: int) -> None:
        super().__init__(model, number, ready_at=0.0)
        self.begun: list[tuple[float, TracedCall]] = []
        self.priorities: deque[int] = deque()

    def put(self, call: TracedCall, priority: int) -> None:
        """vLLM's --scheduling-policy priority: lower ones first, equals in order of arrival; what has begun stays."""
        self.take(call)
        self.priorities = deque(islice(self.priorities, len(self.priorities) - len(self.queue) + 1, None))
        first = self._computed is not None
        place = next((i for i, it in enumerate(self.priorities) if i >= first and it > priority), len(self.priorities))
        self.priorities.insert(place, priority)
        self.queue.insert(place, self.queue.pop())

    def prompted(self, call: TracedCall, now: float) -> None:
        self.begun.append((now, call))


class _Seen:
    """A replica as it last reported."""

    __slots__ = ("load", "reported_at")

    def __init__(self) -> None:
        self.load = EngineLoad()
        self.reported_at = 0.0


@dataclass(slots=True, eq=False)
class _Call:
    traced: TracedCall
    tenant: Tenant
    hold: Hold
    tokens: float
    gateway: _Gateway
    #: Its number in an engine's own queue.
    urgency: int = 0


class _Gateway:
    """The parts of `admission/line`, without an event loop."""

    def __init__(self, world: World, send: Callable[[_Call], None]) -> None:
        self._world = world
        self._send = send
        self.queue: FairQueue[_Call] = FairQueue(dict.fromkeys(PriorityClass, world.late_after_s))
        self.capacity = Capacity()
        self.mean_output = 256.0

    def arrive(self, traced: TracedCall, tenant: Tenant, now: float) -> _Call | None:
        """Returns the call that is refused for it, if any."""
        hold = Hold(traced.prompt_tokens, self.mean_output, is_streamed=tenant.is_streamed)
        call = _Call(traced, tenant, hold, cost(traced.prompt_tokens, self.mean_output), self)
        refused = None
        if len(self.queue) >= WAITING_MAX:
            gone = self.queue.gives_way(tenant.name)
            if gone is None:
                return call
            self.queue.remove(gone)
            refused = gone.call
        self.queue.push(call, tenant.priority, tenant.name, tenant.weight, call.tokens, now)
        self.wake(now)
        return refused

    def wake(self, now: float) -> None:
        while waiting := self.queue.pop(self._has_room, now):
            if self._world.is_fair:
                waiting.call.urgency = urgency(waiting.priority, is_owed=waiting.is_owed, is_late=waiting.is_late)
            self.capacity.take(waiting.call.hold, now)
            self._send(waiting.call)

    def _has_room(self, waiting: Waiting[_Call]) -> bool:
        return not self._world.is_fair or self.capacity.has_room(waiting.call.hold, is_owed=waiting.is_owed)

    def ended(self, call: _Call) -> None:
        self.capacity.give_back(call.hold)
        output = call.traced.output_tokens
        truth = cost(call.traced.prompt_tokens, output)
        self.queue.served(call.tenant.priority, call.tenant.name, call.tenant.weight, truth - call.tokens)
        self.mean_output += LEARNING * (output - self.mean_output)


class Run:
    """One world with its tenants."""

    def __init__(self, tenants: Sequence[Tenant], world: World) -> None:
        self._world = world
        self.now = 0.0
        self._replicas = [_Replica(world.model, number) for number in range(world.replicas)]
        self._seen = [_Seen() for _ in self._replicas]
        self._gateways = [_Gateway(world, self._send) for _ in range(world.gateways)]
        for gateway in self._gateways:
            gateway.capacity.report(self._seen, world.gateways)
        self._inside: dict[int, _Call] = {}
        chance = random.Random(world.seed)  # noqa: S311 -- A repeatable hour, no secret.
        self._balance = random.Random(world.seed + 1)  # noqa: S311
        arrivals = [(call.arrived_at, it, call) for it in tenants for call in it.calls(world.span_s, chance)]
        self._arrivals = deque(sorted(arrivals, key=lambda it: it[0]))
        self.had = {tenant.name: Had() for tenant in tenants}
        #: Seconds in which some replica had nothing to do while calls waited for it.
        self.idle_s = 0.0
        #: Tenants with a batch, each at one gateway, and their lines under way.
        self._batches = {it.name: it for it in tenants if not it.calls_per_s}
        self._paces = {name: Pace(0.0) for name in self._batches}
        self._lines_chance = random.Random(world.seed + 2)  # noqa: S311
        #: Calls inside each engine that had no place in its batch, at every tick after the warm-up.
        self.waiting_inside: list[int] = []

    @property
    def tokens(self) -> float:
        """Of all tenants."""
        return sum(had.tokens for had in self.had.values())

    def run(self) -> Run:
        ticks = round(self._world.span_s / TICK_S)
        every = round(INTERVAL_S / TICK_S)
        for tick in range(ticks):
            until = (tick + 1) * TICK_S
            self._arrive(until)
            self._advance(until)
            for number, (replica, seen) in enumerate(zip(self._replicas, self._seen, strict=True)):
                if tick % every == number * every // len(self._replicas):
                    seen.load, seen.reported_at = self._load(replica), until
            for number, gateway in enumerate(self._gateways):
                if tick % every == (number * every // len(self._gateways) + every // 3) % every:
                    gateway.capacity.report(self._seen, self._world.gateways)
                    gateway.wake(until)
            self._feed(until)
            self._look(until)
        return self

    def _load(self, replica: _Replica) -> EngineLoad:
        model = self._world.model
        # vLLM counts a prompt as running once its first part is computed.
        begun = replica._computed is not None
        return EngineLoad(
            running_requests=len(replica.running) + begun,
            waiting_requests=max(0, len(replica.queue) - begun),
            kv_cache_used_ratio=replica.kv / model.kv_cache_tokens,
            queued_prefill_tokens=replica.queued_tokens if len(replica.queue) > begun else 0,
            kv_cache_tokens=model.kv_cache_tokens,
        )

    def _arrive(self, until: float) -> None:
        while self._arrivals and self._arrivals[0][0] < until:
            at, tenant, traced = self._arrivals.popleft()
            gateway = self._balance.choice(self._gateways)
            refused = gateway.arrive(traced, tenant, at)
            if refused is not None and at >= self._world.warm_up_s:
                self.had[refused.tenant.name].refused += 1

    def _feed(self, now: float) -> None:
        """Begin lines of batches, as many as there is spare room for."""
        for name, tenant in self._batches.items():
            gateway = self._gateways[0]
            waiting = sum(count for it, count in gateway.queue.depths().items() if it is not PriorityClass.BATCH)
            pace = self._paces[name]
            seen = pace.look([it.load for it in self._seen], waiting, now)
            allowed = allowance(seen, self._world.careful_tokens_per_s)
            while pace.may_begin(allowed, now):
                line = tenant.call(now, self._lines_chance)
                pace.begin(line.prompt_tokens, allowed, now)
                gateway.arrive(line, tenant, now)

    def _send(self, call: _Call) -> None:
        self._inside[id(call.traced)] = call
        min(self._replicas, key=lambda it: it.committed).put(call.traced, call.urgency)
        if call.traced.arrived_at >= self._world.warm_up_s:
            self.had[call.tenant.name].waits_s.append(max(0.0, self.now - call.traced.arrived_at))

    def _advance(self, until: float) -> None:
        for replica in self._replicas:
            if replica.requests:
                done = replica.advance(self.now, until)
                for at, traced in replica.begun:
                    self._begun(self._inside[id(traced)], at)
                replica.begun.clear()
                for one in done:
                    self._ended(self._inside.pop(id(one.call)), one.finished_at)
        self.now = until
        for gateway in self._gateways:
            gateway.wake(until)

    def _begun(self, call: _Call, at: float) -> None:
        if call.tenant.is_streamed:
            call.gateway.capacity.begun(call.hold)
        if call.traced.arrived_at >= self._world.warm_up_s:
            self.had[call.tenant.name].ttfts_s.append(at - call.traced.arrived_at)

    def _ended(self, call: _Call, at: float) -> None:
        call.gateway.ended(call)
        if call.tenant.name in self._paces:
            self._paces[call.tenant.name].lines -= 1
        if at >= self._world.warm_up_s:
            had = self.had[call.tenant.name]
            had.prompt_tokens += call.traced.prompt_tokens
            had.output_tokens += call.traced.output_tokens

    def _look(self, until: float) -> None:
        if until < self._world.warm_up_s:
            return
        waits = any(len(gateway.queue) for gateway in self._gateways)
        self.idle_s += TICK_S * sum(waits and not replica.requests for replica in self._replicas)
        self.waiting_inside.append(sum(len(replica.queue) for replica in self._replicas))
