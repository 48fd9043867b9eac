"""The judge of fairness: what tenants have of a full fleet with the gateway's own queue, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from loadtest.fairness.__main__ import FLOOD, TRAFFIC, batch, beside, fifty, main, table, weighted
from loadtest.fairness.simulator import Run, Tenant, World, jain
from loadtest.scaling.model import ROUND_TP2

WORLD = World(ROUND_TP2, replicas=4, span_s=120, warm_up_s=30)


@pytest.mark.parametrize(("share", "gateways"), [(0.1, 1), (0.3, 4)])
@pytest.mark.parametrize("traffic", TRAFFIC, ids=lambda it: it.name)
def test_a_flood_is_not_felt_beyond_the_full_batch(traffic: object, share: float, gateways: int) -> None:
    """Beside one that asks for ten times as much: TTFT p95 at most 1.3 times that in a fleet filled to nine tenths, and it hardly waits here.
    The fleet makes what it would make if all calls waited inside its engines, but for a few percent.

    What a full batch costs beside an idle engine no queue can give back: longer steps. Without the queue it is many seconds, and more the longer the flood lasts.
    """
    seen = beside(traffic, replace(WORLD, gateways=gateways), share)  # type: ignore[arg-type]
    assert FLOOD == 10 and seen.ratio_to_filled <= 1.3 and seen.waited_s <= 0.05
    assert seen.first_come_s > 5 * seen.fair_s and seen.throughput >= 0.94


@pytest.mark.parametrize("gateways", [1, 4])
def test_weights_share_tokens(gateways: int) -> None:
    """1:3 gives 1:3 ± 5 %."""
    assert weighted(replace(WORLD, gateways=gateways)) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("gateways", [1, 4])
def test_fifty_tenants_have_the_same(gateways: int) -> None:
    """Jain's index is at least 0.98, though the last asks for ten times what the first does."""
    assert fifty(replace(WORLD, gateways=gateways)) >= 0.98


def test_batch_does_not_starve() -> None:
    """Below interactive calls for twice the fleet each goes when it is late, and soon after where several are."""
    longest_s, share = batch(replace(WORLD, late_after_s=20.0))
    assert 0 < longest_s < 25 and share > 0.02


def test_a_fleet_is_not_idle_while_calls_wait() -> None:
    """No replica is without work as long as any call waits in a gateway."""
    tenants = [Tenant(name, 20.0 * WORLD.replicas) for name in "ab"]
    assert Run(tenants, WORLD).run().idle_s == 0


def test_without_a_flood_nothing_waits() -> None:
    """At half of what the fleet can do every call goes at once."""
    had = Run([Tenant("a", 5.0 * WORLD.replicas), Tenant("b", 2.0 * WORLD.replicas)], WORLD).run().had
    assert sum(map(sum, (it.waits_s for it in had.values()))) < 0.1 and had["a"].refused == 0


@pytest.mark.parametrize("minutes", ["0.5", "-1", "nan"])
def test_too_short_a_run_is_refused(minutes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is simulated."""
    monkeypatch.setattr("sys.argv", ["fairness", "--minutes", minutes])
    with pytest.raises(SystemExit):
        main()


def test_jains_index() -> None:
    """One where all have the same, 1/n where one has everything."""
    assert jain([2.0, 2.0]) == 1 and jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_the_table_says_all_of_it() -> None:
    """A row for each kind of traffic, with one gateway and with four."""
    lines: Iterator[str] = table(1.0, 1)
    assert len(list(lines)) == 2 + 4 * len(TRAFFIC) + 2 + 3 * len(TRAFFIC) + 4
