"""Charts: three pictures of a run, each one SVG that needs nothing else. Drawn by matplotlib, without a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from loadtest.figures import Figures, Quantiles, Window
from serving.gateway.observe.slo import Verdict

#: Of the outcome of a request, wherever one is shown: from Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
    Verdict.MET: "#009e73",
    Verdict.SLOW_FIRST_TOKEN: "#e69f00",
    Verdict.SLOW_TOKENS: "#f0e442",
    Verdict.FAILED: "#d55e00",
}
LABELS = {
    Verdict.MET: "inside the SLO",
    Verdict.SLOW_FIRST_TOKEN: "slow first token",
    Verdict.SLOW_TOKENS: "slow tokens",
    Verdict.FAILED: "failed",
}
BLUE, GREY = "#0072b2", "#666666"
#: No date and no links to vocabularies: nothing in a report leads out of it.
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def goodput(it: Figures) -> str:
    """Goodput and failures against load; a stack that keeps up lies on the diagonal."""
    with _drawn(1) as (svg, (axes,)):
        loads = _by_load(it)
        offered = [window.offered_per_s for window in loads]
        top = max(offered, default=1.0)
        axes.plot([0, top], [0, top], color=GREY, linestyle=":", label="offered")
        axes.plot(
            offered, [window.goodput_per_s for window in loads], "o-", color=COLOURS[Verdict.MET], label="goodput"
        )
        failed = [window.verdicts.get(Verdict.FAILED, 0) / (window.ends_s - window.begins_s) for window in loads]
        axes.plot(offered, failed, "x-", color=COLOURS[Verdict.FAILED], label="failed")
        if it.knee.offered_per_s is not None:
            said = "knee" if it.knee.is_reached else "no knee up to here"
            axes.axvline(
                it.knee.offered_per_s, color=BLUE, linestyle="--", label=f"{said}: {it.knee.offered_per_s:.2f}/s"
            )
        _label(axes, "Goodput against load", "requests offered, per second", "requests per second")
    return svg()


def latency(it: Figures) -> str:
    """Time to first token, and per token after it, against load, with what was promised."""
    with _drawn(2) as (svg, (first, rest)):
        loads = _by_load(it)
        _quantiles(first, loads, lambda window: window.ttft_s, it.slo.ttft_s)
        _label(first, "Time to first token against load", "requests offered, per second", "seconds")
        _quantiles(rest, loads, lambda window: window.tpot_s, it.slo.tpot_s)
        _label(rest, "Time per output token against load", "requests offered, per second", "seconds")
    return svg()


def timeline(it: Figures) -> str:
    """What became of requests, how many were open, and how many replicas there were, over the run."""
    with _drawn(3, shares_x=True) as (svg, (requests, open_now, replicas)):
        _stacked(requests, it.windows)
        _label(requests, "Requests by when they were due, and what became of them", "", "per second")
        middles = [(window.begins_s + window.ends_s) / 2 for window in it.windows]
        open_now.plot(middles, [window.most_open for window in it.windows], color=BLUE, label="most open at once")
        open_now.set_ylim(bottom=0)
        _label(open_now, "Open requests", "", "requests")
        _replicas(replicas, it)
        _label(replicas, "Replicas", "seconds since the start", "replicas")
    return svg()


def _by_load(it: Figures) -> list[Window]:
    """The run's windows but for its tail, in which nothing is offered but last turns."""
    loads = (window for window in it.windows if window.requests and window.begins_s < it.about.duration_s)
    return sorted(loads, key=lambda window: window.offered_per_s)


def _quantiles(
    axes: Axes, loads: Sequence[Window], of: Callable[[Window], Quantiles | None], promised_s: float
) -> None:
    found = [(window.offered_per_s, values) for window in loads if (values := of(window)) is not None]
    for name, colour in (("p50", COLOURS[Verdict.MET]), ("p95", BLUE), ("p99", COLOURS[Verdict.FAILED])):
        axes.plot(
            [load for load, _ in found], [getattr(values, name) for _, values in found], "o-", color=colour, label=name
        )
    axes.axhline(promised_s, color=GREY, linestyle="--", label=f"promised: {promised_s:g} s")
    axes.set_ylim(bottom=0)


def _stacked(axes: Axes, windows: Sequence[Window]) -> None:
    below = [0.0] * len(windows)
    for verdict, colour in COLOURS.items():
        rates = [window.verdicts.get(verdict, 0) / (window.ends_s - window.begins_s) for window in windows]
        widths = [window.ends_s - window.begins_s for window in windows]
        starts = [window.begins_s for window in windows]
        axes.bar(starts, rates, widths, below, align="edge", color=colour, label=LABELS[verdict])
        below = [one + other for one, other in zip(below, rates, strict=True)]


def _replicas(axes: Axes, it: Figures) -> None:
    if not it.sightings:
        axes.text(0.5, 0.5, "not seen: nothing answered at the metrics' address", transform=axes.transAxes, ha="center")
    instants = [sighting.at_s for sighting in it.sightings]
    lines = sorted(
        {(model, state) for look in it.sightings for model, states in look.replicas.items() for state in states}
    )
    for model, state in lines:
        counts = [look.replicas.get(model, {}).get(state, 0.0) for look in it.sightings]
        axes.step(instants, counts, where="post", label=f"{model} {state}")
    for model in sorted({model for look in it.sightings for model in look.wanted}):
        counts = [look.wanted.get(model, 0.0) for look in it.sightings]
        axes.step(instants, counts, where="post", linestyle=":", label=f"{model} wanted")
    axes.set_ylim(bottom=0)


def _label(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=8)


def _style() -> AbstractContextManager[None]:
    """Text stays text, and the same run gives the same bytes."""
    return mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "loadtest", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    )


@contextmanager
def _drawn(rows: int, *, shares_x: bool = False) -> Iterator[tuple[Callable[[], str], list[Axes]]]:
    """Axes below one another, and a function that says them as SVG once the `with` has drawn."""
    with _style():
        picture = Figure(figsize=(9, 3.2 * rows), layout="constrained")
        FigureCanvasSVG(picture)
        axes = picture.subplots(rows, 1, squeeze=False, sharex=shares_x)
        yield lambda: _svg(picture), list(axes[:, 0])


def _svg(picture: Figure) -> str:
    """Without the XML prologue, so that it can stand inside HTML."""
    out = io.StringIO()
    with _style():
        picture.savefig(out, format="svg", metadata=NO_METADATA)
    text = out.getvalue()
    return text[text.index("<svg") :]
