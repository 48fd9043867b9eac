"""`serving apply`, as typed, on a real database: a file, and what it makes of tenants, keys and prices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.config import load
from serving.errors import Refusal
from serving.gateway.cli import applying, commands, pricing
from serving.gateway.cli.opening import opened_store, registered
from serving.gateway.identity import changes
from serving.gateway.identity.keys import id_of, mint
from serving.gateway.nouns import Role
from serving.gateway.policies import Policy
from tests.gateway.places import Place

FILE = """
prices:
  m: {prompt: 0.15, completion: 0.6}
policies:
  small: {tokens_per_day: 5}
tenants:
  acme:
    policy: small
    keys:
      ci: {key_file: ci.key, role: tenant_admin}
  other:
    disabled: true
"""


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store that the commands find by the environment, and a file beside a key."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    (place.home / "ci.key").write_text(mint())
    (place.home / "tenants.yaml").write_text(FILE)
    return place


def run(*arguments: str, code: int = 0) -> str:
    """What the command prints; its Refusal is raised here."""
    cli = typer.Typer()
    cli.add_typer(commands.tenants, name="tenants")
    cli.add_typer(commands.keys, name="keys")
    cli.add_typer(pricing.prices, name="prices")
    cli.command("apply")(applying.apply)
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def apply(here: Place, text: str | None = None, *options: str, code: int = 0) -> list[str]:
    """The lines that it prints, of this text or of the file as it is."""
    path = here.home / "tenants.yaml"
    if text is not None:
        path.write_text(text)
    return run("apply", str(path), *options, code=code).splitlines()


def state() -> object:
    with registered(load()) as registry:
        return registry.tenants(), registry.keys(None)


def revision() -> int:
    with opened_store(load()) as store:
        return changes.since(store, None).revision


def test_a_file_is_made_true_and_then_changes_nothing(here: Place) -> None:
    """A plan says what would change and changes nothing; the second time there is nothing to do, and no gateway is told of
    anything."""
    key_id = id_of((here.home / "ci.key").read_text())
    lines = [
        "+ price of m: 0.15/0.15/0.6",
        "+ tenant acme: policy.tokens_per_day - → 5",
        f"+ key ci ({key_id}) of acme: role - → tenant_admin",
        "+ tenant other: disabled - → True",
    ]
    assert apply(here, None, "--plan") == [*lines, "4 to change."]
    assert state() == ([], [])
    apply(here, None, "--plan", "--exit-code", code=applying.TO_DO)
    assert apply(here) == [*lines, "4 changed."]
    there, told = state(), revision()
    assert apply(here) == ["0 changed."]
    assert apply(here, None, "--plan", "--exit-code") == ["0 to change."]
    assert (state(), revision()) == (there, told)


def test_what_differs_is_changed_and_what_is_not_named_stays(here: Place) -> None:
    """A line for each thing, with every field that becomes another."""
    apply(here)
    run("tenants", "create", "third")
    key_id = id_of((here.home / "ci.key").read_text())
    text = FILE.replace("tokens_per_day: 5", "weight: 2").replace("tenant_admin", "member").replace("0.6", "0.7")
    assert apply(here, text.replace("disabled: true", "disabled: false")) == [
        "~ price of m: 0.15/0.15/0.6 → 0.15/0.15/0.7",
        "~ tenant acme: policy.weight - → 2.0, policy.tokens_per_day 5 → -",
        f"~ key ci ({key_id}) of acme: role tenant_admin → member",
        "~ tenant other: disabled True → False",
        "4 changed.",
    ]
    assert apply(here, "tenants: {acme: {}, third: {}}") == ["0 changed."]
    with registered(load()) as registry:
        assert registry.tenant("acme").policy == Policy(weight=2)


def test_all_of_it_happens_or_nothing(here: Place) -> None:
    """What cannot be done at its end leaves nothing of what went before."""
    with pytest.raises(Refusal, match="Of last, no active key is called 'ci': name its key_file"):
        apply(here, FILE + "  last: {keys: {ci: {}}}\n")
    assert state() == ([], [])
    assert json.loads(run("prices", "list", "--json")) == []


def test_keys_are_meant_by_their_file_else_by_their_name(here: Place) -> None:
    """A new file is a new key; the one before stays until it is pruned. No secret is printed."""
    apply(here)
    old = (here.home / "ci.key").read_text()
    (here.home / "ci.key").write_text(new := mint())
    said = apply(here, None, "--prune")
    assert said == [
        f"+ key ci ({id_of(new)}) of acme: role - → tenant_admin",
        f"- key ci ({id_of(old)}) of acme: revoked",
        "2 changed.",
    ]
    assert new not in "\n".join(said)
    assert apply(here, "tenants: {acme: {keys: {ci: {policy: {open_requests: 1}}}}}") == [
        f"~ key ci ({id_of(new)}) of acme: policy.open_requests - → 1",
        "1 changed.",
    ]
    run("keys", "create", "acme", "--name", "ci")
    with pytest.raises(Refusal, match="Of acme, 2 active keys are called 'ci'"):
        apply(here, "tenants: {acme: {keys: {ci: {policy: {}}}}}")


def test_a_key_that_was_revoked_stays_so(here: Place) -> None:
    """What was revoked in an emergency is not given back by the next delivery, and does not break it."""
    apply(here)
    key_id = str(id_of((here.home / "ci.key").read_text()))
    run("keys", "revoke", key_id)
    assert apply(here) == [f"! key ci ({key_id}) of acme is revoked and stays so", "0 changed."]


def test_pruning_disables_and_locks_nobody_out(here: Place) -> None:
    """Tenants that are not named, keys of lists that do not name them, prices: but no administrator of the platform."""
    apply(here)
    run("tenants", "create", "gone")
    run("tenants", "create", "platform")
    run("keys", "create", "platform", "--role", "platform_admin")
    run("keys", "create", "acme", "--role", "platform_admin")
    run("keys", "create", "acme", "--name", "left")
    run("prices", "set", "old", "--prompt", "1", "--completion", "1")
    lines = apply(here, None, "--prune")
    assert [line.split(" (")[0] for line in lines] == [
        "- price of old: removed",
        "- key left",
        "- tenant gone: disabled",
        "3 changed.",
    ]
    assert apply(here, None, "--prune") == ["0 changed."]
    with registered(load()) as registry:
        assert [key.state(0) for key in registry.keys(None) if key.role is Role.PLATFORM_ADMIN] == ["active"] * 2
        assert registry.tenant("gone").disabled_at is not None


def test_a_key_of_another_tenant_is_not_taken(here: Place) -> None:
    """A file that moved is a mistake, not a move."""
    apply(here)
    with pytest.raises(Refusal, match="is one of acme already"):
        apply(here, "tenants: {other: {keys: {ci: {key_file: ci.key}}}}")


def test_the_schema_is_printed_for_editors(tmp_path: Path) -> None:
    """It needs no file and no database."""
    assert "$defs" in json.loads(run("apply", "--schema"))
    with pytest.raises(Refusal, match="Name the file to apply"):
        run("apply")
