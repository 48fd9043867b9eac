"""Simulator: a fleet of modelled replicas behind a gateway, in virtual time.

Calls are routed in ticks. Inside one, a replica goes from step to step as vLLM's scheduler does: every running request
gets a token and what is left of the chunk is filled with waiting prompts, whose first tokens all come when that step
ends. Steps without prompts are passed over up to the next event. Each replica counts its steps, and so the tokens that
a request running since the beginning would have: a request is done at a known count.

This is the truth about one call. `compiled` runs the same for whole days, `sampled` for fleets of thousands of GPUs.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from loadtest.scaling.model import ReplicaModel, SimulatedSlo
from loadtest.scaling.traces import TracedCall
from serving.engine.autoscale import Demand, ReplicaSignal
from serving.wire import ReplicaState

#: Seconds.
TICK_S = 0.5
#: Weight of one finished call in the mean output that the gateway learns.
LEARNING = 1 / 300


class Policy(Protocol):
    """Asked every `interval_s`; owns whatever it remembers."""

    name: str
    interval_s: float

    def wanted(self, signals: list[ReplicaSignal], demand: Demand, now: float) -> int: ...


@dataclass(slots=True)
class SimulationResult:
    """What became of a trace."""

    arrived: int = 0
    met: int = 0
    ttft_missed: int = 0
    itl_missed: int = 0
    #: Given up by the gateway after `Settings.patience_s`: 503.
    shed: int = 0
    #: Still inside when the trace ended.
    unfinished: int = 0
    gpu_s: float = 0.0
    #: Times the wanted number changed.
    changes: int = 0
    #: At once, those that start and drain included.
    most_replicas: int = 0

    @property
    def finished(self) -> int:
        return self.met + self.ttft_missed + self.itl_missed

    @property
    def missed(self) -> int:
        return self.ttft_missed + self.itl_missed + self.shed

    @property
    def attainment(self) -> float:
        """Calls inside their SLO, of those with a known end."""
        return self.met / max(1, self.finished + self.shed)


@dataclass(frozen=True, slots=True)
class Settings:
    """The world around the policy."""

    model: ReplicaModel
    slo: SimulatedSlo
    startup_s: float
    max_replicas: int
    initial_replicas: int = 1
    #: Longest stay in the gateway's waiting room.
    patience_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Done:
    """One finished call."""

    call: TracedCall
    first_token_at: float
    finished_at: float

    @property
    def ttft_s(self) -> float:
        return self.first_token_at - self.call.arrived_at

    @property
    def itl_s(self) -> float:
        return (self.finished_at - self.first_token_at) / max(1, self.call.output_tokens - 1)


class Replica:
    """One engine."""

    __slots__ = (
        "_computed",
        "_joined",
        "_model",
        "_now",
        "_steps",
        "committed",
        "draining",
        "kv",
        "number",
        "queue",
        "queued_tokens",
        "ready_at",
        "running",
    )

    def __init__(self, model: ReplicaModel, number: int, ready_at: float) -> None:
        self._model = model
        self.number = number
        self.ready_at = ready_at
        self.draining = False
        #: Calls whose prompt is not computed, and how many tokens of the first one are once it has begun.
        self.queue: deque[TracedCall] = deque()
        self._computed: int | None = None
        #: When the last step ended.
        self._now = 0.0
        #: Steps so far, and running requests by the step at which they end: with that, a number of their own and when
        #: their first token came.
        self._steps = 0
        self._joined = 0
        self.running: list[tuple[int, int, float, TracedCall]] = []
        #: Tokens of all calls inside, for the router; KV of running ones; prompt tokens not computed.
        self.committed = 0
        self.kv = 0
        self.queued_tokens = 0

    @property
    def requests(self) -> int:
        return len(self.queue) + len(self.running)

    def take(self, call: TracedCall) -> None:
        self.queue.append(call)
        self.committed += call.prompt_tokens + call.output_tokens
        self.queued_tokens += call.prompt_tokens

    def advance(self, start: float, end: float) -> list[Done]:
        """Work from `start` to `end`, and to the end of the step that runs then."""
        self._now = max(self._now, start)
        done: list[Done] = []
        while self._now < end and self.requests:
            if self._has_prompt():
                self._steps_of_one_prompt(end)
                self._step_with_prompts()
            else:
                self._steps_without(end)
            self._finish(done)
        return done

    def cached_tokens(self, call: TracedCall) -> int:
        """Tokens of its prompt that need not be computed; asked when it begins. Here nothing is kept."""
        return 0

    def prompted(self, call: TracedCall, now: float) -> None:
        """Its first token has come."""

    def _computed_of_first(self) -> int:
        if self._computed is None:
            self._computed = self.cached_tokens(self.queue[0])
            self.queued_tokens -= self._computed
        return self._computed

    def _steps_of_one_prompt(self, end: float) -> None:
        """The steps that the first prompt fills and does not end in, all at once: until a request ends or the tick is over.

        Nothing but speed: `_step_with_prompts` would do the same one after another.
        """
        room = max(1, self._model.chunk_tokens - len(self.running))
        computed = self._computed_of_first()
        steps = (self.queue[0].prompt_tokens - computed - 1) // room
        if self.running:
            steps = min(steps, self.running[0][0] - self._steps - 1)
        step_s = self._model.step_s(len(self.running), room)
        steps = min(steps, int((end - self._now) / step_s))
        self._computed = computed + steps * room
        self.queued_tokens -= steps * room
        self._now += steps * step_s
        self._steps += steps

    def _step_with_prompts(self) -> None:
        """One step: a token for every running request, and prompts in order of arrival in what is left of the chunk."""
        model = self._model
        room = budget = max(1, model.chunk_tokens - len(self.running))
        computed: list[TracedCall] = []
        while room and self._has_prompt(len(computed)):
            call = self.queue[0]
            done = self._computed_of_first()
            missing = call.prompt_tokens - done
            if missing > room:
                self._computed, room = done + room, 0
                break
            room, self._computed = room - missing, None
            computed.append(self.queue.popleft())
            self.kv += self._kv_of(call)
        tokens = budget - room
        self.queued_tokens -= tokens
        self._now += model.step_s(len(self.running) + len(computed), tokens)
        self._steps += 1
        for call in computed:
            ends_at = self._steps + call.output_tokens - 1
            self._joined += 1
            heapq.heappush(self.running, (ends_at, self._joined, self._now, call))
            self.prompted(call, self._now)

    def _steps_without(self, end: float) -> None:
        """Whole steps of running requests alone: until one ends, a call comes or the tick is over."""
        if self.queue and self.queue[0].arrived_at > self._now:
            end = min(end, self.queue[0].arrived_at)
        if not self.running:
            self._now = end
            return
        step_s = self._model.step_s(len(self.running))
        steps = min(math.ceil((end - self._now) / step_s), self.running[0][0] - self._steps)
        self._now += steps * step_s
        self._steps += steps

    def _has_prompt(self, joined: int = 0) -> bool:
        """Whether the next call in the queue is there and has room beside the batch and `joined` more."""
        if not self.queue or self.queue[0].arrived_at > self._now:
            return False
        running = len(self.running) + joined
        has_room = self.kv + self._kv_of(self.queue[0]) <= self._model.kv_cache_tokens
        return running == 0 or (running < self._model.max_running and has_room)

    def _kv_of(self, call: TracedCall) -> int:
        return call.prompt_tokens + call.output_tokens + self._model.kv_fixed_tokens

    def _finish(self, done: list[Done]) -> None:
        while self.running and self.running[0][0] <= self._steps:
            _, _, first_token_at, call = heapq.heappop(self.running)
            self.kv -= self._kv_of(call)
            self.committed -= call.prompt_tokens + call.output_tokens
            done.append(Done(call, first_token_at, self._now))

    def signal(self, now: float) -> ReplicaSignal:
        state = ReplicaState.DRAINING if self.draining else ReplicaState.READY
        return ReplicaSignal(
            replica_id=str(self.number),
            state=state if now >= self.ready_at else ReplicaState.LOADING,
            running_requests=len(self.running),
            waiting_requests=len(self.queue),
            queued_prefill_tokens=self.queued_tokens,
            kv_cache_used_ratio=self.kv / self._model.kv_cache_tokens,
        )


class Fleet:
    """Replicas, the gateway's waiting room, and what it learns for the demand it reports."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = 0
        self.replicas: list[Replica] = []
        self.waiting: deque[TracedCall] = deque()
        self.outcome = SimulationResult()
        self._arrived_tokens = 0
        self._arrived = 0
        self._mean_output: float | None = None
        self._start(settings.initial_replicas, ready_at=0.0)

    def _start(self, count: int, ready_at: float) -> None:
        for _ in range(count):
            self._numbers += 1
            self.replicas.append(Replica(self._settings.model, self._numbers, ready_at))

    def arrive(self, call: TracedCall) -> None:
        self.outcome.arrived += 1
        self._arrived += 1
        self._arrived_tokens += call.prompt_tokens
        self.waiting.append(call)

    def route(self, now: float) -> None:
        """Waiting calls go to the replica with the fewest committed tokens; those out of patience are shed."""
        limit = self._settings.model.max_running
        while self.waiting and self.waiting[0].arrived_at < now - self._settings.patience_s:
            self.waiting.popleft()
            self.outcome.shed += 1
        open_ones = [replica for replica in self.replicas if replica.ready_at <= now and not replica.draining]
        while self.waiting and open_ones:
            best = min(open_ones, key=_committed)
            if best.requests >= limit:
                open_ones.remove(best)
                continue
            best.take(self.waiting.popleft())

    def advance(self, start: float, end: float) -> None:
        for replica in self.replicas:
            if replica.queue or replica.running:
                for done in replica.advance(start, end):
                    self._count(done)
        self.outcome.gpu_s += len(self.replicas) * self._settings.model.gpus * (end - start)
        self.outcome.most_replicas = max(self.outcome.most_replicas, len(self.replicas))
        if any(replica.draining and not replica.requests for replica in self.replicas):
            self.replicas = [replica for replica in self.replicas if not replica.draining or replica.requests]

    def _count(self, done: Done) -> None:
        outputs = done.call.output_tokens
        mean = outputs if self._mean_output is None else self._mean_output
        self._mean_output = mean + (outputs - mean) * LEARNING
        slo = self._settings.slo
        if done.ttft_s > slo.ttft_limit_s(done.call.prompt_tokens, self._settings.model):
            self.outcome.ttft_missed += 1
        elif done.itl_s > slo.itl_s:
            self.outcome.itl_missed += 1
        else:
            self.outcome.met += 1

    def scale(self, wanted: int, now: float) -> None:
        """Start what is missing; drain what is too many, those on their way first, then those with least inside."""
        kept = [replica for replica in self.replicas if not replica.draining]
        self._start(wanted - len(kept), now + self._settings.startup_s)
        surplus = sorted(kept, key=lambda replica: (replica.ready_at <= now, replica.committed))
        for replica in surplus[: max(0, len(kept) - wanted)]:
            replica.draining = True

    def demand(self, now: float, since_s: float) -> Demand:
        """What gateways report; the arrivals since the last call of this, `since_s` ago."""
        arrived, tokens = self._arrived, self._arrived_tokens
        self._arrived = self._arrived_tokens = 0
        return Demand(
            waiting_requests=len(self.waiting),
            oldest_wait_s=now - self.waiting[0].arrived_at if self.waiting else 0.0,
            waiting_prompt_tokens=sum(call.prompt_tokens for call in self.waiting),
            arrived_prompt_tokens_per_s=tokens / since_s,
            expected_output_tokens_per_s=arrived / since_s * (self._mean_output or 0.0),
        )


