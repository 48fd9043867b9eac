"""Prefixes: what each replica's cache holds, remembered as far as its engine remembers it."""

from __future__ import annotations

from itertools import count, islice

from serving.gateway.fleet import prefixes
from serving.gateway.fleet.prefixes import HOLDERS_MAX, KV_CACHE_TOKENS, LEARNING_TOKENS, Counted, Prefixes

#: Tokens of a block.
BLOCK = 100.0


def remember(known: Prefixes, replica_id: str, *blocks: int, output: float = 0.0) -> None:
    known.remember(replica_id, blocks, BLOCK, round(len(blocks) * BLOCK), output)


def cached(known: Prefixes, replica_id: str, *blocks: int) -> int:
    return known.cached_tokens(replica_id, blocks, BLOCK)


def test_the_next_turn_finds_the_one_before() -> None:
    """As far as both begin alike, on the replica that had it and on no other."""
    known = Prefixes()
    remember(known, "a", 1, 2, 3)
    assert (cached(known, "a", 1, 2, 3, 4, 5), cached(known, "a", 1, 9, 3), cached(known, "b", 1, 2)) == (300, 100, 0)
    assert known.holders((1, 2, 3, 4, 5)) == ["a"] and known.holders((9,)) == [] and cached(known, "a") == 0


def test_the_replica_with_the_longest_prefix_is_found_first() -> None:
    """Then those with half of it, and no more than a call looks at."""
    known = Prefixes()
    for number in range(20):
        remember(known, f"short-{number}", 1)
    remember(known, "long", 1, 2, 3, 4)
    holders = known.holders((1, 2, 3, 4, 5))
    assert holders[0] == "long" and len(holders) == HOLDERS_MAX
    assert cached(known, "short-0", 1, 2) == 100, "found or not, each is known"


def test_a_replica_forgets_as_its_cache_does() -> None:
    """What was used least recently goes once so many tokens were computed since; ends go before the beginnings others share."""
    known = Prefixes()
    known.report("a", 1_000, None)
    remember(known, "a", 1, 2, 3)
    remember(known, "a", 1, 2, 4)
    remember(known, "a", *range(10, 19))
    assert (cached(known, "a", 1, 2, 3), cached(known, "a", 1, 2, 4)) == (100, 100)
    assert (len(known), known.holders((1, 2, 3))) == (10, ["a"])
    remember(known, "a", 20)
    assert (len(known), known.holders((1, 2, 3))) == (10, [])


def test_an_answer_takes_room_too() -> None:
    """Generated tokens lie in the same cache."""
    known = Prefixes()
    remember(known, "a", 1)
    remember(known, "a", 2, output=KV_CACHE_TOKENS)
    assert cached(known, "a", 1) == 0


def test_what_other_gateways_sent_takes_room() -> None:
    """The engine's counters say how much was computed; what of it was this gateway's counts once."""
    known = Prefixes()
    known.report("a", 1_000, Counted(0, 0))
    remember(known, "a", 1)
    known.report("a", 1_000, Counted(100, 0))
    remember(known, "a", 2)
    known.report("a", 1_000, Counted(1_000, 0))
    assert cached(known, "a", 1) == 100
    known.report("a", 1_000, Counted(2_000, 700))
    assert (cached(known, "a", 1), cached(known, "a", 2)) == (0, 0)


def test_a_call_that_waits_in_the_engine_counts_once() -> None:
    """Its prompt is counted when it is sent, and not again when the engine has come to it, some reports later."""
    known = Prefixes()
    known.report("a", 1_000, Counted(0, 0))
    remember(known, "a", *range(6))
    for queried in (0, 0, 600):
        known.report("a", 1_000, Counted(queried, 0))
    assert cached(known, "a", *range(6)) == 600
    known.report("a", 1_000, Counted(1_700, 0))
    assert cached(known, "a", *range(6)) == 0, "what comes beyond it is others'"


def test_answers_do_not_hide_what_others_sent() -> None:
    """Engines' counters count prompts alone."""
    known = Prefixes()
    known.report("a", 1_000, Counted(0, 0))
    remember(known, "a", 1, output=500)
    known.report("a", 1_000, Counted(1_200, 0))
    assert cached(known, "a", 1) == 0


def test_a_restarted_replica_is_empty_at_once() -> None:
    """Its counters begin anew; one that is gone is forgotten with all it held."""
    known = Prefixes()
    known.report("a", 0, Counted(5_000, 100))
    remember(known, "a", 1, 2)
    known.report("a", 0, Counted(10, 0))
    assert (cached(known, "a", 1, 2), len(known), known.holders((1, 2))) == (0, 0, [])
    remember(known, "a", 1)
    known.forget("a")
    known.forget("a")
    assert (cached(known, "a", 1), len(known), known.holders((1,))) == (0, 0, [])


def test_a_replica_is_trusted_as_far_as_its_counters_go() -> None:
    """Where its cache is off, or finds part of what was expected, a prefix there weighs so much less; it can win trust back."""
    known = Prefixes()
    known.report("a", 10**9, Counted(0, 0))
    trusted = []
    queried = hits = 0
    for found in (0.0, 0.0, 1.0):
        remember(known, "a", 1, 2)
        for _ in range(round(LEARNING_TOKENS / 200)):
            remember(known, "a", 1, 2)
        queried += LEARNING_TOKENS
        hits += round(found * LEARNING_TOKENS)
        known.report("a", 10**9, Counted(queried, hits))
        trusted.append(cached(known, "a", 1, 2))
    assert trusted == [0, 0, 82]


def test_chance_costs_no_trust() -> None:
    """Where one comparison finds less than was expected and the next as much more, expectations are right."""
    known = Prefixes()
    known.report("a", 10**9, Counted(0, 0))
    remember(known, "a", 1, 2, 3)
    queried = hits = 0
    fresh = count(4)
    for found in (0.5, 0.1, 0.5, 0.1, 0.5):
        for _ in range(round(LEARNING_TOKENS / 1_000)):
            remember(known, "a", 1, 2, 3)
            remember(known, "a", *islice(fresh, 7))
        queried += LEARNING_TOKENS
        hits += round(found * LEARNING_TOKENS)
        known.report("a", 10**9, Counted(queried, hits))
    assert cached(known, "a", 1, 2, 3) == 300


def test_a_replica_without_counters_is_trusted() -> None:
    """There is nothing to hold against it."""
    known = Prefixes()
    for _ in range(2 * round(LEARNING_TOKENS / 200)):
        remember(known, "a", 1, 2)
        known.report("a", 0, None)
    assert cached(known, "a", 1, 2) == 200


def test_blocks_are_bounded_over_all_replicas() -> None:
    """Each has an equal part; what is dropped is what was used least recently."""
    known = Prefixes(blocks_max=10)
    remember(known, "a", *range(20))
    assert (len(known), cached(known, "a", *range(20))) == (10, 1_000)
    remember(known, "b", *range(100, 120))
    remember(known, "a", 0)
    assert len(known) == 10 and prefixes.BLOCKS_MAX > 10
