"""`serving usage` and `serving ledger`, as typed, on a real database."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from sqlalchemy import insert, select
from typer.testing import CliRunner

from serving import cli
from serving.errors import Refusal
from serving.gateway.cli import accounting
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, Outcome, Usage
from serving.gateway.store.tables import end_users, tenants
from tests.gateway.calls import open_call
from tests.gateway.places import Place

#: 2026-11-22 12:00 UTC.
NOON = 1_795_348_800.0
EXACT, ESTIMATED = Usage(10, 5, 2, 1), Usage(100, 50, estimated_by="bytes")


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store that the commands find by the environment."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    return place


#: The operator's page on all this, and the commands that it shows; engines are asked in test_reconciliation.py and tests/long.
_PAGE = (Path(__file__).parents[3] / "deploy" / "README.md").read_text()
_SECTION = _PAGE.partition("## Bills, and the people behind calls")[2].partition("\n## ")[0]
SHOWN = [it for it in re.findall(r"`(serving [^`]+)`", _SECTION) if it != "serving ledger check"]


@pytest.mark.parametrize("line", SHOWN)
def test_the_operators_page_shows_commands_that_work(billed: Place, line: str) -> None:
    """As they stand there."""
    with billed.open() as store, store.begin() as connection:
        tenant = connection.scalar(select(tenants.c.id)) or ""
        person = {"ref": "u1", "tenant_id": tenant, "subject": "ada@example.com", "created_at": 1.5, "stopgap": ""}
        connection.execute(insert(end_users), [person])
    done = CliRunner().invoke(cli.app, shlex.split(line)[1:], catch_exceptions=False)
    assert done.exit_code == 0 and done.stdout, done.output


def test_the_operators_page_shows_each_of_them() -> None:
    """Prices, sums, a bill, calls and people."""
    assert {tuple(line.split()[1:3]) for line in SHOWN} >= {
        *(("prices", "set"), ("usage", "--by"), ("usage", "--format")),
        *(("ledger", "export"), ("users", "list"), ("users", "erase")),
    }


def run(*arguments: str) -> str:
    """What the command prints; its Refusal is raised here."""
    commands = typer.Typer()
    commands.command("usage")(accounting.usage)
    commands.add_typer(accounting.ledger, name="ledger")
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def table(*arguments: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run(*arguments))))


def settle(ledger: Ledger, caller: Caller, model: str, usage: Usage, price_micros: int | None = None) -> None:
    with open_call(ledger, f"{model}-{id(usage)}", caller=caller, model=model) as call:
        call.usage, call.outcome, call.status, call.price_micros = usage, Outcome.OK, 200, price_micros


@pytest.fixture
def billed(here: Place) -> Iterator[Place]:
    """Calls of acme's at noon, exact, unpriced and estimated ones, one of a tenant that is gone, and one that runs."""
    with here.open() as store:
        registry = Registry(store, Keyring.open(store), lambda: NOON)
        acme = Caller(registry.create_tenant("acme").id, "acme", "k1", user_ref="u1")
        with Ledger(store, clock=lambda: NOON) as ledger:
            settle(ledger, acme, "m1", EXACT, 1_500_000)
            settle(ledger, acme, "m1", Usage(20, 5))
            settle(ledger, acme, "m1", ESTIMATED, 7)
            settle(ledger, Caller("unknown-id", "gone", "k2"), "m2", Usage(7, 7))
            with open_call(ledger, "running", caller=acme, model="m1"):
                ledger.flush()
                yield here


def test_usage_keeps_exact_and_estimated_tokens_apart(billed: Place) -> None:
    """Sums by tenant, model and day; estimates and open calls are never added to what the engine said."""
    by_tenant = {row["group"]: row for row in json.loads(run("usage", "--json"))}
    assert by_tenant["acme"]["exact"] == {
        "requests": 2,
        "prompt_tokens": 30,
        "completion_tokens": 10,
        "cached_prompt_tokens": 2,
        "reasoning_tokens": 1,
        "price_micros": 1_500_000,
    }
    assert by_tenant["acme"]["estimated"]["prompt_tokens"] == 100
    assert by_tenant["acme"]["open_requests"] == 1
    assert by_tenant["unknown-id"]["exact"]["prompt_tokens"] == 7
    assert [line.split() for line in run("usage", "--by", "model").splitlines()[1:]] == [
        ["m1", "2", "30", "2", "10", "1", "1.5", "1", "100", "50", "0.000007", "1"],
        ["m2", "1", "7", "0", "7", "0", "0", "0", "0", "0", "0", "0"],
    ]
    assert [row["group"] for row in json.loads(run("usage", "--by", "day", "--json"))] == ["2026-11-22"]
    assert [row["group"] for row in json.loads(run("usage", "--tenant", "acme", "--by", "key", "--json"))] == ["k1"]


