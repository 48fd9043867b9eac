"""The judge of routing: its traffic, its caches, and what it says of ours on generated conversations."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtest.routing.__main__ import HEADER, SLO, compared, judge, row
from loadtest.routing.policies import PERFECT, POLICIES, Gateway, Knowing
from loadtest.routing.simulator import CachingReplica, Result, World, run
from loadtest.routing.traffic import conversations, overlaid
from loadtest.scaling.model import ROUND_TP2
from loadtest.scaling.traces import BLOCK_TOKENS, TracedCall

SPAN_S = 150.0
REPLICAS = 4


def traffic(load: float) -> list[TracedCall]:
    return overlaid(conversations(400, 300.0, 1), load * REPLICAS * ROUND_TP2.prefill_tokens_per_s, SPAN_S, 1)


def test_a_trace_is_overlaid_until_it_is_the_wanted_load() -> None:
    """In order of arrival; copies are tenants of their own, and inside one conversations still share their beginnings."""
    calls = traffic(0.6)
    tokens = sum(call.prompt_tokens for call in calls)
    assert tokens == pytest.approx(0.6 * REPLICAS * ROUND_TP2.prefill_tokens_per_s * SPAN_S, rel=0.1)
    assert calls == sorted(calls, key=lambda call: call.arrived_at) and calls[-1].arrived_at < SPAN_S
    openings = Counter(call.blocks[0] for call in calls)
    assert len(openings) > 1 and max(openings.values()) > 10
    turns = Counter(call.blocks[:2] for call in calls)
    assert max(turns.values()) > 2 and traffic(0.6) == calls


def test_a_replica_computes_what_it_has_not_cached() -> None:
    """The second turn is faster by what the first one left, until other prompts have pushed that out."""
    replica = CachingReplica(ROUND_TP2, 0)
    turn = TracedCall(0.0, 20 * BLOCK_TOKENS, 2, tuple(range(20)))
    hits = []
    for at, call in ((0.0, turn), (10.0, turn)):
        replica.take(TracedCall(at, call.prompt_tokens, call.output_tokens, call.blocks))
        replica.advance(at, at + 10)
        hits.append(replica.hit_tokens)
    assert hits == [0, 20 * BLOCK_TOKENS - 1]
    replica.take(
        TracedCall(
            20.0, ROUND_TP2.kv_cache_tokens - 1_000, 2, tuple(range(100, 100 + ROUND_TP2.kv_cache_tokens // 512))
        )
    )
    replica.advance(20.0, 200.0)
    replica.take(TracedCall(200.0, turn.prompt_tokens, 2, turn.blocks))
    replica.advance(200.0, 210.0)
    assert replica.hit_tokens == hits[-1]


@pytest.mark.parametrize("gateways", [1, 4])
def test_ours_has_its_goals_on_conversations(gateways: int) -> None:
    """Simulated: p90 to the first token at most 0.7 times that of the least requests, twice their hits, and no lower goodput."""
    world = World(ROUND_TP2, REPLICAS, gateways, SLO, SPAN_S, SPAN_S / 3)
    calls = traffic(0.6)
    ours, least = (run(calls, POLICIES[name], world) for name in ("ours", "least requests"))
    assert ours.ttft_s(0.9) <= 0.7 * least.ttft_s(0.9)
    assert ours.hit_ratio >= 1.5 * least.hit_ratio
    assert ours.goodput >= 0.99 * least.goodput


def test_the_table_has_a_row_for_each_policy() -> None:
    """And says how ours compares."""
    world = World(ROUND_TP2, REPLICAS, 1, SLO, 60.0, 20.0)
    lines = list(judge(conversations(60, 100.0, 1), [0.2], [2], world))
    assert lines[0] == HEADER and len(lines) == 2 + len(POLICIES) and "ours / round robin" in lines[-1]
    result = Result(10.0, ttfts_s=[1.0, 2.0], met=1, token_spreads=[1.0], request_spreads=[2.0])
    assert row(0.5, 1, "ours", result).split()[:3] == ["0.50", "1", "ours"]
    assert "p90 1.00" in compared(dict.fromkeys(POLICIES, result))


def test_what_gateways_could_know_is_judged_too() -> None:
    """Were all caches known, four gateways would find about what a lone one finds, and their calls would wait less."""
    calls = traffic(0.6)
    one, four, knowing = (
        run(calls, policy, World(ROUND_TP2, REPLICAS, gateways, SLO, SPAN_S, SPAN_S / 3))
        for policy, gateways in ((Gateway, 1), (Gateway, 4), (Knowing, 4))
    )
    assert four.hit_ratio < one.hit_ratio < 1.05 * knowing.hit_ratio
    assert knowing.ttft_s(0.9) < four.ttft_s(0.9)
    world = World(ROUND_TP2, REPLICAS, 1, SLO, 60.0, 20.0)
    lines = list(judge(conversations(60, 100.0, 1), [0.2], [2], world, POLICIES | {PERFECT: Knowing}))
    assert len(lines) == 3 + len(POLICIES) and "caches known / ours" in lines[-1]


def test_each_policy_answers_every_call() -> None:
    """None is lost: what arrived early enough is done at the end."""
    world = World(ROUND_TP2, REPLICAS, 2, SLO, SPAN_S, 0.0)
    calls = [call for call in traffic(0.3) if call.arrived_at < SPAN_S - 60]
    for name, policy in POLICIES.items():
        assert len(run(calls, policy, world).ttfts_s) == len(calls), name
