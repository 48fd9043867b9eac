"""Prefixes: which beginnings of conversations each replica's prefix cache holds, as far as this gateway has seen.

What was sent to a replica is remembered in blocks and forgotten as its engine forgets: the least recently used first, once as
many tokens have been computed since as its KV cache has room for. Engines' own counters correct both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence

import msgspec

#: Tokens of a KV cache whose size is not known: what one H100 has left beside gpt-oss-120b, doubled (vllm issue 27508: about 50,000).
KV_CACHE_TOKENS = 100_000
#: Blocks remembered over all replicas, at most, at about 200 bytes each (measured).
BLOCKS_MAX = 500_000
#: Replicas with a prefix that one call looks at.
HOLDERS_MAX = 8
#: Tokens asked of a replica after which its counters are compared with what was expected.
LEARNING_TOKENS = 50_000
#: What a comparison weighs still after the next one: few calls are in one, and whether they hit is chance.
KEPT_RATIO = 0.8
#: Below this share of expected hits a comparison says nothing.
EXPECTED_RATIO_MIN = 0.02


class Counted(msgspec.Struct, frozen=True):
    """An engine's counters of its prefix cache, in prompt tokens since it started."""

    queried_tokens: int
    hit_tokens: int


class _Cache:
    """One replica's."""

    __slots__ = (
        "allocated_tokens",
        "asked_tokens",
        "blocks",
        "capacity_tokens",
        "compared",
        "counted",
        "expected_ratios",
        "expected_tokens",
        "found_ratios",
        "own_ahead_tokens",
        "tokens_per_block",
        "trust",
    )

    def __init__(self) -> None:
        self.capacity_tokens = KV_CACHE_TOKENS
        #: As last estimated.
        self.tokens_per_block = 1.0
        #: Tokens computed so far, by this gateway's calls and, where the engine's counters show more, by others'.
        self.allocated_tokens = 0.0
        #: Block → `allocated_tokens` when it was last used; the least recently used first.
        self.blocks: OrderedDict[int, float] = OrderedDict()
        #: How much of what is expected the engine finds, 0 to 1.
        self.trust = 1.0
        #: Of this gateway's calls, since the counters were last compared.
        self.asked_tokens = self.expected_tokens = 0.0
        #: Sums over comparisons, older ones weighing less.
        self.expected_ratios = self.found_ratios = 0.0
        #: The engine's counters at the last comparison and the last report.
        self.compared: Counted | None = None
        self.counted: Counted | None = None
        #: Prompt tokens of this gateway's calls that those counters have yet to show: calls wait in the engine's queue.
        self.own_ahead_tokens = 0.0

    def matched(self, prefix: Sequence[int]) -> int:
        """Blocks of this prefix that are here."""
        return _matched(prefix, self.blocks)


