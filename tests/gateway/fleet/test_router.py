"""Router: a pure ranking: where a call's first token comes soonest."""

from __future__ import annotations

from serving.gateway.fleet.router import Candidate, Need, rank, water_level


def order(*candidates: Candidate, level: float = 0.0, draw: float = 0.0) -> list[str]:
    return [it.replica_id for it in rank(candidates, level, draw)]


def test_the_least_committed_replica_is_first() -> None:
    """In tokens: one long prompt weighs more than many short calls."""
    long, short, idle = (
        Candidate(name, "", committed_tokens=tokens) for name, tokens in (("l", 100_000), ("s", 900), ("i", 0))
    )
    assert order(long, short, idle) == ["i", "s", "l"]


def test_the_longest_prefix_wins_until_its_queue_costs_more() -> None:
    """A hot prefix spills to another replica before its calls would wait longer than computing it takes."""
    idle = Candidate("idle", "")
    for committed, first in ((7_999, "warm"), (8_001, "idle")):
        warm = Candidate("warm", "", committed_tokens=committed, cached_tokens=8_000)
        assert order(idle, warm)[0] == first
    longer = Candidate("longer", "", committed_tokens=500, cached_tokens=9_000)
    assert order(idle, Candidate("warm", "", committed_tokens=500, cached_tokens=8_000), longer)[0] == "longer"


def test_equals_take_turns() -> None:
    """The one chosen longest ago is first, whatever order they are listed in; in a new gateway the first by name."""
    assert order(Candidate("c", "", turn=1), Candidate("a", "", turn=3), Candidate("b", "", turn=2)) == ["c", "b", "a"]
    assert order(Candidate("b", ""), Candidate("a", "")) == ["a", "b"]
    assert rank([]) == []


def test_what_other_gateways_sent_meanwhile_fills_up_the_least_committed() -> None:
    """A call takes one of those by chance, as likely as it had room; one above the level gets none."""
    fleet = [Candidate(name, "", committed_tokens=tokens) for name, tokens in (("a", 0), ("b", 300), ("c", 900))]
    firsts = [order(*fleet, level=400, draw=draw)[0] for draw in (0.0, 0.79, 0.81, 0.999)]
    assert firsts == ["a", "a", "b", "b"]
    assert [order(*fleet, draw=draw)[0] for draw in (0.0, 0.999)] == ["a", "a"], "with nothing unseen"


def test_a_prefix_counts_where_other_gateways_have_filled_up() -> None:
    """Its replica had no more room than others: it is worth as much as without them."""
    warm = Candidate("warm", "", committed_tokens=700, cached_tokens=1_000)
    assert {order(Candidate("idle", ""), warm, level=5_350, draw=draw)[0] for draw in (0.0, 0.5, 0.999)} == {"warm"}


def test_the_water_level() -> None:
    """All that is poured in lies above the lowest, and no higher than it has to."""
    assert [water_level([5, 5, 8], tokens) for tokens in (0, 2, 6, 9)] == [5, 6, 8, 9]
    assert water_level([0, 300, 900], 500) == 400
    assert water_level([], 7) == 0


def test_a_call_commits_a_replica_to_its_output() -> None:
    """And any call to something, however short."""
    assert Need(output_tokens=100).decode_tokens == Need().decode_tokens + 100 > 100
