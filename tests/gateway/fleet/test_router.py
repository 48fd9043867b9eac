"""Router: a pure ranking, the same in every gateway."""

from __future__ import annotations

from serving.gateway.fleet.router import Candidate, rank


def test_the_least_committed_replica_is_first() -> None:
    """Our own requests now plus what others have there; our share of an old report is not counted again."""
    busy = Candidate("busy", "", own_requests=2, own_when_reported=2, reported_requests=5)
    ours = Candidate("ours", "", own_requests=4, own_when_reported=4, reported_requests=4)
    idle = Candidate("idle", "", own_requests=0, own_when_reported=3, reported_requests=3)
    assert [busy.committed_requests, ours.committed_requests, idle.committed_requests] == [5, 4, 0]
    assert [candidate.replica_id for candidate in rank([busy, ours, idle], 0)] == ["idle", "ours", "busy"]


def test_equals_take_turns() -> None:
    """Equally loaded replicas share the calls, whatever order they are listed in."""
    candidates = [Candidate(name, "") for name in "cab"]
    assert [rank(candidates, turn)[0].replica_id for turn in range(4)] == ["a", "b", "c", "a"]
    assert rank([], 3) == []
