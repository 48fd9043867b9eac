"""Figures: what a run comes to, from outcomes to everything a report shows. Pure; the JSON of a run is one `Figures`.

Requests belong to the window in which they were due, whenever they ended. A session that no worker reported is a
failure: nothing that was planned is missing from the sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import msgspec

from loadtest.failures import LOST
from loadtest.outcomes import RequestOutcome, RequestSlo, judge
from loadtest.watch import Sighting
from loadtest.workload import Session
from serving.gateway.observe.slo import Verdict

SCHEMA = 1
#: Windows of a run without steps of its own.
WINDOWS = 30
#: Fewer requests than this say little about a window; its point is left out of the search for the knee.
ENOUGH = 5


class Quantiles(msgspec.Struct, frozen=True):
    """Of so many values, in the unit of the field that holds them."""

    count: int
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Failures(msgspec.Struct, frozen=True):
    """Requests that failed one way."""

    kind: str
    said: str
    count: int
    #: Seconds since the start when the first of them was due.
    first_due_s: float


class Totals(msgspec.Struct, frozen=True):
    """The whole run, goodput and failures first."""

    #: Requests a second inside their SLO, by the seconds in which requests were due.
    goodput_per_s: float
    #: Share of all requests inside their SLO, 0 to 1.
    inside_slo: float
    failed: int
    offered_per_s: float
    requests: int
    verdicts: dict[str, int]
    sessions_planned: int
    sessions_lost: int
    prompt_tokens: int
    output_tokens: int


class Latencies(msgspec.Struct, frozen=True):
    """Of the requests of one user that came whole, in seconds; and tokens a second of their answers."""

    ttft_s: Quantiles | None
    itl_s: Quantiles | None
    tpot_s: Quantiles | None
    latency_s: Quantiles | None
    tokens_per_s: Quantiles | None


class Window(msgspec.Struct, frozen=True):
    """The requests that were due between two instants."""

    begins_s: float
    ends_s: float
    offered_per_s: float
    goodput_per_s: float
    requests: int
    verdicts: dict[str, int]
    #: Requests by kind of failure.
    failures: dict[str, int]
    ttft_s: Quantiles | None
    tpot_s: Quantiles | None
    #: Most requests under way at once.
    most_open: int

    @property
    def inside_slo(self) -> float:
        return self.verdicts.get(Verdict.MET, 0) / self.requests if self.requests else 1.0


class Knee(msgspec.Struct, frozen=True):
    """The highest load that kept its SLO, with every lower one: the capacity."""

    #: Requests a second; None when even the lowest load did not keep it.
    offered_per_s: float | None
    goodput_per_s: float | None
    #: False when the highest load kept it too: the capacity is that or more.
    is_reached: bool
    #: Share of requests that must be inside, 0 to 1.
    share: float


class About(msgspec.Struct, frozen=True):
    """What was run, and where. No address, key, prompt or host's name: a report can be given away."""

    made_at: str
    shape: str
    duration_s: float
    mix: dict[str, float]
    seed: int
    workers: int
    models: tuple[str, ...]
    #: As described by the operator: GPUs, engines, what is between.
    target: str
    #: Of the load generator.
    machine: str
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


class LocustEntry(msgspec.Struct, frozen=True):
    """One line of Locust's own statistics: milliseconds, or tokens a second where its name says so."""

    method: str
    name: str
    requests: int
    failures: int
    median: float
    average: float
    p95: float
    max: float


class Figures(msgspec.Struct, frozen=True):
    """A run."""

    totals: Totals
    failures: tuple[Failures, ...]
    knee: Knee
    slo: RequestSlo
    #: By user, and "all".
    latencies: dict[str, Latencies]
    #: How late the generator itself was, in seconds; counted in every latency.
    lateness_s: Quantiles | None
    windows: tuple[Window, ...]
    sightings: tuple[Sighting, ...]
    locust: tuple[LocustEntry, ...]
    about: About
    schema: int = SCHEMA


