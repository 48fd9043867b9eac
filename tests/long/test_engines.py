"""The benchmark of servers of one model, on real ones; the figures of so few tokens mean nothing."""

from __future__ import annotations

import pytest

from loadtest.engines.__main__ import main

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def test_the_short_form_runs_and_prints_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The bare server, this stack with its gateway and without, and Ray Serve LLM's application, which is installed first."""
    assert main(("--short", "--rounds", "1")) == 0
    said = capsys.readouterr().out
    assert "is not measured" not in said
    for name in ("bare", "engine", "stack", "ray-serve-llm"):
        assert said.count(f"\n| {name} | ") == 3
