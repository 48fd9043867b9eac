"""Report: an acceptance as JSON for machines and as one page of HTML for people; neither loads external resources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from tempfile import NamedTemporaryFile

import msgspec

from serving.errors import Refusal
from serving.operate.checks import Check
from serving.operate.findings import Disruption, Ladder, Report, counted
from serving.operate.measure import Percentiles

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Acceptance of an installation of gpt-oss-serving</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; margin: .6rem 0 1.6rem }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.yes { color: #176b2c } .no { color: #b00020; font-weight: 600 } .unknown { color: #8a5a00 }
</style>
<h1>Acceptance</h1>
<p>Made at $made_at by gpt-oss-serving $serving ($schema). Every figure is <b>$label</b>, unless its column says computed.
No prompt, answer, key or host name is in this file.$not_run</p>
<h2>Where</h2>
$place
<h2>Checks</h2>
$checks
<h2>The same answers</h2>
$equality
<h2>KV cache</h2>
$kv
<h2>Throughput</h2>
$ladders
<h2>Drain and failover</h2>
$disruptions
</html>
""")


def as_json(report: Report) -> bytes:
    """The report without the commands that settle an unknown, which name pods and namespaces."""
    checks = tuple(msgspec.structs.replace(it, command="") for it in report.checks)
    return msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(report, checks=checks))) + b"\n"


def as_html(report: Report) -> str:
    """The report as one HTML page; all external text is escaped."""
    return _PAGE.substitute(
        made_at=escape(report.made_at),
        serving=escape(report.place.serving),
        schema=escape(report.schema),
        label=escape(report.label),
        not_run=_not_run(report.not_run),
        place=_place(report),
        checks=_checks(report.checks),
        equality="".join(
            f"<p>{escape(it.first)} and {escape(it.second)}</p>" + _table(("prompt", "result"), it.prompts.items())
            for it in report.equality
        ),
        kv=_table(
            ("model", "tokens measured here", "tokens computed"),
            ((it.model, it.measured_tokens, it.computed_tokens) for it in report.kv),
        ),
        ladders="".join(map(_ladder, report.ladders)),
        disruptions=_disruptions(report.disruptions),
    )


def prepare(folder: Path) -> None:
    """Create the folder. Raises Refusal, before anything is measured, when it is not writable or holds a report already."""
    for file in files(folder):
        if os.path.lexists(file):
            raise Refusal(f"There is a report already, {file}: name another folder with --out, or move it away.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from None


def write(report: Report, folder: Path) -> None:
    """Write both files, each atomically; raises Refusal when the folder cannot be written to."""
    try:
        for file, content in zip(files(folder), (as_json(report), as_html(report).encode()), strict=True):
            _replace(file, content)
    except OSError as error:
        raise _unwritable(folder, error) from None


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "acceptance.json", folder / "acceptance.html"


def _replace(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.part")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> Refusal:
    return Refusal(f"The folder {folder} cannot be written to: {error.strerror}.")


def _not_run(titles: Sequence[str]) -> str:
    return f" <b>Not run, or not to the end: {escape(', '.join(titles))}.</b>" if titles else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    if not body:
        return "<p>Not measured.</p>"
    return f"<table><tr>{''.join(f'<th>{escape(it)}</th>' for it in head)}</tr>{body}</table>"


def _cell(value: object) -> str:
    if value is None:
        return "<td>—</td>"
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    if isinstance(value, float):
        return f'<td class="number">{value:,.1f}</td>'
    return f"<td>{escape(str(value))}</td>"


def _place(report: Report) -> str:
    place = report.place
    rows: list[tuple[object, ...]] = [("Kubernetes", place.kubernetes), ("client", place.client)]
    rows += [("nodes", f"{it.nodes} × {it.gpus} {it.gpu_product}, driver {it.driver}") for it in place.machines]
    rows += [("image", it) for it in place.images]
    return _table(("what", "which"), rows)


def _checks(checks: Sequence[Check]) -> str:
    rows = "".join(
        f'<tr><td class="{it.answer}">{it.answer}</td><td>{escape(it.name)}</td><td>{escape(it.says)}</td></tr>'
        for it in checks
    )
    return f"<table><tr><th></th><th>check</th><th>finding</th></tr>{rows}</table>"


def _ladder(ladder: Ladder) -> str:
    head = (
        "clients", "failed", "calls", "output tokens/s", "all tokens/s", "TTFT ms p50", "p90", "p99", "ITL ms p50", "p90", "p99",
        "TPOT ms p50", "p90", "p99",
    )  # fmt: skip
    rows = [
        (
            it.concurrency,
            counted(it.errors) or 0,
            it.calls,
            it.output_tokens_per_s,
            it.total_tokens_per_s,
            *_ms(it.ttft_s),
            *_ms(it.itl_s),
            *_ms(it.tpot_s),
        )
        for it in ladder.steps
    ]
    computed = ladder.computed_decode_tokens_per_s
    beside = "" if computed is None else f" Computed for one engine at its knee: {computed:,.0f} output tokens/s."
    profile = f", {escape(ladder.profile)}" if ladder.profile else ""
    return (
        f"<p><b>{escape(ladder.model)}</b>{profile}: prompts of about {ladder.prompt_words} tokens,"
        f" {ladder.output_tokens} output tokens, closed loops.{beside}</p>{_table(head, rows)}"
    )


def _ms(it: Percentiles | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if it is None else (it.p50 * 1e3, it.p90 * 1e3, it.p99 * 1e3)


def _disruptions(found: Sequence[Disruption]) -> str:
    head = ("what", "engines", "streams open", "failed", "later calls", "failed", "whole again after s")
    rows = (
        (
            it.kind,
            it.engines_ready,
            it.open_then,
            counted(it.failed) or 0,
            it.later_calls,
            it.later_failed,
            it.whole_again_s,
        )
        for it in found
    )
    return _table(head, rows)
