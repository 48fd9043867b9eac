"""Choice: the replica for each call: the first of `router.rank`, of figures that are kept as calls and reports come and go.

Of a large fleet a call looks at those that have most of its prefix, and at a few more in turn.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from itertools import count

from serving.gateway.fleet.prefixes import Counted, Prefixes
from serving.gateway.fleet.replicas import Known
from serving.gateway.fleet.router import NO_NEED, Candidate, Need, rank, water_level
from serving.gateway.fleet.standing import Commitment, Standing
from serving.wire import ReplicaState

#: Replicas that one call looks at beside those with its prefix. The least of sixteen has nearly the least of a thousand.
LOOKED_AT = 16
#: Weight of the newest call in what is typical.
LEARNING_RATE = 0.02
#: Seconds over which this gateway's rate and its share of all requests are averaged.
AVERAGED_S = 10.0
#: Share of a conversation that is hoped for at its home where other gateways may have sent it before. Of 0, 0.3, 0.7 and 1 all but
#: 0 do well in `python -m loadtest.routing`: with generated conversations and 16 gateways twice the hits.
HOPE = 0.5


class _Typical:
    """What calls usually are, learned from this gateway's, and how fast they come; other gateways' are taken to be like them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.prefill_tokens = 0.0
        self.decode_tokens = float(NO_NEED.decode_tokens)
        self._tokens_per_s = 0.0
        self._own = self._others = 0.0
        self._at = clock()

    def sent(self, prefill_tokens: int, decode_tokens: int) -> None:
        self.prefill_tokens += LEARNING_RATE * (prefill_tokens - self.prefill_tokens)
        self.decode_tokens += LEARNING_RATE * (decode_tokens - self.decode_tokens)
        self._age()
        self._tokens_per_s += (prefill_tokens + decode_tokens) / AVERAGED_S

    def reported(self, own: int, others: int) -> None:
        """Requests on a replica, of this gateway and of the others."""
        self._age()
        self._own += own
        self._others += others

    def others_tokens_per_s(self) -> float:
        """What other gateways send, by their share of the requests there are."""
        self._age()
        return self._tokens_per_s * self._others / self._own if self._own else 0.0

    def others_share(self) -> float:
        """Of the requests there are, other gateways' share."""
        self._age()
        return self._others / (self._own + self._others) if self._others else 0.0

    def _age(self) -> None:
        now = self._clock()
        left = math.exp((self._at - now) / AVERAGED_S)
        self._at = now
        self._tokens_per_s *= left
        self._own *= left
        self._others *= left


class _Pool:
    """The ready replicas of one served name."""

    def __init__(self, standings: Iterable[Standing]) -> None:
        self.members = {standing.replica_id: standing for standing in standings}
        self._ring = list(self.members.values())
        self._next = 0
        self._points: list[tuple[int, str]] = []

    def home(self, block: int) -> str:
        """The member behind this block on the ring: when others come and go it is mostly the same (consistent hashing)."""
        if not self._points:
            self._points = sorted((point, standing.replica_id) for standing in self._ring for point in standing.points)
        at = bisect_left(self._points, (block, ""))
        return self._points[at % len(self._points)][1]

    def some(self) -> list[Standing]:
        """The next few, all of them where they are few."""
        ring, first = self._ring, self._next
        if len(ring) <= LOOKED_AT:
            return ring
        self._next = (first + LOOKED_AT) % len(ring)
        taken = ring[first : first + LOOKED_AT]
        return taken + ring[: LOOKED_AT - len(taken)]