def quantiles(values: Iterable[float | None]) -> Quantiles | None:
    """Nearest rank, None left out; None when nothing is left."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None

    def rank(share: float) -> float:
        return known[max(0, math.ceil(share * len(known)) - 1)]

    return Quantiles(len(known), rank(0.5), rank(0.9), rank(0.95), rank(0.99), known[-1])


def lost(planned: Sequence[Session], outcomes: Sequence[RequestOutcome]) -> list[RequestOutcome]:
    """A failed outcome for each session of which none was reported."""
    reported = {it.session for it in outcomes}
    return [
        RequestOutcome(it.number, 0, it.kind, it.due_s, it.due_s, it.due_s, LOST, "no worker reported it")
        for it in planned
        if it.number not in reported
    ]


def totals(planned: Sequence[Session], outcomes: Sequence[RequestOutcome], slo: RequestSlo, span_s: float) -> Totals:
    """`outcomes` with the lost ones; `span_s` is how long sessions were due, and later turns make it longer."""
    verdicts = _verdicts(outcomes, slo)
    span_s = max(span_s, *(it.due_s for it in outcomes), 0.0)
    met = verdicts.get(Verdict.MET, 0)
    return Totals(
        goodput_per_s=met / span_s,
        inside_slo=met / len(outcomes) if outcomes else 0.0,
        failed=verdicts.get(Verdict.FAILED, 0),
        offered_per_s=len(outcomes) / span_s,
        requests=len(outcomes),
        verdicts=verdicts,
        sessions_planned=len(planned),
        sessions_lost=sum(it.failure_kind == LOST for it in outcomes),
        prompt_tokens=sum(it.prompt_tokens for it in outcomes),
        output_tokens=sum(it.output_tokens for it in outcomes),
    )


def _verdicts(outcomes: Iterable[RequestOutcome], slo: RequestSlo) -> dict[str, int]:
    return _counted(str(judge(it, slo)) for it in outcomes)


def _counted(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def failures(outcomes: Iterable[RequestOutcome]) -> tuple[Failures, ...]:
    """Every way in which requests failed, most frequent first."""

    def way(it: RequestOutcome) -> tuple[str, str]:
        return it.failure_kind, it.failure

    ways = groupby(sorted((it for it in outcomes if not it.is_ok), key=way), key=way)
    found = [(kind, said, list(group)) for (kind, said), group in ways]
    counted = (Failures(kind, said, len(them), min(it.due_s for it in them)) for kind, said, them in found)
    return tuple(sorted(counted, key=lambda it: -it.count))


def latencies(outcomes: Iterable[RequestOutcome]) -> dict[str, Latencies]:
    """By user and over all; of whole answers only, because a refusal is quick."""
    whole = [it for it in outcomes if it.is_ok]
    users = {str(kind): [it for it in whole if it.kind is kind] for kind in sorted({it.kind for it in whole})}
    return {name: _latencies(them) for name, them in {"all": whole, **users}.items()}


def _latencies(whole: Sequence[RequestOutcome]) -> Latencies:
    return Latencies(
        ttft_s=quantiles(it.ttft_s for it in whole),
        itl_s=quantiles(gap for it in whole for gap in it.gaps_s),
        tpot_s=quantiles(it.tpot_s for it in whole),
        latency_s=quantiles(it.latency_s for it in whole),
        tokens_per_s=quantiles(it.tokens_per_s for it in whole),
    )


def windows(outcomes: Sequence[RequestOutcome], slo: RequestSlo, span_s: float, count: int) -> tuple[Window, ...]:
    """`span_s` in so many equal parts, and as many more of that length as later turns of conversations need."""
    length_s = span_s / count
    last_due_s = max((it.due_s for it in outcomes), default=0.0)
    parts: list[list[RequestOutcome]] = [[] for _ in range(max(count, int(last_due_s / length_s) + 1))]
    for it in outcomes:
        parts[int(it.due_s / length_s)].append(it)
    return tuple(
        _window(part, outcomes, slo, number * length_s, (number + 1) * length_s) for number, part in enumerate(parts)
    )


def _window(
    part: Sequence[RequestOutcome],
    all_outcomes: Sequence[RequestOutcome],
    slo: RequestSlo,
    begins_s: float,
    ends_s: float,
) -> Window:
    verdicts = _verdicts(part, slo)
    return Window(
        begins_s=begins_s,
        ends_s=ends_s,
        offered_per_s=len(part) / (ends_s - begins_s),
        goodput_per_s=verdicts.get(Verdict.MET, 0) / (ends_s - begins_s),
        requests=len(part),
        verdicts=verdicts,
        failures=_counted(it.failure_kind for it in part if not it.is_ok),
        ttft_s=quantiles(it.ttft_s for it in part if it.is_ok),
        tpot_s=quantiles(it.tpot_s for it in part if it.is_ok),
        most_open=most_open(all_outcomes, begins_s, ends_s),
    )


def most_open(outcomes: Iterable[RequestOutcome], begins_s: float, ends_s: float) -> int:
    """The most requests that were due and had not ended at one instant between the two."""
    there = [it for it in outcomes if it.due_s < ends_s and it.ended_s > begins_s]
    # At equal instants an end comes before a beginning.
    changes = sorted(
        [(max(it.due_s, begins_s), 1) for it in there] + [(it.ended_s, -1) for it in there if it.ended_s < ends_s]
    )
    open_now = most = 0
    for _, change in changes:
        open_now += change
        most = max(most, open_now)
    return most


def knee(found: Sequence[Window], share: float) -> Knee:
    """Climb from the lowest load up to the first that does not keep `share` of its requests inside."""
    best: Window | None = None
    for window in sorted((it for it in found if it.requests >= ENOUGH), key=lambda it: it.offered_per_s):
        if window.inside_slo < share:
            return _knee(best, True, share)
        best = window
    return _knee(best, False, share)


def _knee(best: Window | None, is_reached: bool, share: float) -> Knee:
    if best is None:
        return Knee(None, None, is_reached, share)
    return Knee(best.offered_per_s, best.goodput_per_s, is_reached, share)


def figures(
    planned: Sequence[Session],
    outcomes: Sequence[RequestOutcome],
    slo: RequestSlo,
    *,
    span_s: float,
    steps: int,
    share: float,
    sightings: Sequence[Sighting],
    locust: Sequence[LocustEntry],
    about: About,
) -> Figures:
    """All of it. `steps` is how many equal parts the run has by its shape, 0 for none of its own."""
    complete = [*outcomes, *lost(planned, outcomes)]
    count = steps or WINDOWS
    parts = windows(complete, slo, span_s, count)
    late = quantiles(it.lateness_s for it in outcomes)
    return Figures(
        totals=totals(planned, complete, slo, span_s),
        failures=failures(complete),
        knee=knee(parts[:count], share),
        slo=slo,
        latencies=latencies(complete),
        lateness_s=late,
        windows=parts,
        sightings=tuple(sightings),
        locust=tuple(locust),
        about=msgspec.structs.replace(about, notes=(*about.notes, *warnings(complete, late))),
    )


#: Seconds a generator may be late, too little to matter in a TTFT.
LATENESS_MAX_S = 0.05


def warnings(outcomes: Sequence[RequestOutcome], late: Quantiles | None) -> list[str]:
    """What a reader must know before believing the rest."""
    if not outcomes:
        return ["Nothing was sent: the run was shorter than the time between two sessions."]
    if late is not None and late.p99 > LATENESS_MAX_S:
        return ["The load generator was late itself, which every latency contains: give it more workers or cores."]
    return []
