"""Tally: what a change is, and that a reason names nothing."""

from __future__ import annotations

from serving.gateway.admission.counters.counter import Draw, Kind
from serving.gateway.admission.counters.tally import Change, Part, TallyUnavailable


def test_a_change_takes_nothing_unless_it_says_so() -> None:
    """A call that is over without more leaves its counters as they were."""
    part = Part(Draw("t/open", Kind.OPEN, 1, 1))
    assert (part.add, part.hold, Change("a", (part,)).is_final) == (0, 0, False)
    assert TallyUnavailable("no answer in time").reason == "no answer in time"