def _committed(replica: Replica) -> int:
    return replica.committed


def run(
    calls: Iterable[TracedCall], policy: Policy, settings: Settings, missed_at_most: float = math.inf
) -> SimulationResult:
    """Drive one policy through one trace; given up as soon as more calls than `missed_at_most` missed their SLO."""
    fleet = Fleet(settings)
    arrivals = iter(calls)
    coming = next(arrivals, None)
    wanted, asked = settings.initial_replicas, 0
    for start, end in _ticks():
        if coming is None or fleet.outcome.missed > missed_at_most:
            break
        while coming is not None and coming.arrived_at < end:
            fleet.arrive(coming)
            coming = next(arrivals, None)
        fleet.route(start)
        fleet.advance(start, end)
        if end >= (asked + 1) * policy.interval_s:
            asked += 1
            before, wanted = wanted, _asked(fleet, policy, settings, end)
            fleet.outcome.changes += wanted != before
    fleet.outcome.unfinished = len(fleet.waiting) + sum(replica.requests for replica in fleet.replicas)
    return fleet.outcome


def _ticks() -> Iterator[tuple[float, float]]:
    tick = 0
    while True:
        yield tick * TICK_S, (tick + 1) * TICK_S
        tick += 1


def _asked(fleet: Fleet, policy: Policy, settings: Settings, now: float) -> int:
    signals = [replica.signal(now) for replica in fleet.replicas]
    wanted = policy.wanted(signals, fleet.demand(now, policy.interval_s), now)
    wanted = max(0, min(settings.max_replicas, wanted))
    fleet.scale(wanted, now)
    return wanted
