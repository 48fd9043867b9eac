"""`serving policies`, as typed, on a real database."""

from __future__ import annotations

import json

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from serving.errors import Refusal
from serving.gateway.cli import commands, policing
from serving.gateway.identity.keys import id_of
from serving.gateway.policies import Policy
from tests.gateway.places import Place
from tests.gateway.whole import WHOLE


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store that the commands find by the environment, with one tenant."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    run("tenants", "create", "acme")
    return place


def run(*arguments: str) -> str:
    """What the command prints; its Refusal is raised here."""
    cli = typer.Typer()
    cli.add_typer(commands.tenants, name="tenants")
    cli.add_typer(commands.keys, name="keys")
    cli.add_typer(policing.policies, name="policies")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def options(values: dict[str, object]) -> list[str]:
    """Fields of a policy as options of the command."""
    said: list[str] = []
    for name, value in values.items():
        if name == "models":
            assert isinstance(value, list)
            said += [word for model in value for word in ("--allow-model", model)]
        elif name == "monthly_budget":
            assert isinstance(value, dict)
            said += [word for kind, money in value.items() for word in (f"--{kind}-budget", str(money))]
        elif isinstance(value, bool):
            said.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            said += [f"--{name.replace('_', '-')}", str(value)]
    return said


def policy_of(*who: str) -> Policy:
    return msgspec.json.decode(run("policies", "show", *who, "--json"), type=Policy)


def test_every_field_of_a_policy_can_be_set(here: Place) -> None:
    """Of a tenant and of a key: a policy in which every field of the struct says something is set and shown whole."""
    key = str(id_of(run("keys", "create", "acme", "--quiet").strip()))
    values = json.loads(msgspec.json.encode(WHOLE))
    per_model = values.pop("per_model")
    for who in (["acme"], ["--key", key]):
        run("policies", "set", *who, *options(values))
        for model, limits in per_model.items():
            run("policies", "set", *who, "--model", model, *options(limits))
        assert policy_of(*who) == WHOLE


def test_what_is_not_named_stays(here: Place) -> None:
    """`none` takes one bound away, `clear` those of one model, or all."""
    run("policies", "set", "acme", "--tokens-per-day", "5", "--weight", "2", "--allow-model", "m")
    run("policies", "set", "acme", "--model", "m", "--open-requests", "1")
    run("policies", "set", "acme", "--tokens-per-day", "none", "--all-models")
    assert json.loads(run("policies", "show", "acme", "--json")) == {
        "weight": 2.0,
        "per_model": {"m": {"open_requests": 1}},
    }
    assert run("policies", "show", "acme").splitlines()[1:] == [
        "-      weight           2.0",
        "m      open_requests      1",
    ]
    run("policies", "clear", "acme", "--model", "m")
    assert policy_of("acme") == Policy(weight=2.0)
    run("policies", "clear", "acme")
    assert policy_of("acme") == Policy()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show",), "Name a tenant, or a key with --key ID."),
        (("show", "acme", "--key", "k"), "Name a tenant, or a key with --key ID."),
        (("show", "nobody"), "There is no tenant called 'nobody'"),
        (("set", "acme"), "Say what to set"),
        (("set", "acme", "--tokens-per-day", "-1"), "That is no policy: Expected `int` >= 0"),
        (("set", "acme", "--tokens-per-day", "many"), "That is no policy: Expected `int | null`"),
        (("set", "acme", "--priority", "urgent"), "That is no policy: Invalid enum value 'urgent'"),
        (("set", "acme", "--model", "m", "--weight", "2"), "With --model only limits can be set"),
        (("clear", "--key", "nokey"), "There is no key 'nokey'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(here: Place, arguments: tuple[str, ...], sentence: str) -> None:
    """And nothing changes."""
    with pytest.raises(Refusal) as refused:
        run("policies", *arguments)
    assert sentence in str(refused.value)
    assert policy_of("acme") == Policy()


def test_a_key_is_given_another_name_and_role(here: Place) -> None:
    """What is not named stays."""
    key = str(id_of(run("keys", "create", "acme", "--name", "ci", "--allow", "ignore_eos", "--quiet").strip()))
    run("keys", "update", key, "--role", "tenant_admin")
    run("keys", "update", key, "--allow-nothing")
    (listed,) = json.loads(run("keys", "list", "--json"))
    assert (listed["name"], listed["role"], listed["rights"]) == ("ci", "tenant_admin", [])
    with pytest.raises(Refusal, match="Say what to change"):
        run("keys", "update", key)
