"""Simulator: a fleet of modelled replicas behind a gateway, in virtual time.

Time goes in ticks. Within one, every replica computes prompts in order of arrival at a constant rate and gives every
running request tokens at a constant rate; when prompts end and outputs finish is computed inside the tick. Each replica
counts the tokens that any request running since the beginning would have: a request is done at a known count.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from loadtest.scaling.model import ReplicaModel, Slo
from loadtest.scaling.traces import Call
from serving.engine.autoscale import ReplicaSignal
from serving.wire import Demand, ReplicaState

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
class Outcome:
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

    @property
    def finished(self) -> int:
        return self.met + self.ttft_missed + self.itl_missed

    @property
    def attainment(self) -> float:
        """Calls inside their SLO, of those with a known end."""
        return self.met / max(1, self.finished + self.shed)


@dataclass(frozen=True, slots=True)
class Settings:
    """The world around the policy."""

    model: ReplicaModel
    slo: Slo
    startup_s: float
    max_replicas: int
    initial_replicas: int = 1
    #: Longest stay in the gateway's waiting room.
    patience_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Done:
    """One finished call."""

    call: Call
    first_token_at: float
    finished_at: float

    @property
    def ttft_s(self) -> float:
        return self.first_token_at - self.call.arrived_at

    @property
    def itl_s(self) -> float:
        return (self.finished_at - self.first_token_at) / self.call.output_tokens


class Replica:
    """One engine."""

    __slots__ = (
        "_carried",
        "_count",
        "_free_at",
        "_model",
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
        #: Calls whose prompt is not computed, and how much of the first one is.
        self.queue: deque[Call] = deque()
        self._carried = 0.0
        #: When the prefill of what was accepted so far could go on.
        self._free_at = 0.0
        #: Tokens that a request running for ever would have, and running requests by the count at which they end.
        self._count = 0.0
        self.running: list[tuple[float, int, float, Call]] = []
        #: Tokens of all calls inside, for the router; KV of running ones; prompt tokens not computed.
        self.committed = 0
        self.kv = 0
        self.queued_tokens = 0

    @property
    def requests(self) -> int:
        return len(self.queue) + len(self.running)

    def take(self, call: Call) -> None:
        self.queue.append(call)
        self.committed += call.prompt_tokens + call.output_tokens
        self.queued_tokens += call.prompt_tokens

    def advance(self, start: float, end: float) -> list[Done]:
        """Work from `start` to `end`."""
        step_s = self._model.step_s(max(1, len(self.running)))
        joined, prefilling_s = self._prefill(start, end, step_s) if self.queue else ((), 0.0)
        if not self.running and not joined:
            return []
        chunk_s = self._model.chunk_tokens / self._model.prefill_tokens_per_s
        idle_s = end - start - prefilling_s
        rate = (prefilling_s / (chunk_s + step_s) + idle_s / step_s) / (end - start)
        for at, call in joined:
            ends_at_count = self._count + rate * (at - start) + call.output_tokens
            heapq.heappush(self.running, (ends_at_count, id(call), at + step_s, call))
        return self._finish(start, end, rate)

    def _prefill(self, start: float, end: float, step_s: float) -> tuple[list[tuple[float, Call]], float]:
        """Prompts done in this tick, when, and the seconds spent on prompts."""
        chunk_s = self._model.chunk_tokens / self._model.prefill_tokens_per_s
        rate = self._model.prefill_tokens_per_s * chunk_s / (chunk_s + step_s)
        joined: list[tuple[float, Call]] = []
        spent_s = 0.0
        while self.queue and self._fits(self.queue[0], len(joined)):
            call = self.queue[0]
            begin = max(self._free_at, call.arrived_at, start)
            if begin >= end:
                break
            done_at = begin + (call.prompt_tokens - self._carried) / rate
            self._free_at = min(done_at, end)
            spent_s += self._free_at - begin
            if done_at > end:
                self._carried += (end - begin) * rate
                break
            self._carried = 0.0
            self.queue.popleft()
            self.queued_tokens -= call.prompt_tokens
            self.kv += self._kv_of(call)
            joined.append((done_at, call))
        return joined, spent_s

    def _fits(self, call: Call, joined: int) -> bool:
        running = len(self.running) + joined
        has_room = self.kv + self._kv_of(call) <= self._model.kv_cache_tokens
        return running == 0 or (running < self._model.max_running and has_room)

    def _kv_of(self, call: Call) -> int:
        return call.prompt_tokens + call.output_tokens + self._model.kv_fixed_tokens

    def _finish(self, start: float, end: float, rate: float) -> list[Done]:
        before, self._count = self._count, self._count + rate * (end - start)
        done = []
        while self.running and self.running[0][0] <= self._count:
            ends_at_count, _, first_token_at, call = heapq.heappop(self.running)
            self.kv -= self._kv_of(call)
            self.committed -= call.prompt_tokens + call.output_tokens
            done.append(Done(call, first_token_at, start + (ends_at_count - before) / rate))
        return done

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
        self.waiting: deque[Call] = deque()
        self.outcome = Outcome()
        self._arrived_tokens = 0
        self._arrived = 0
        self._mean_output: float | None = None
        self._start(settings.initial_replicas, ready_at=0.0)

    def _start(self, count: int, ready_at: float) -> None:
        for _ in range(count):
            self._numbers += 1
            self.replicas.append(Replica(self._settings.model, self._numbers, ready_at))

    def arrive(self, call: Call) -> None:
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


def run(calls: Iterable[Call], policy: Policy, settings: Settings) -> Outcome:
    """Drive one policy through one trace."""
    fleet = Fleet(settings)
    arrivals = iter(calls)
    coming = next(arrivals, None)
    wanted, asked = settings.initial_replicas, 0
    for start, end in _ticks():
        if coming is None:
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
