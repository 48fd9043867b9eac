"""The operator's commands for tenants and keys, as typed, on a real database."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.config import Settings, load
from serving.errors import Refusal
from serving.gateway.cli import commands
from serving.gateway.cli.opening import first_start
from serving.gateway.identity.keys import id_of
from tests.gateway.places import Place
from tests.gateway.processes import at_once


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store that the commands find by the environment."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One machine with SQLite, where a first start makes its key."""
    monkeypatch.setenv("SERVING_HOME", str(tmp_path))
    return tmp_path


def start(home: Path) -> str:
    first_start(Settings(home=home))
    return (home / "admin.key").read_text()


def first_key() -> str:
    """What a start of the gateway leaves in admin.key."""
    settings = load()
    first_start(settings)
    return (settings.home / "admin.key").read_text().strip()


def run(*arguments: str) -> str:
    """What the command prints; its Refusal is raised here."""
    cli = typer.Typer()
    cli.add_typer(commands.tenants, name="tenants")
    cli.add_typer(commands.keys, name="keys")
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tenants_are_created_listed_renamed_and_disabled(here: Place) -> None:
    """A tenant's life, seen in `tenants list`."""
    run("tenants", "create", "acme")
    run("tenants", "update", "acme", "--disable", "--rename", "acme-labs")

    listed = json.loads(run("tenants", "list", "--json"))
    table = run("tenants", "list").splitlines()

    assert [(tenant["name"], tenant["disabled_at"] is None) for tenant in listed] == [("acme-labs", False)]
    assert table[0].split() == ["NAME", "ID", "CREATED", "STATE"]
    assert table[1].endswith("disabled")