class Choice:
    """Which replica a call goes to. `ready` lists the replicas that may take calls for a served name."""

    def __init__(
        self,
        ready: Callable[[str], list[Known]],
        clock: Callable[[], float],
        random_: Callable[[], float],
        prefixes: Prefixes | None = None,
    ) -> None:
        self._ready = ready
        self._clock = clock
        self._random = random_
        self._standings: dict[str, Standing] = {}
        #: Served name → its ready replicas, since it was first asked for.
        self._pools: dict[str, _Pool] = {}
        self._prefixes = Prefixes() if prefixes is None else prefixes
        self._typical = _Typical(clock)
        self._turns = count(1)

    def take(self, before: Mapping[str, Known], known: Mapping[str, Known]) -> None:
        """The fleet after an answer, and before it."""
        for replica_id in before.keys() - known.keys():
            self._prefixes.forget(replica_id)
            # Calls that still run on it hold their standing themselves.
            self._standings.pop(replica_id, None)
        for replica_id, replica in known.items():
            if before.get(replica_id) is not replica:
                self._take(replica)
        self.look()

    def look(self) -> None:
        """Which replicas are ready may have changed."""
        for name, pool in list(self._pools.items()):
            if {replica.report.replica_id for replica in self._ready(name)} != pool.members.keys():
                del self._pools[name]

    def _take(self, replica: Known) -> None:
        report, load = replica.report, replica.report.load
        if report.state is not ReplicaState.READY:
            self._prefixes.forget(report.replica_id)
            return
        standing, typical = self._standing(report.replica_id), self._typical
        standing.url, standing.context_tokens = report.url, report.context_tokens
        standing.load, standing.reported_at = load, replica.reported_at
        waiting, running = standing.others(load, typical.prefill_tokens, typical.decode_tokens)
        typical.reported(standing.own_requests, waiting + running)
        counted = None
        if load.prefix_queried_tokens is not None:
            counted = Counted(load.prefix_queried_tokens, load.prefix_hit_tokens)
        self._prefixes.report(report.replica_id, load.kv_cache_tokens, counted)

    def lose(self, replica_id: str) -> None:
        """It refused a connection: whatever answers there next has an empty cache."""
        self._prefixes.forget(replica_id)
        self.look()

    def count_ready(self, name: str) -> int:
        """Replicas that are ready for this name."""
        return len(self._pool(name).members)

    def standings(self, name: str) -> Collection[Standing]:
        """The ready replicas of this name, as they last reported."""
        return self._pool(name).members.values()

    def best(self, name: str, need: Need, suspects: Set[str] = frozenset()) -> Candidate | None:
        """The replica for a call, one that is not suspected; None where there is none."""
        pool = self._pool(name)
        if len(pool.members) == 1 and not suspects:
            (only,) = pool.members.values()
            return self._candidate(only, need)
        seen = pool.some()
        if suspects:
            fresh = [standing for standing in seen if standing.replica_id not in suspects]
            seen = fresh or [it for it in pool.members.values() if it.replica_id not in suspects]
        if not seen:
            return None
        level = water_level(sorted([it.committed_tokens for it in seen]), self._unseen_tokens(seen, pool))
        looked_at = {it.replica_id: it for it in seen if it.committed_tokens <= level}
        home, hoped_tokens = self._home(pool, need)
        for replica_id in (*self._prefixes.holders(need.prefix), home):
            if replica_id in pool.members and replica_id not in suspects:
                looked_at[replica_id] = pool.members[replica_id]
        candidates = [
            self._candidate(it, need, hoped_tokens if it.replica_id == home else 0) for it in looked_at.values()
        ]
        return rank(candidates, level, self._random())[0]

    def _home(self, pool: _Pool, need: Need) -> tuple[str, int]:
        """Where all gateways would send this conversation, and tokens of it that are to be hoped for there: none in a lone one.

        Its home hangs on as many blocks as the largest power of two, so that it stays until the conversation has doubled.
        """
        share = self._typical.others_share()
        if not need.prefix or not share:
            return "", 0
        depth = 1 << (len(need.prefix).bit_length() - 1)
        hoped = share * HOPE * depth * need.tokens_per_block
        return pool.home(need.prefix[depth - 1]), min(need.prompt_tokens, round(hoped))

    def _unseen_tokens(self, seen: Sequence[Standing], pool: _Pool) -> float:
        """What other gateways have probably sent to these replicas since they reported."""
        tokens_per_s = self._typical.others_tokens_per_s() * len(seen) / len(pool.members)
        if not tokens_per_s:
            return 0.0
        reported_at = sum(standing.reported_at for standing in seen) / len(seen)
        return tokens_per_s * (self._clock() - reported_at)

    def candidates(self, name: str, need: Need) -> list[Candidate]:
        """Every ready replica as a call would see it."""
        return [self._candidate(standing, need) for standing in self._pool(name).members.values()]

    def committed(self, replica_id: str, need: Need) -> Commitment:
        """A call is on this replica from now on, until the end of its `with`."""
        standing = self._standing(replica_id)
        cached = self._cached_tokens(replica_id, need)
        commitment = Commitment(standing, need, cached)
        standing.turn = next(self._turns)
        self._typical.sent(need.prompt_tokens - cached, need.decode_tokens)
        self._prefixes.remember(replica_id, need.prefix, need.tokens_per_block, need.prompt_tokens, need.output_tokens)
        return commitment

    def _candidate(self, standing: Standing, need: Need, hoped_tokens: int = 0) -> Candidate:
        return Candidate(
            standing.replica_id,
            standing.url,
            standing.context_tokens,
            standing.committed_tokens,
            max(hoped_tokens, self._cached_tokens(standing.replica_id, need)) if need.prefix else 0,
            standing.turn,
        )

    def _cached_tokens(self, replica_id: str, need: Need) -> int:
        cached = self._prefixes.cached_tokens(replica_id, need.prefix, need.tokens_per_block)
        return min(need.prompt_tokens, cached)

    def _standing(self, replica_id: str) -> Standing:
        standing = self._standings.get(replica_id)
        if standing is None:
            standing = self._standings[replica_id] = Standing(replica_id)
        return standing

    def _pool(self, name: str) -> _Pool:
        pool = self._pools.get(name)
        if pool is None:
            pool = _Pool(self._standing(replica.report.replica_id) for replica in self._ready(name))
            if pool.members:  # other names are a client's, and without number
                self._pools[name] = pool
        return pool
