"""From outcomes to figures: goodput, windows, the knee, and nothing that was planned is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import pytest

from loadtest import figures
from loadtest.figures import About, Figures, Window
from loadtest.outcomes import RequestOutcome, RequestSlo, judge, packed
from loadtest.watch import sighting
from loadtest.workload import Kind, Session
from serving.gateway.observe.slo import Verdict

SLO = RequestSlo(ttft_s=2.0, tpot_s=0.1)
ABOUT = About(
    made_at="2026-01-01T00:00:00Z",
    shape="steady 1 sessions/s for 100 s",
    duration_s=100.0,
    mix={"chat": 1.0},
    seed=1,
    workers=1,
    models=("scripted-model",),
    target="a scripted engine",
    machine="2 cores",
    versions={"python": "3.11.17"},
)


def outcome(
    number: int = 0,
    due_s: float = 0.0,
    ttft_s: float = 1.0,
    gap_s: float = 0.05,
    tokens: int = 5,
    failure_kind: str = "",
    kind: Kind = Kind.CHAT,
) -> RequestOutcome:
    first_s = due_s + ttft_s
    pieces = [first_s + gap_s * n for n in range(tokens)]
    return RequestOutcome(
        number, 0, kind, due_s, due_s, pieces[-1], failure_kind, failure_kind, first_s, 7, tokens, packed(pieces)
    )


def about_run(outcomes: list[RequestOutcome], planned: int | None = None, steps: int = 10) -> Figures:
    sessions = [Session(n, float(n), Kind.CHAT, 5, 5) for n in range(len(outcomes) if planned is None else planned)]
    return figures.figures(
        sessions, outcomes, SLO, span_s=100.0, steps=steps, share=0.9, sightings=[], locust=[], about=ABOUT
    )


@pytest.mark.parametrize(
    ("it", "verdict"),
    [
        (outcome(ttft_s=2.0, gap_s=0.08), Verdict.MET),
        (outcome(ttft_s=2.001), Verdict.SLOW_FIRST_TOKEN),
        (outcome(gap_s=0.11), Verdict.SLOW_TOKENS),
        (outcome(failure_kind="cut"), Verdict.FAILED),
        (outcome(gap_s=9.0, tokens=1), Verdict.MET),
    ],
)
def test_a_request_is_judged_by_both_promises(it: RequestOutcome, verdict: Verdict) -> None:
    """The first token in time, and the others on average; a failure is never inside, however quick."""
    assert judge(it, SLO) is verdict


def test_an_embedding_is_judged_by_its_whole_answer() -> None:
    """It has no first token: its latency is held against that promise."""
    quick = RequestOutcome(1, 0, Kind.EMBEDDING, 0.0, 0.0, 1.9)
    assert judge(quick, SLO) is Verdict.MET
    assert judge(msgspec.structs.replace(quick, ended_s=2.1), SLO) is Verdict.SLOW_FIRST_TOKEN


def test_goodput_counts_what_was_kept() -> None:
    """Three of five requests in a hundred seconds met their SLO: neither the late one nor the refused one is output."""
    them = [*(outcome(n) for n in range(3)), outcome(3, ttft_s=5.0), outcome(4, failure_kind="refused")]
    totals = about_run(them).totals
    assert (totals.goodput_per_s, totals.inside_slo, totals.offered_per_s) == pytest.approx((0.03, 0.6, 0.05))
    assert totals.verdicts == {"met": 3, "slow_first_token": 1, "failed": 1}


def test_tpot_is_by_tokens_and_not_by_pieces() -> None:
    """Two pieces with nine tokens, 0.8 s apart: 0.1 s a token after the first."""
    it = RequestOutcome(1, 0, Kind.CHAT, 0.0, 0.0, 1.8, first_s=1.0, output_tokens=9, gaps=packed([1.0, 1.8]))
    assert it.tpot_s == pytest.approx(0.1)


def test_quantiles_are_values_that_occurred() -> None:
    """Nearest rank; None is left out, and of nothing there are none."""
    found = figures.quantiles([*map(float, range(1, 101)), None])
    assert found is not None
    assert (found.count, found.p50, found.p90, found.p95, found.p99, found.max) == (100, 50, 90, 95, 99, 100)
    assert figures.quantiles([None]) is None


def test_sessions_that_nobody_reported_are_failures() -> None:
    """A worker that died takes nothing out of the sums."""
    found = about_run([outcome(n, float(n)) for n in range(0, 100, 2)], planned=100)
    assert found.totals.sessions_lost == found.totals.failed == 50
    assert found.totals.requests == found.totals.sessions_planned == 100
    assert [(it.kind, it.count) for it in found.failures] == [("lost", 50)]
    assert found.totals.inside_slo == 0.5


def test_requests_belong_to_the_window_they_were_due_in() -> None:
    """Also those that ended much later, and turns after the last session have windows of their own."""
    found = about_run([outcome(0, 5.0, ttft_s=80.0), outcome(1, 95.0), outcome(2, 118.0)])
    assert [it.requests for it in found.windows] == [1, *[0] * 8, 1, 0, 1]
    assert sum(it.requests for it in found.windows) == found.totals.requests
    assert found.totals.goodput_per_s == pytest.approx(2 / 118)


def test_failures_are_sorted_by_how_often_they_came() -> None:
    them = [outcome(0), outcome(1, failure_kind="cut"), *(outcome(n, failure_kind="refused") for n in range(2, 5))]
    assert [(it.kind, it.count) for it in about_run(them).failures] == [("refused", 3), ("cut", 1)]


def test_latencies_are_of_whole_answers_only() -> None:
    """A stack that refuses at once looks quick otherwise."""
    them = [outcome(0, ttft_s=1.0), outcome(1, ttft_s=0.0, failure_kind="refused")]
    found = about_run(them).latencies
    assert found["all"] == found["chat"]
    assert found["all"].ttft_s is not None and found["all"].ttft_s.count == 1


def test_open_requests_are_counted_where_they_overlap() -> None:
    """Of three, two at once; one that ended when another began was not open with it."""
    them = [
        RequestOutcome(n, 0, Kind.CHAT, due_s, due_s, ended_s)
        for n, (due_s, ended_s) in enumerate([(0, 4), (2, 6), (6, 8)])
    ]
    assert figures.most_open(them, 0.0, 10.0) == 2
    assert figures.most_open(them, 6.0, 10.0) == 1


@dataclass(frozen=True)
class Rung:
    offered_per_s: float
    inside: float
    requests: int = 100

    def window(self) -> Window:
        met = round(self.inside * self.requests)
        verdicts = {str(Verdict.MET): met, str(Verdict.SLOW_FIRST_TOKEN): self.requests - met}
        return Window(
            0, 10, self.offered_per_s, self.offered_per_s * self.inside, self.requests, verdicts, {}, None, None, 1
        )


@pytest.mark.parametrize(
    ("rungs", "expected", "is_reached"),
    [
        ([Rung(1, 1.0), Rung(2, 0.95), Rung(3, 0.5), Rung(4, 0.92)], 2, True),
        ([Rung(3, 0.99), Rung(1, 1.0), Rung(2, 1.0)], 3, False),
        ([Rung(1, 0.2), Rung(2, 1.0)], None, True),
        ([Rung(1, 1.0), Rung(2, 0.0, requests=2), Rung(3, 0.1)], 1, True),
        ([], None, False),
    ],
)
def test_the_knee_is_below_the_first_load_that_was_not_kept(
    rungs: list[Rung], expected: float | None, is_reached: bool
) -> None:
    """Whatever comes after it, and in whatever order; a window of a few requests decides nothing."""
    found = figures.knee([it.window() for it in rungs], 0.9)
    assert (found.offered_per_s, found.is_reached) == (expected, is_reached)


def test_a_late_generator_is_said_to_be_late() -> None:
    """Its lateness is in every figure, so whoever reads them must know."""
    late = msgspec.structs.replace(outcome(0), began_s=0.3)
    assert "late itself" in about_run([late]).about.notes[0]
    assert about_run([outcome(0)]).about.notes == ()


def test_replicas_are_read_from_the_gateways_metrics() -> None:
    text = (
        "# TYPE serving_gateway_replicas gauge\n"
        'serving_gateway_replicas{model="m",state="ready"} 2.0\n'
        'serving_gateway_replicas{model="m",state="loading"} 1.0\n'
        "# TYPE serving_gateway_wanted_replicas gauge\n"
        'serving_gateway_wanted_replicas{model="m"} 3.0\n'
        "# TYPE other gauge\nother 1.0\n"
    )
    found = sighting(7.0, text)
    assert (found.at_s, found.replicas, found.wanted) == (7.0, {"m": {"ready": 2.0, "loading": 1.0}}, {"m": 3.0})


def test_a_run_of_one_request_has_figures() -> None:
    """Nothing divides by nothing, and every figure can be written as JSON."""
    found = about_run([outcome(0)])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Figures) == found
    assert not math.isnan(found.totals.goodput_per_s)
    assert about_run([]).about.notes
