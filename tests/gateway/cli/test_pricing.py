"""`serving prices`, as typed, on a real database."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from serving.errors import Refusal
from serving.gateway.cli import pricing
from tests.gateway.places import Place


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store that the commands find by the environment."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    return place


def run(*arguments: str) -> str:
    cli = typer.Typer()
    cli.add_typer(pricing.prices, name="prices")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_prices_are_set_listed_and_removed(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a million tokens, in the currency of the settings; cached prompt tokens cost what others do, unless it is said."""
    monkeypatch.setenv("SERVING_GATEWAY__CURRENCY", "EUR")
    assert "within a second" in run("prices", "set", "m", "--prompt", "0.15", "--completion", "0.6")
    run("prices", "set", "dear", "--prompt", "3", "--cached-prompt", "0.30", "--completion", "15")
    assert [line.split() for line in run("prices", "list").splitlines()] == [
        ["MODEL", "CURRENCY", "PROMPT", "CACHED", "COMPLETION"],
        ["dear", "EUR", "3", "0.3", "15"],
        ["m", "EUR", "0.15", "0.15", "0.6"],
    ]
    run("prices", "remove", "dear")
    assert json.loads(run("prices", "list", "--json")) == [
        {"model": "m", "currency": "EUR", "prompt": "0.15", "cached_prompt": "0.15", "completion": "0.6"}
    ]


@pytest.mark.parametrize("amount", ["a lot", "-1", "0.0000001", "20000", "nan"])
def test_what_is_no_price_is_refused_in_a_sentence(here: Place, amount: str) -> None:
    """Nothing is set then."""
    with pytest.raises(Refusal, match="is no price"):
        run("prices", "set", "m", "--prompt", "1", "--completion", amount)
    with pytest.raises(Refusal, match="There is no price of 'm'"):
        run("prices", "remove", "m")
