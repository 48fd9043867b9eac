"""Replicas: silence removes none, and each counts once."""

from __future__ import annotations

import pytest

from serving.gateway.fleet.replicas import Known, is_withdrawn, merge, ready
from serving.wire import DirectoryAnswer, ReplicaState
from tests.gateway.fleet.reports import answer, report


def ids(known: dict[str, Known], lost_at: dict[str, float] | None = None, model: str = "m") -> set[str]:
    return {replica.report.replica_id for replica in ready(known, lost_at or {}, model)}


def merged(*answers: DirectoryAnswer) -> dict[str, Known]:
    known: dict[str, Known] = {}
    for at, said in enumerate(answers, 100):
        known = merge(known, said, float(at))
    return known


def test_a_complete_answer_removes_what_is_missing() -> None:
    """A complete answer that does not list a replica says that it is gone."""
    assert ids(merged(answer(report("1"), report("2")), answer(report("2")))) == {"2"}


def test_an_incomplete_answer_removes_no_replica() -> None:
    """A directory that has just restarted empty leaves the fleet as it is, and may add to it."""
    known = merged(answer(report("1")), answer(is_complete=False), answer(report("3"), is_complete=False))
    assert ids(known) == {"1", "3"}


def test_cells_speak_only_for_themselves() -> None:
    """Two cells' replicas count together; a complete answer of one says nothing about the other's."""
    assert ids(merged(answer(report("1"), cell="a"), answer(report("2"), cell="b"))) == {"1", "2"}


def test_a_replica_listed_twice_is_one() -> None:
    """By its id in two cells, or by its address under two ids, a replica gets one place in the ranking."""
    assert ids(merged(answer(report("1"), cell="a"), answer(report("1"), cell="b"))) == {"1"}
    assert len(ids(merged(answer(report("old", url="u")), answer(report("new", url="u"), cell="b")))) == 1


@pytest.mark.parametrize("state", [state for state in ReplicaState if state is not ReplicaState.READY])
def test_only_ready_replicas_get_calls(state: ReplicaState) -> None:
    """Draining, failed, or not ready yet: known, and left alone."""
    known = merged(answer(report("1")), answer(report("1", state)))
    assert ids(known) == set() and known["1"].report.state is state


def test_an_adapter_is_asked_for_where_it_is_offered() -> None:
    """Its calls go to ready replicas that offer it, its model's to all."""
    loading = report("4", ReplicaState.LOADING, adapters=("x",))
    known = merged(answer(report("1", adapters=("x",)), report("2", adapters=("x", "y")), report("3"), loading))
    assert (ids(known), ids(known, model="x"), ids(known, model="y")) == ({"1", "2", "3"}, {"1", "2"}, {"2"})
    assert ids(known, {"2": 101.0}, "y") == set()


def test_an_adapter_is_withdrawn_when_a_ready_replica_says_so() -> None:
    """Not while another offers it, nor while none is ready: those may be restarting with it."""
    without, offering = report("1"), report("2", ReplicaState.LOADING, adapters=("x",))
    assert is_withdrawn(merged(answer(without)), "x", "m")
    assert not is_withdrawn(merged(answer(without, offering)), "x", "m")
    assert not is_withdrawn(merged(answer(report("1", ReplicaState.STARTING))), "x", "m")
    assert not is_withdrawn(merged(answer(report("1", model="another"))), "x", "m")


def test_an_older_report_does_not_undo_a_newer_one() -> None:
    """Whichever cell brings it, the latest report counts."""
    known = merged(answer(report("1", ReplicaState.DRAINING)), answer(report("1"), cell="b", heard_ago_s=30))
    assert ids(known) == set()


def test_a_refused_connection_holds_until_the_replica_reports_again() -> None:
    """A report from before the loss, however often it is repeated, does not bring a replica back; a later one does."""
    known = merged(answer(report("1"), heard_ago_s=0.1))
    lost_at = {"1": 100.5}
    known = merge(known, answer(report("1"), heard_ago_s=5.1), 105.0)
    assert ids(known, lost_at) == set()
    known = merge(known, answer(report("1"), heard_ago_s=0.1), 106.0)
    assert ids(known, lost_at) == {"1"}
