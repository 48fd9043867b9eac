"""The benchmark beside other proxies: it runs, and what it says of a proxy is that proxy's own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from loadtest.overhead import calls, parts, table, upstream
from loadtest.overhead.__main__ import main
from loadtest.overhead.parts import PARTS, SHORT, Column, Part
from loadtest.overhead.processes import Tree
from loadtest.overhead.proxies import Stand
from serving.errors import Refusal
from tests.loadtest.answering import answering
from tests.loadtest.running import ROOT


def test_the_short_form_runs_and_prints_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Before a real HAProxy and the gateway; the figures of so few calls mean nothing."""
    proxies = ["direct", "haproxy", "haproxy-no-delay", "gateway"]
    assert main(("--short", "--rounds", "1", "--parts", ",".join(PARTS), "--proxies", ",".join(proxies))) == 0
    said = capsys.readouterr().out
    assert all(f"* {name}: " in said for name in proxies)
    for part in PARTS.values():
        for column in part.columns.values():
            (shown,) = [it for it in said.split("\n\n") if it.startswith(f"| {part.title} | {column.name} |")]
            assert "\n| gateway | " in shown
    assert (said.count("| × haproxy |"), said.count("| × haproxy-no-delay |")) == (7, 6)


def test_two_checkouts_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other one's gateway runs its own code, and each round has the ratio to it."""
    other, ran = tmp_path / "serving", tmp_path / "ran"
    other.mkdir()
    for it in (ROOT / "serving").iterdir():
        if it.name != "__main__.py":
            (other / it.name).symlink_to(it)
    (other / "__main__.py").write_text(f"from serving import cli\nopen({str(ran)!r}, 'w')\ncli.main()\n")
    asked = ("--short", "--rounds", "1", "--parts", "plain", "--proxies", "gateway", "--before")
    assert main((*asked, str(tmp_path))) == 0 and ran.exists()
    said = capsys.readouterr().out
    assert "* before: the gateway of the other checkout" in said
    assert "| µs CPU a request | × before |" in said and "\n| before | " in said
    assert main((*asked, str(tmp_path / "none"))) == 1
    assert capsys.readouterr().err.endswith("/none is no checkout of this project.\n")


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names of those that there are."""
    with pytest.raises(SystemExit):
        main(("--parts", "speed"))
    assert "speed is none of chunks, plain, throughput, at-once, beside, open" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which the machine was slower moves both proxies, and not their ratio."""
    part = Part("Title", parts.chunks, {"us": Column("µs"), "n": Column("count", has_ratio=False)})
    measured = {
        "haproxy": [{"us": 10.0, "n": 1.0}, {"us": 30.0, "n": 1.0}, {"us": 12.0, "n": 1.0}],
        "gateway": [{"us": 20.0, "n": 2.0}, {"us": 60.0, "n": 2.0}, {"us": 24.0, "n": 2.0}],
    }
    with_ratio = ["| Title | µs | × haproxy |", "|---|---|---|"]
    assert list(table.lines(part, measured)) == [
        "",
        *with_ratio,
        "| haproxy | 12.0 (10.0 to 30.0) | 1.00 (1.00 to 1.00) |",
        "| gateway | 24.0 (20.0 to 60.0) | 2.00 (2.00 to 2.00) |",
        "",
        "| Title | count |",
        "|---|---|",
        "| haproxy | 1.00 (1.00 to 1.00) |",
        "| gateway | 2.00 (2.00 to 2.00) |",
    ]


def test_what_counts_beside_open_streams_is_the_difference() -> None:
    """The upstream's own time, and the client's, are in every proxy's figure of that round."""
    measured = {"direct": [{"p99_ms": 5.0}, {"p99_ms": 50.0}], "gateway": [{"p99_ms": 15.0}, {"p99_ms": 62.0}]}
    lines = list(table.lines(PARTS["beside"], measured))
    assert lines[1].endswith("| more than direct |")
    assert lines[-1] == "| gateway | 38.5 (15.0 to 62.0) | 11.0 (10.0 to 12.0) |"


STREAM = [
    upstream.STREAM_HEAD,
    upstream.chunk(0, False, False),
    upstream.chunk(1, True, False),
    upstream.ending(1, False),
]


@pytest.mark.parametrize(
    ("pieces", "is_whole"),
    [
        (STREAM, True),
        (STREAM[:-1], False),
        ([STREAM[0].replace(b"200", b"503"), *STREAM[1:]], False),
        ([], False),
    ],
    ids=["whole", "cut", "refused", "closed"],
)
async def test_a_round_with_a_failed_call_has_no_figure(pieces: list[bytes], is_whole: bool) -> None:
    """Failing is cheap: what is cut, refused or closed would make its proxy look fast."""
    async with answering(pieces, cuts=True) as port:
        assert (await calls.made(port, calls.Streamed(b"GET"))).is_whole is is_whole
        if not is_whole:
            with pytest.raises(Refusal, match="4 of 4 calls were not answered whole"):
                await parts.chunks(Stand("it", port), SHORT)


def test_processor_time_is_the_kernels() -> None:
    """That of every thread, to the nanosecond: a tick of 10 ms would be a tenth of a measurement."""
    before = time.process_time()
    seen = Tree(os.getpid()).cpu_s()
    assert seen >= before > 0
