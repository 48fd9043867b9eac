"""Policies: one gateway's choice among replicas, as it sees them. The last one is the gateway's own code."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from itertools import count, takewhile

from loadtest.scaling.traces import BLOCK_TOKENS, TracedCall
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.prefixes import HOLDERS_MAX, Prefixes
from serving.gateway.fleet.router import Need
from serving.gateway.fleet.standing import Commitment
from serving.wire import DirectoryAnswer, ReplicaReport

MODEL = "m"
#: Replica → the blocks that its cache holds now. All but one policy take no more than the ids from it.
Caches = Mapping[str, Container[int]]


class Policy(ABC):
    """One gateway's. Calls that it sent, and what directories say, are all that it knows."""

    def __init__(self, caches: Caches, chance: random.Random, clock: Callable[[], float]) -> None:
        self._replica_ids = list(caches)
        self._chance = chance
        self._own: Counter[str] = Counter()
        self._reported: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, ReplicaReport] = {}

    def take(self, answer: DirectoryAnswer, asked_at: float) -> None:
        for listed in answer.replicas:
            report = listed.report
            if self._seen.get(report.replica_id) is not report:
                requests = report.load.running_requests + report.load.waiting_requests
                self._seen[report.replica_id] = report
                self._reported[report.replica_id] = requests, self._own[report.replica_id]

    @abstractmethod
    def choose(self, call: TracedCall) -> str:
        """The id of the replica that gets this call."""

    def sent(self, call: TracedCall, replica_id: str) -> None:
        self._own[replica_id] += 1

    def begun(self, call: TracedCall) -> None:  # noqa: B027 Most take no note of it.
        """Its first token has come."""

    def ended(self, call: TracedCall, replica_id: str) -> None:
        self._own[replica_id] -= 1

    def requests(self, replica_id: str) -> int:
        """Those of this gateway now, and those of the others when the replica last reported."""
        reported, own_then = self._reported.get(replica_id, (0, 0))
        return self._own[replica_id] + max(0, reported - own_then)


class RoundRobin(Policy):
    """One replica after the other."""

    def __init__(self, caches: Caches, chance: random.Random, clock: Callable[[], float]) -> None:
        super().__init__(caches, chance, clock)
        self._turns = count(chance.randrange(len(caches)))

    def choose(self, call: TracedCall) -> str:
        return self._replica_ids[next(self._turns) % len(self._replica_ids)]


class RandomOfTwo(Policy):
    """Of two drawn at random the one with fewer requests."""

    def choose(self, call: TracedCall) -> str:
        return min(self._chance.sample(self._replica_ids, 2), key=self.requests)


class LeastRequests(RoundRobin):
    """Fewest requests; equals take turns. What this gateway did before it knew prefixes."""

    def choose(self, call: TracedCall) -> str:
        first = next(self._turns) % len(self._replica_ids)
        return min(self._replica_ids[first:] + self._replica_ids[:first], key=self.requests)


class ConsistentHashing(Policy):
    """Each conversation on the replica that its first blocks draw: rendezvous hashing, without a bound on load."""

    def choose(self, call: TracedCall) -> str:
        # All of a tenant's calls share the first block, a system prompt.
        key = repr(call.blocks[:3] or call).encode()
        return max(self._replica_ids, key=lambda it: hashlib.blake2b(key, key=it.encode()).digest())


class Gateway(Policy):
    """The gateway's own code."""

    def __init__(self, caches: Caches, chance: random.Random, clock: Callable[[], float]) -> None:
        super().__init__(caches, chance, clock)
        self._fleet = Fleet((), Demands(clock), clock, clock, random_=chance.random, prefixes=self._known(caches))
        self._open: dict[int, tuple[ExitStack, Commitment]] = {}
        self._mean_output = 256.0

    def _known(self, caches: Caches) -> Prefixes:
        return Prefixes()

    def take(self, answer: DirectoryAnswer, asked_at: float) -> None:
        self._fleet.take(answer, asked_at)

    def choose(self, call: TracedCall) -> str:
        best = self._fleet.best(MODEL, self._need(call))
        # Before its first poll a gateway knows no replica.
        return best.replica_id if best else self._chance.choice(self._replica_ids)

    def _need(self, call: TracedCall) -> Need:
        # As a gateway learns it; it does not know what a call will generate.
        return Need(call.prompt_tokens, self._mean_output, call.blocks, float(BLOCK_TOKENS))

    def sent(self, call: TracedCall, replica_id: str) -> None:
        stack = ExitStack()
        self._open[id(call)] = stack, stack.enter_context(self._fleet.committed(replica_id, self._need(call)))

    def begun(self, call: TracedCall) -> None:
        self._open[id(call)][1].begun()

    def ended(self, call: TracedCall, replica_id: str) -> None:
        self._open.pop(id(call))[0].close()
        self._mean_output += 0.1 * (call.output_tokens - self._mean_output)


class _Seen(Prefixes):
    """What replicas hold, as it is: more than their KV events could say, which come later."""

    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._seen = caches

    def holders(self, prefix: Sequence[int]) -> list[str]:
        found = sorted((-self._depth(it, prefix), it) for it in self._seen)
        return [replica_id for depth, replica_id in found if depth][:HOLDERS_MAX]

    def cached_tokens(self, replica_id: str, prefix: Sequence[int], tokens_per_block: float) -> int:
        return int(self._depth(replica_id, prefix) * tokens_per_block)

    def _depth(self, replica_id: str, prefix: Sequence[int]) -> int:
        blocks = self._seen[replica_id]
        return sum(1 for _ in takewhile(lambda block: block in blocks, prefix))


class Knowing(Gateway):
    """The same code, were every gateway to know every cache at every moment."""

    def _known(self, caches: Caches) -> Prefixes:
        return _Seen(caches)


POLICIES: dict[str, type[Policy]] = {
    "round robin": RoundRobin,
    "random of two": RandomOfTwo,
    "least requests": LeastRequests,
    "consistent hashing": ConsistentHashing,
    "ours": Gateway,
}
#: What ours could be.
PERFECT = "ours, caches known"