def test_a_tenant_is_enabled_again(here: Place) -> None:
    """--enable undoes --disable."""
    run("tenants", "create", "acme")
    run("tenants", "update", "acme", "--disable")

    assert "is enabled" in run("tenants", "update", "acme", "--enable")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tenants", "create", "acme"), "A tenant called 'acme' exists already."),
        (("tenants", "create", "a b"), "A tenant's name is"),
        (("tenants", "update", "acme"), "Say what to change"),
        (("tenants", "update", "nobody", "--disable"), "There is no tenant called 'nobody'"),
        (("tenants", "update", "acme", "--rename", "other"), "A tenant called 'other' exists already."),
        (("keys", "create", "nobody"), "There is no tenant called 'nobody'"),
        (("keys", "list", "nobody"), "There is no tenant called 'nobody'"),
        (("keys", "revoke", "nokey"), "There is no key 'nokey'"),
        (("keys", "rotate", "nokey"), "There is no key 'nokey'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(here: Place, arguments: tuple[str, ...], sentence: str) -> None:
    """Each impossible wish ends in a Refusal that names it."""
    run("tenants", "create", "acme")
    run("tenants", "create", "other")

    with pytest.raises(Refusal, match=sentence):
        run(*arguments)


def test_quiet_prints_the_key_alone_and_lists_never_show_it(here: Place) -> None:
    """`KEY=$(serving keys create acme --quiet)` works, and the secret is seen that once."""
    run("tenants", "create", "acme")
    printed = run("keys", "create", "acme", "--name", "ci", "--quiet")
    key = printed.removesuffix("\n")

    assert id_of(key)
    for listing in (run("keys", "list"), run("keys", "list", "acme", "--json")):
        assert key[3:13] in listing
        assert key[-43:] not in listing


def test_many_keys_are_printed_one_a_line(here: Place) -> None:
    """`serving keys create acme --count 3 --quiet > keys`, and all of them are listed with what they are allowed."""
    run("tenants", "create", "acme")
    made = run("keys", "create", "acme", "--count", "3", "--allow", "ignore_eos", "--quiet").splitlines()
    listed = json.loads(run("keys", "list", "--json"))
    assert {id_of(key) for key in made} == {key["id"] for key in listed} and len(made) == 3
    assert [key["rights"] for key in listed] == [["ignore_eos"]] * 3
    assert [line.split()[4] for line in run("keys", "list").splitlines()] == ["ALLOWED", *["ignore_eos"] * 3]


def test_a_key_has_a_role_and_a_last_use(here: Place) -> None:
    """Both are listed; a key that was never used has none."""
    run("tenants", "create", "acme")
    run("keys", "create", "acme", "--role", "tenant_admin")
    (listed,) = json.loads(run("keys", "list", "--json"))
    assert listed["role"] == "tenant_admin" and listed["last_used_at"] is None
    here.execute("update keys set last_used_at = '2026-11-22 10:15:00'")
    header, line = run("keys", "list").splitlines()
    assert line[header.index("ROLE") :].startswith("tenant_admin ")
    assert line[header.index("LAST USED") :].startswith("2026-11-22 10:15 ")


def test_a_key_can_have_an_end(here: Place) -> None:
    """--expires-days counts from now."""
    run("tenants", "create", "acme")
    run("keys", "create", "acme", "--expires-days", "30")

    (listed,) = json.loads(run("keys", "list", "--json"))
    assert listed["expires_at"] - listed["created_at"] == pytest.approx(30 * 86_400)


def test_rotation_gives_a_like_key_and_ends_the_old_one_after_the_grace(here: Place) -> None:
    """The new key has the old one's tenant and name; the old one works until the grace is over."""
    run("tenants", "create", "acme")
    old = run("keys", "create", "acme", "--name", "ci", "--quiet").strip()
    new = run("keys", "rotate", old[3:13], "--grace-hours", "2", "--quiet").strip()

    listed = {key["id"]: key for key in json.loads(run("keys", "list", "--json"))}
    assert listed[old[3:13]]["expires_at"] == pytest.approx(time.time() + 7200, abs=60)
    assert (listed[new[3:13]]["name"], listed[new[3:13]]["expires_at"]) == ("ci", None)


def test_rotation_passes_a_lifetime_on_and_never_lengthens_the_old_key(here: Place) -> None:
    """A key that was to live one day is followed by one that lives one day, and ends no later than planned."""
    run("tenants", "create", "acme")
    old = run("keys", "create", "acme", "--expires-days", "1", "--quiet").strip()
    new = run("keys", "rotate", old[3:13], "--grace-hours", "1000", "--quiet").strip()

    listed = {key["id"]: key for key in json.loads(run("keys", "list", "--json"))}
    for key in (old, new):
        assert listed[key[3:13]]["expires_at"] == pytest.approx(time.time() + 86_400, abs=60)


def test_a_revoked_key_is_listed_as_such_and_cannot_be_rotated(here: Place) -> None:
    """Revocation is for good."""
    run("tenants", "create", "acme")
    key = run("keys", "create", "acme", "--quiet").strip()
    assert "within two seconds" in run("keys", "revoke", key[3:13])

    assert run("keys", "list").splitlines()[1].endswith("revoked")
    with pytest.raises(Refusal, match="is revoked"):
        run("keys", "rotate", key[3:13])


def test_the_first_key_is_the_same_for_every_start(home: Path) -> None:
    """Processes that start at once on an empty home share one tenant and one key, kept in admin.key (0600)."""
    (printed,) = set(at_once(4, start, home))

    file = home / "admin.key"
    assert file.read_text() == printed
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first_key() == printed.strip()
    (key,) = json.loads(run("keys", "list", "--json"))
    assert (key["id"], key["tenant"], key["name"]) == (id_of(printed.strip()), "default", "admin")


def test_a_fresh_database_learns_the_first_key_again(home: Path) -> None:
    """The file decides: a deleted database does not change the key people have pasted."""
    key = first_key()
    (home / "serving.db").unlink()

    assert first_key() == key
    assert len(json.loads(run("keys", "list", "--json"))) == 1


def test_a_revoked_first_key_is_replaced_at_the_next_start(home: Path) -> None:
    """What the banner prints works: a key that has ended is not offered again."""
    key = first_key()
    run("keys", "revoke", key[3:13])

    fresh = first_key()
    assert fresh != key
    assert (home / "admin.key").read_text().strip() == fresh


def test_a_database_in_use_elsewhere_is_refused_in_a_sentence(here: Place) -> None:
    """An outage during a command is a Refusal, not a traceback."""
    run("tenants", "create", "acme")
    with here.writers_wait(), pytest.raises(Refusal, match=r"database is locked|due to statement timeout"):
        run("tenants", "create", "other")


@pytest.mark.parametrize("name", ["x" * 65, "ci\x1b[2J", "two\nlines"])
def test_a_keys_name_can_be_printed(here: Place, name: str) -> None:
    """It stands in tables and on terminals; what would be cut or would draw there is refused."""
    run("tenants", "create", "acme")

    with pytest.raises(Refusal, match="at most 64 printable characters"):
        run("keys", "create", "acme", "--name", name)
    assert json.loads(run("keys", "list", "--json")) == []


@pytest.mark.parametrize("days", ["1e9", "inf"])
def test_no_key_outlives_the_calendar(here: Place, days: str) -> None:
    """A date that no database can hold is refused before anything is written."""
    run("tenants", "create", "acme")
    key = run("keys", "create", "acme", "--quiet").strip()

    with pytest.raises(Refusal, match="0 to 36,500 days"):
        run("keys", "create", "acme", "--expires-days", days)
    with pytest.raises(Refusal, match="0 to 36,500 days"):
        run("keys", "rotate", str(id_of(key)), "--grace-hours", days)
    assert [known["expires_at"] for known in json.loads(run("keys", "list", "--json"))] == [None]


@pytest.mark.parametrize("command", [("create", "acme"), ("rotate", "ID")])
def test_a_key_that_could_not_be_shown_is_not_made(here: Place, command: tuple[str, ...]) -> None:
    """No one could use or revoke it; a key that was to be rotated stays as it was."""
    run("tenants", "create", "acme")
    first = str(id_of(run("keys", "create", "acme", "--quiet").strip()))
    arguments = [first if it == "ID" else it for it in command]
    with Path("/dev/full").open("w") as full:
        whole = [sys.executable, "-m", "serving", "keys", *arguments]
        done = subprocess.run(whole, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 1 and done.stderr.startswith("The disk is full")
    (left,) = json.loads(run("keys", "list", "--json"))
    assert (left["id"], left["expires_at"], left["revoked_at"]) == (first, None, None)
