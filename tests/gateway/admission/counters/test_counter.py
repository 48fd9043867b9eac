"""Counter: what draws and verdicts are."""

from __future__ import annotations

from serving.gateway.admission.counters.counter import Draw, Kind, Verdict


def test_a_verdict_without_a_refusal_has_taken_all() -> None:
    """Nothing is refused unless it says so."""
    assert Verdict(()).refused is None
    assert Draw("t/requests", Kind.OPEN, limit=1, amount=1).period_us == 0
