"""What cannot be run is refused in one sentence, with exit code 1, before anything is sent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import report
from loadtest.__main__ import main
from tests.loadtest.running import ROOT
from tests.scripted_engine import MODEL, ScriptedEngine


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence that a command is refused with."""
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1, said
    return said.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("run", "--rate", "0"), "rate"),
        (("run", "--rate", "nan"), "rate"),
        (("run", "--rate", "fast"), "rate"),
        (("run", "--share", "95"), "share"),
        (("run", "--workers", "0"), "workers"),
        (("run", "--shape", "square"), "shape"),
        (("run", "--mix", "chat=0"), "mix"),
        (("run", "--url", "localhost:8080"), "http://"),
        (("run", "--bind", "5557"), "HOST:PORT"),
        (("run", "--rat", "1"), "rat"),
        (("run", "--key-file", "/nonexistent/key"), "--key-file"),
        (("worker", "--master", "here"), "HOST:PORT"),
        (("report", "/nonexistent/report.json"), "cannot be read"),
        ((), "command"),
    ],
)
def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], word: str) -> None:
    assert word in refusal(capsys, *arguments)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 99}'])
def test_what_is_no_report_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    (tmp_path / report.JSON).write_text(text)
    assert "no report" in refusal(capsys, "report", str(tmp_path / report.JSON))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--rate", "1", "--model", "gpt-99"), MODEL),
        (("--rate", "1", "--mix", "embedding=1"), "--embedding-model"),
        (("--rate", "1", "--mix", "embedding=1", "--embedding-model", "none"), MODEL),
        ((), "--rate"),
        (("--shape", "replay"), "--trace"),
        (("--shape", "replay", "--trace", "missing.csv"), "missing.csv"),
    ],
)
async def test_what_the_api_or_the_plan_lacks_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    """Models are looked up, and the whole run is planned, before the first request."""
    (tmp_path / "key").write_text("any")
    async with ScriptedEngine() as engine:
        line = ("run", "--url", engine.url, "--key-file", str(tmp_path / "key"), *arguments)
        assert word in await asyncio.to_thread(refusal, capsys, *line)
        assert engine.received == []


def test_an_address_where_nobody_answers_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("any")
    line = ("run", "--url", "http://127.0.0.1:9", "--key-file", str(tmp_path / "key"), "--rate", "1")
    assert "No OpenAI-compatible API" in refusal(capsys, *line)


def test_a_stack_is_started_on_this_machine_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = ("run", "--url", "http://127.0.0.2:9", "--serve", MODEL, "--rate", "1")
    assert "127.0.0.1 only" in refusal(capsys, *line)


def test_planning_and_reporting_patch_no_sockets() -> None:
    """Locust is imported by processes that send load, and by nothing else: it patches the sockets of whoever imports it."""
    code = "import sys; from loadtest import __main__, report; print('gevent' in sys.modules, 'locust' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
