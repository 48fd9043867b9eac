"""`serving users`, as typed, on a real database."""

from __future__ import annotations

import json

import pytest
import typer
from sqlalchemy import insert
from typer.testing import CliRunner

from serving.errors import Refusal
from serving.gateway.cli import users
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.store.tables import end_users
from tests.gateway.places import Place


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store with one tenant and two people, that the commands find by the environment."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    with place.open() as store:
        tenant = Registry(store, Keyring.open(store), lambda: 1.5).create_tenant("acme").id
        with store.begin() as connection:
            rows = [{"ref": ref, "tenant_id": tenant, "subject": name, "created_at": 1.8e9} for ref, name in PEOPLE]
            connection.execute(insert(end_users), rows)
    return place


PEOPLE = (("u1", "ann"), ("u2", "ben"))


def run(*arguments: str) -> str:
    cli = typer.Typer()
    cli.add_typer(users.users, name="users")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_people_are_listed_and_erased(here: Place) -> None:
    """With the references by which the ledger knows them; what is left is the reference."""
    assert [line.split() for line in run("users", "list", "acme").splitlines()] == [
        ["REF", "TENANT", "SUBJECT", "FIRST", "SEEN"],
        ["u1", "acme", "ann", "2027-01-15", "08:00"],
        ["u2", "acme", "ben", "2027-01-15", "08:00"],
    ]
    assert "u1 of tenant acme name no one" in run("users", "erase", "acme", "ann")
    assert [it["ref"] for it in json.loads(run("users", "list", "--json"))] == ["u2"]
    with pytest.raises(Refusal, match="has no such user"):
        run("users", "erase", "acme", "ann")


def test_people_come_in_pages(here: Place) -> None:
    """Behind the last reference of the page before; or one alone, by name."""
    (first,) = json.loads(run("users", "list", "--limit", "1", "--json"))
    (second,) = json.loads(run("users", "list", "--limit", "1", "--after", first["ref"], "--json"))
    assert (first["subject"], second["subject"]) == ("ann", "ben")
    assert [it["ref"] for it in json.loads(run("users", "list", "--subject", "ben", "--json"))] == ["u2"]
