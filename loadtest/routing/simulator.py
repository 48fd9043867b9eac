"""Simulator: a fleet with prefix caches behind gateways that see it late, in virtual time.

The replicas are those of the judge of autoscaling (`loadtest/scaling`); here they keep the blocks of prompts, the least recently
used leave first. A replica reports every half second and a gateway polls every half second, each at its own moment.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from loadtest.routing.policies import MODEL, Caches, Policy
from loadtest.scaling.model import ReplicaModel, SimulatedSlo
from loadtest.scaling.simulator import Done, Replica
from loadtest.scaling.traces import BLOCK_TOKENS, TracedCall
from serving.wire import DirectoryAnswer, EngineLoad, Listed, ReplicaReport, ReplicaState

#: Seconds between two reports of a replica, and between two polls of a gateway: the settings' defaults.
INTERVAL_S = 0.5
#: Requests that one gateway holds at once (`gateway.max_open_requests`); beyond it a call is refused.
OPEN_REQUESTS_MAX = 1024
#: Seconds between two looks at how the load is spread.
LOOK_S = 1.0

#: What happens, in this order where at the same moment.
_REPORT, _POLL, _LOOK, _CALL = range(4)

PolicyOf = Callable[[Caches, random.Random, Callable[[], float]], Policy]


class CachingReplica(Replica):
    """One engine with a prefix cache."""

    __slots__ = ("_blocks_max", "begun", "blocks", "hit_tokens", "queried_tokens", "replica_id")

    def __init__(self, model: ReplicaModel, number: int) -> None:
        super().__init__(model, number, ready_at=0.0)
        self.replica_id = f"r{number:03}"
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self._blocks_max = model.kv_cache_tokens // BLOCK_TOKENS
        self.queried_tokens = self.hit_tokens = 0
        #: First tokens not yet passed on.
        self.begun: list[tuple[float, TracedCall]] = []

    def cached_tokens(self, call: TracedCall) -> int:
        matched = 0
        for block in call.blocks:
            if block not in self.blocks:
                break
            matched += 1
        # The last token is always computed.
        hit = min(matched * BLOCK_TOKENS, call.prompt_tokens - 1)
        self.queried_tokens += call.prompt_tokens
        self.hit_tokens += hit
        for block in reversed(call.blocks):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self._blocks_max:
            self.blocks.popitem(last=False)
        return hit

    def prompted(self, call: TracedCall, now: float) -> None:
        self.begun.append((now, call))

    def report(self) -> ReplicaReport:
        load = EngineLoad(
            running_requests=len(self.running),
            waiting_requests=len(self.queue),
            queued_prefill_tokens=self.queued_tokens,
            kv_cache_tokens=self._model.kv_cache_tokens,
            prefix_queried_tokens=self.queried_tokens,
            prefix_hit_tokens=self.hit_tokens,
        )
        return ReplicaReport(
            self.replica_id,
            MODEL,
            f"http://{self.replica_id}",
            ReplicaState.READY,
            load=load,
        )


@dataclass(slots=True)
class Result:
    """What became of the calls that arrived after the warm-up."""

    span_s: float
    ttfts_s: list[float] = field(default_factory=list)
    met: int = 0
    refused: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    #: The most loaded replica's tokens yet to compute over the mean, once a second; and its requests.
    token_spreads: list[float] = field(default_factory=list)
    request_spreads: list[float] = field(default_factory=list)

    def ttft_s(self, share: float) -> float:
        return statistics.quantiles(self.ttfts_s, n=100)[round(share * 100) - 1]

    @property
    def hit_ratio(self) -> float:
        return self.hit_tokens / max(1, self.queried_tokens)

    @property
    def imbalance(self) -> float:
        return statistics.fmean(self.token_spreads)

    @property
    def request_imbalance(self) -> float:
        return statistics.fmean(self.request_spreads)

    @property
    def goodput(self) -> float:
        """Calls inside their SLO, a second."""
        return self.met / self.span_s


@dataclass(frozen=True, slots=True)
class World:
    """What is the same for all policies."""

    model: ReplicaModel
    replicas: int
    gateways: int
    slo: SimulatedSlo
    span_s: float
    warm_up_s: float
    seed: int = 1


class _Run:
    def __init__(self, world: World, policy: PolicyOf) -> None:
        self._world = world
        self.now = 0.0
        self._replicas = {it.replica_id: it for it in (CachingReplica(world.model, i) for i in range(world.replicas))}
        caches = {replica_id: it.blocks for replica_id, it in self._replicas.items()}
        self._gateways = [
            policy(caches, random.Random(world.seed * 1000 + i), lambda: self.now)  # noqa: S311
            for i in range(world.gateways)
        ]
        self._open = [0] * world.gateways
        self._chance = random.Random(world.seed)  # noqa: S311
        self._reports: dict[str, tuple[float, ReplicaReport]] = {}
        #: Call → where it is.
        self._inside: dict[int, tuple[int, str]] = {}
        #: What a replica has done in a step that has yet to end.
        self._coming: list[tuple[float, int, TracedCall, Done | None]] = []
        self._numbers: dict[int, int] = {}
        self.result = Result(world.span_s - world.warm_up_s)

    def run(self, calls: Sequence[TracedCall]) -> Result:
        events = [*self._ticks(), *((call.arrived_at, _CALL, number) for number, call in enumerate(calls))]
        self._numbers = {id(call): number for number, call in enumerate(calls)}
        replicas = list(self._replicas.values())
        for at, kind, number in sorted(events):
            self._move(replicas, at)
            if kind == _REPORT:
                self._reports[replicas[number].replica_id] = at, replicas[number].report()
            elif kind == _POLL:
                self._poll(number)
            elif kind == _LOOK:
                self._look(replicas)
            else:
                self._arrive(calls[number])
        for replica in replicas:
            self.result.queried_tokens += replica.queried_tokens
            self.result.hit_tokens += replica.hit_tokens
        return self.result

    def _ticks(self) -> Iterator[tuple[float, int, int]]:
        """Reports, polls and looks at how the load is spread."""
        world = self._world
        for at in range(int(world.span_s / INTERVAL_S)):
            for kind, count in ((_REPORT, world.replicas), (_POLL, world.gateways)):
                yield from ((INTERVAL_S * (at + number / count), kind, number) for number in range(count))
        yield from ((at * LOOK_S, _LOOK, 0) for at in range(int(world.warm_up_s), int(world.span_s)))

    def _move(self, replicas: Sequence[CachingReplica], until: float) -> None:
        for replica in replicas:
            if replica.queue or replica.running:
                done = replica.advance(self.now, until)
                for at, call in replica.begun:
                    self._come(at, call, None)
                replica.begun.clear()
                for one in done:
                    self._come(one.finished_at, one.call, one)
        while self._coming and self._coming[0][0] <= until:
            _, _, call, finished = heapq.heappop(self._coming)
            gateway, replica_id = self._inside[id(call)]
            if finished is None:
                self._gateways[gateway].begun(call)
                continue
            del self._inside[id(call)]
            self._open[gateway] -= 1
            self._gateways[gateway].ended(call, replica_id)
            self._count(finished)
        self.now = until

    def _come(self, at: float, call: TracedCall, done: Done | None) -> None:
        # In an order that does not hang on where Python puts objects.
        heapq.heappush(self._coming, (at, 2 * self._numbers[id(call)] + (done is not None), call, done))

    def _poll(self, number: int) -> None:
        listed = tuple(Listed(report, self.now - at) for at, report in self._reports.values())
        self._gateways[number].take(DirectoryAnswer("cell", "1", True, listed), self.now)

    def _look(self, replicas: Sequence[CachingReplica]) -> None:
        for spreads, loads in (
            (self.result.token_spreads, [replica.committed for replica in replicas]),
            (self.result.request_spreads, [replica.requests for replica in replicas]),
        ):
            if any(loads):
                spreads.append(max(loads) / statistics.fmean(loads))

    def _arrive(self, call: TracedCall) -> None:
        number = self._chance.randrange(len(self._gateways))
        if self._open[number] >= OPEN_REQUESTS_MAX:
            self.result.refused += call.arrived_at >= self._world.warm_up_s
            return
        gateway = self._gateways[number]
        replica_id = gateway.choose(call)
        gateway.sent(call, replica_id)
        self._open[number] += 1
        self._inside[id(call)] = number, replica_id
        self._replicas[replica_id].take(call)

    def _count(self, done: Done) -> None:
        if done.call.arrived_at < self._world.warm_up_s:
            return
        self.result.ttfts_s.append(done.ttft_s)
        slo = self._world.slo
        is_met = done.ttft_s <= slo.ttft_limit_s(done.call.prompt_tokens, self._world.model) and done.itl_s <= slo.itl_s
        self.result.met += is_met


def run(calls: Sequence[TracedCall], policy: PolicyOf, world: World) -> Result:
    """Drive one policy through calls in order of arrival. Calls not done at the end count as if they had not come."""
    return _Run(world, policy).run(calls)