def test_usage_can_be_of_anything_that_a_call_has(billed: Place) -> None:
    """Each option leaves the calls of others out."""
    for option, value in (("--key", "k2"), ("--model", "m2")):
        assert [row["group"] for row in json.loads(run("usage", option, value, "--json"))] == ["unknown-id"]
    assert [row["group"] for row in json.loads(run("usage", "--user", "u1", "--by", "user", "--json"))] == ["u1"]
    assert json.loads(run("usage", "--since", "2026-11-22T12:00:01Z", "--json")) == []
    assert json.loads(run("usage", "--until", "2026-11-22T12:00:00Z", "--json")) == []
    assert len(json.loads(run("usage", "--since", "2026-11-22T12:00:00Z", "--until", "2026-11-23", "--json"))) == 2


def test_sums_are_a_table_for_spreadsheets(billed: Place) -> None:
    """CSV with a line a group; money in the currency that the settings name."""
    acme, gone = table("usage", "--format", "csv")
    assert (acme["tenant"], acme["requests"], acme["price"], acme["currency"]) == ("acme", "2", "1.5", "USD")
    assert (acme["estimated_requests"], acme["estimated_price"], acme["open_requests"]) == ("1", "0.000007", "1")
    assert gone["tenant"] == "unknown-id"


def test_a_bill_has_the_columns_of_focus(billed: Place) -> None:
    """Charge-back: lines that were said by engines and lines that were estimated, open calls in none."""
    lines = table("usage", "--format", "focus", "--provider", "ML platform")
    said = [(it["SubAccountName"], it["x_TokensAre"], it["ConsumedQuantity"], it["BilledCost"]) for it in lines]
    assert sorted(said) == [
        ("acme", "estimated", "150", "0.000007"),
        ("acme", "exact", "40", "1.5"),
        ("unknown-id", "exact", "14", "0"),
    ]
    assert {it["ProviderName"] for it in lines} == {"ML platform"}


def test_every_call_of_a_period_is_exported(billed: Place) -> None:
    """As CSV or JSON lines, with the same content; the open one included."""
    calls = table("ledger", "export", "--tenant", "acme", "--since", "2026-11-22")
    lines = [json.loads(line) for line in run("ledger", "export", "--tenant", "acme", "--format", "jsonl").splitlines()]
    assert len(calls) == len(lines) == 4
    assert {it["started_at"] for it in calls} == {"2026-11-22T12:00:00.000Z"} == {it["started_at"] for it in lines}
    assert [it["request_id"] for it in lines if it["outcome"] == "open"] == ["running"]
    assert [it["price_micros"] for it in calls if it["estimated_by"]] == ["7"]
    assert run("ledger", "export", "--until", "2026-11-22").splitlines()[1:] == []


def test_single_calls_are_no_table_of_sums(billed: Place) -> None:
    """What cannot be printed so is refused, with what to use instead; a moment that is none is refused too."""
    assert len(run("usage", "--calls", "10").splitlines()) == 6
    assert len(json.loads(run("usage", "--calls", "2", "--json"))) == 2
    with pytest.raises(Refusal, match="`serving ledger export` writes them as CSV"):
        run("usage", "--calls", "10", "--format", "csv")


@pytest.mark.parametrize("since", ["0001-01-01T00:00+14:00", "9999-12-31T23:00-14:00", "yesterday"])
def test_usage_since_a_moment_that_is_none_is_refused(here: Place, since: str) -> None:
    """The first and the last day that there are end at UTC's."""
    with pytest.raises(Refusal, match="is not an ISO date or time"):
        run("usage", "--since", since)
