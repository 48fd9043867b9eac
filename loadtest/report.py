"""Report: one HTML file that needs nothing else, and the JSON it is made of. Goodput and failures stand first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import msgspec

from loadtest.figures import SCHEMA, Figures, Quantiles
from serving.errors import Refusal
from serving.gateway.observe.slo import Verdict

JSON, HTML = "report.json", "report.html"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.first { display: flex; gap: 1rem; flex-wrap: wrap; }
.first div { border: 1px solid #ddd; border-radius: .5rem; padding: .6rem 1rem; }
.first b { display: block; font-size: 1.7rem; }
.bad { border-color: #d55e00 !important; color: #b04000; }
.note { background: #fff3cd; padding: .5rem 1rem; }
svg { max-width: 100%; height: auto; }
"""


def write(it: Figures, folder: Path) -> None:
    """Both files into `folder`, which is made; raises Refusal where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON).write_bytes(msgspec.json.format(msgspec.json.encode(it), indent=1) + b"\n")
        (folder / HTML).write_text(html(it))
    except OSError as error:
        raise Refusal(
            f"The report cannot be written to {folder}: {error.strerror}; choose another with --out."
        ) from None


def read(path: Path) -> Figures:
    """The JSON of an earlier run; raises Refusal when it is none of this version."""
    try:
        it = msgspec.json.decode(path.read_bytes(), type=Figures)
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}.") from None
    except msgspec.DecodeError as error:
        raise Refusal(f"{path} is no report of a load test: {error}.") from None
    if it.schema != SCHEMA:
        raise Refusal(f"{path} has schema {it.schema}, and this version reads {SCHEMA}.")
    return it


def summary(it: Figures) -> Iterator[str]:
    """The same on a terminal, in a few lines."""
    yield f"goodput   {it.totals.goodput_per_s:.2f} requests/s of {it.totals.offered_per_s:.2f} offered; {knee(it)}"
    yield f"inside    {it.totals.inside_slo:.1%} of {it.totals.requests} requests ({promised(it)})"
    yield f"failed    {it.totals.failed}"
    for way in it.failures:
        yield f"          {way.count:6} {way.kind}: {way.said}"
    for name, values in (("TTFT", it.latencies["all"].ttft_s), ("TPOT", it.latencies["all"].tpot_s)):
        if values:
            yield f"{name}      p50 {values.p50:.3f} s, p95 {values.p95:.3f} s, p99 {values.p99:.3f} s"
    yield from (f"note      {note}" for note in it.about.notes)


def knee(it: Figures) -> str:
    """The capacity in words."""
    share = f"{it.knee.share:.0%} inside the SLO"
    if it.knee.offered_per_s is None:
        return f"no load kept {share}" if it.knee.is_reached else "too few requests to look for the knee"
    if it.knee.is_reached:
        return f"{share} up to {it.knee.offered_per_s:.2f} requests/s"
    return f"{share} at every load, the highest {it.knee.offered_per_s:.2f} requests/s: the knee is further on"


def promised(it: Figures) -> str:
    return f"first token within {it.slo.ttft_s:g} s, then {it.slo.tpot_s:g} s a token"


def html(it: Figures) -> str:
    """The whole page."""
    from loadtest import charts  # matplotlib: a second that only a page is worth, not a worker or a refusal

    parts = [
        f"<h1>Load test: {escape(it.about.shape)}</h1>",
        f"<p>{escape(it.about.made_at)} · {escape(', '.join(it.about.models))} · {escape(it.about.target)}</p>",
        _first(it),
        *(f'<p class="note">{escape(note)}</p>' for note in it.about.notes),
        _failures(it),
        charts.goodput(it),
        charts.latency(it),
        charts.timeline(it),
        _latencies(it),
        _windows(it),
        _locust(it),
        _about(it),
    ]
    head = f'<meta charset="utf-8"><title>Load test</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _first(it: Figures) -> str:
    totals = it.totals
    boxes = [
        (
            f"{totals.goodput_per_s:.2f}/s",
            f"goodput: requests inside their SLO, of {totals.offered_per_s:.2f}/s offered",
            "",
        ),
        (f"{totals.failed}", f"failed of {totals.requests} requests", "bad" if totals.failed else ""),
        (f"{totals.inside_slo:.1%}", f"inside: {promised(it)}", ""),
        ("–" if it.knee.offered_per_s is None else f"{it.knee.offered_per_s:.2f}/s", f"capacity: {knee(it)}", ""),
    ]
    cells = "".join(f'<div class="{kind}"><b>{escape(value)}</b>{escape(said)}</div>' for value, said, kind in boxes)
    return f'<div class="first">{cells}</div>'


def _failures(it: Figures) -> str:
    rows = [(way.kind, way.said, str(way.count), f"{way.first_due_s:.1f}") for way in it.failures]
    if not rows:
        return "<h2>Failures</h2><p>None.</p>"
    return "<h2>Failures</h2>" + _table(("kind", "said", "requests", "first due at, s"), rows)


def _latencies(it: Figures) -> str:
    rows = [
        (f"{user} {name}", *_numbers(getattr(found, field)))
        for user, found in it.latencies.items()
        for field, name in (
            ("ttft_s", "TTFT, s"),
            ("itl_s", "ITL, s"),
            ("tpot_s", "TPOT, s"),
            ("latency_s", "whole answer, s"),
            ("tokens_per_s", "tokens/s"),
        )
    ]
    rows.append(("how late the generator was, s", *_numbers(it.lateness_s)))
    title = "<h2>Latencies</h2><p>Of requests that came whole, from when they were due.</p>"
    return title + _table(("", "count", "p50", "p90", "p95", "p99", "max"), rows)


def _numbers(it: Quantiles | None) -> tuple[str, ...]:
    if it is None:
        return ("0", "–", "–", "–", "–", "–")
    return (str(it.count), *(f"{value:.4g}" for value in (it.p50, it.p90, it.p95, it.p99, it.max)))


def _windows(it: Figures) -> str:
    rows = [
        (
            f"{window.begins_s:.0f}–{window.ends_s:.0f} s",
            f"{window.offered_per_s:.2f}",
            f"{window.goodput_per_s:.2f}",
            str(window.verdicts.get(Verdict.FAILED, 0)),
            f"{window.inside_slo:.1%}" if window.requests else "–",
            f"{window.ttft_s.p95:.3f}" if window.ttft_s else "–",
            f"{window.tpot_s.p95:.3f}" if window.tpot_s else "–",
            str(window.most_open),
        )
        for window in it.windows
    ]
    heads = ("due", "offered/s", "goodput/s", "failed", "inside", "TTFT p95, s", "TPOT p95, s", "most open")
    return "<h2>Over the run</h2>" + _table(heads, rows)


def _locust(it: Figures) -> str:
    rows = [
        (
            f"{entry.method} {entry.name}",
            str(entry.requests),
            str(entry.failures),
            *(f"{value:.4g}" for value in (entry.median, entry.average, entry.p95, entry.max)),
        )
        for entry in it.locust
    ]
    title = "<h2>Locust's statistics</h2><p>Milliseconds, rounded as Locust does; tokens/s are tokens a second.</p>"
    return title + _table(("", "count", "failures", "median", "mean", "p95", "max"), rows)


def _about(it: Figures) -> str:
    about, totals = it.about, it.totals
    rows = [
        ("shape", about.shape),
        ("seconds", f"{about.duration_s:g}"),
        ("users", ", ".join(f"{kind} {weight:g}" for kind, weight in about.mix.items())),
        ("sessions planned", str(totals.sessions_planned)),
        ("sessions no worker reported", str(totals.sessions_lost)),
        ("tokens in, out", f"{totals.prompt_tokens}, {totals.output_tokens}"),
        ("seed", str(about.seed)),
        ("workers", str(about.workers)),
        ("target", about.target),
        ("load generator", about.machine),
        *about.versions.items(),
    ]
    return "<h2>What was run</h2>" + _table(("", ""), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"
