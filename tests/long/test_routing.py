"""The judge of routing as a whole: every load, and as many gateways as an installation has."""

from __future__ import annotations

import pytest

from loadtest.routing.__main__ import SLO
from loadtest.routing.policies import POLICIES
from loadtest.routing.simulator import World, run
from loadtest.routing.traffic import conversations, overlaid
from loadtest.scaling.model import ROUND_TP2

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

REPLICAS = 8
SPAN_S = 240.0


@pytest.mark.parametrize("gateways", [1, 4, 16])
@pytest.mark.parametrize("load", [0.5, 0.65, 0.8, 0.95])
def test_ours_has_its_goals_on_conversations(load: float, gateways: int) -> None:
    """Simulated: p90 to the first token at most 0.7 times that of the least requests, more hits, and no lower goodput."""
    world = World(ROUND_TP2, REPLICAS, gateways, SLO, SPAN_S, SPAN_S / 3)
    calls = overlaid(conversations(2_000, 1_800.0, 1), load * REPLICAS * ROUND_TP2.prefill_tokens_per_s, SPAN_S, seed=1)
    ours, least = (run(calls, POLICIES[name], world) for name in ("ours", "least requests"))
    assert ours.ttft_s(0.9) <= 0.7 * least.ttft_s(0.9)
    assert ours.hit_ratio >= 1.5 * least.hit_ratio
    assert ours.goodput >= 0.99 * least.goodput