class Prefixes:
    """What the gateway remembers of all replicas."""

    def __init__(self, blocks_max: int = BLOCKS_MAX) -> None:
        self._blocks_max = blocks_max
        self._caches: dict[str, _Cache] = {}
        #: Block → the replicas that got it last, as many as one call looks at.
        self._holders: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """Blocks remembered."""
        return sum(len(cache.blocks) for cache in self._caches.values())

    def holders(self, prefix: Sequence[int]) -> list[str]:
        """Replicas that have this prefix, the longest first, then those with half of it and with a beginning; `HOLDERS_MAX` at most."""
        known = self._holders
        depth = _matched(prefix, known)
        found: list[str] = []
        for level in (depth, depth // 2, 1 if depth else 0):
            if level and len(found) < HOLDERS_MAX:
                found += [holder for holder in known.get(prefix[level - 1], ()) if holder not in found]
        return found[:HOLDERS_MAX]

    def cached_tokens(self, replica_id: str, prefix: Sequence[int], tokens_per_block: float) -> int:
        """Tokens of this prefix that a replica will not compute again."""
        cache = self._caches.get(replica_id)
        if cache is None or not prefix:
            return 0
        return int(cache.matched(prefix) * tokens_per_block * cache.trust)

    def remember(
        self, replica_id: str, prefix: Sequence[int], tokens_per_block: float, prompt_tokens: int, output_tokens: float
    ) -> None:
        """A replica gets a call with this prefix now."""
        cache = self._caches.setdefault(replica_id, _Cache())
        expected = cache.matched(prefix) * tokens_per_block
        cache.tokens_per_block = tokens_per_block or cache.tokens_per_block
        cache.asked_tokens += prompt_tokens
        cache.expected_tokens += min(expected, prompt_tokens)
        computed = max(0.0, prompt_tokens - expected * cache.trust)
        cache.allocated_tokens += computed + output_tokens
        cache.own_ahead_tokens += computed
        now, blocks, known = cache.allocated_tokens, cache.blocks, self._holders
        # Its end first: an engine gives a sequence's last blocks back before those that others begin with too.
        for block in reversed(prefix):
            if block in blocks:
                blocks.move_to_end(block)
            else:
                known[block] = (replica_id, *known.get(block, ())[: HOLDERS_MAX - 1])
            blocks[block] = now
        self._trim(replica_id, cache)

    def report(self, replica_id: str, kv_cache_tokens: int, counted: Counted | None) -> None:
        """Take what an engine says of its cache: its size, 0 where it is not known, and its counters."""
        cache = self._caches.setdefault(replica_id, _Cache())
        cache.capacity_tokens = kv_cache_tokens or KV_CACHE_TOKENS
        before, cache.counted = cache.counted, counted
        if counted is None:
            return
        if before is not None and counted.queried_tokens < before.queried_tokens:
            self.forget(replica_id)
            return
        if before is not None:
            missed = counted.queried_tokens - counted.hit_tokens - (before.queried_tokens - before.hit_tokens)
            others = max(0.0, missed - cache.own_ahead_tokens)
            cache.allocated_tokens += others
            cache.own_ahead_tokens -= missed - others
            self._trim(replica_id, cache)
        _compare(cache, counted)

    def forget(self, replica_id: str) -> None:
        """It is gone, or has started anew: its cache is empty."""
        cache = self._caches.pop(replica_id, None)
        for block in cache.blocks if cache else ():
            self._drop(replica_id, block)

    def _trim(self, replica_id: str, cache: _Cache) -> None:
        blocks, oldest = cache.blocks, cache.allocated_tokens - cache.capacity_tokens
        most = min(self._blocks_max / len(self._caches), cache.capacity_tokens / cache.tokens_per_block)
        while blocks:
            block, used_at = next(iter(blocks.items()))
            if used_at >= oldest and len(blocks) <= most:
                return
            del blocks[block]
            self._drop(replica_id, block)

    def _drop(self, replica_id: str, block: int) -> None:
        kept = tuple(holder for holder in self._holders.get(block, ()) if holder != replica_id)
        if kept:
            self._holders[block] = kept
        else:
            self._holders.pop(block, None)


def _matched(prefix: Sequence[int], blocks: Container[int]) -> int:
    """How many of a prefix's blocks are among these: where one is, all before it are."""
    least, most = 0, len(prefix)
    while least < most:
        middle = (least + most + 1) // 2
        if prefix[middle - 1] in blocks:
            least = middle
        else:
            most = middle - 1
    return least


def _compare(cache: _Cache, counted: Counted) -> None:
    """Trust a replica as far as its hits come up to what was expected: other gateways' calls count, and are like ours."""
    before = cache.compared
    if before is None:
        cache.compared = counted
        cache.asked_tokens = cache.expected_tokens = 0.0
        return
    if cache.asked_tokens < LEARNING_TOKENS:
        return
    expected = cache.expected_tokens / cache.asked_tokens
    queried = counted.queried_tokens - before.queried_tokens
    found = (counted.hit_tokens - before.hit_tokens) / queried if queried else 0.0
    if expected >= EXPECTED_RATIO_MIN:
        # Of sums, because a mean of ratios that are cut off at 1 lies below 1 however right the expectations are.
        cache.expected_ratios = KEPT_RATIO * cache.expected_ratios + expected
        cache.found_ratios = KEPT_RATIO * cache.found_ratios + found
        cache.trust = min(1.0, cache.found_ratios / cache.expected_ratios)
    cache.compared, cache.asked_tokens, cache.expected_tokens = counted, 0.0, 0.0
