"""`serving audit`, as typed, on a real database: what commands leave in it, and what an auditor sees of that."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from serving.config import Settings, StoreSettings
from serving.errors import NotFound, Refusal
from serving.gateway.audit import checkpoints, pruning, reading
from serving.gateway.audit.actors import Actor
from serving.gateway.audit.audit import Audit
from serving.gateway.cli import accounting, auditing, commands, opening, pricing
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of
from serving.gateway.identity.registry import Registry
from serving.gateway.ledger import price_list
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.prices import Price
from serving.gateway.store.store import Store
from serving.gateway.store.tables import end_users, metadata
from tests.gateway.calls import CALLER, record, settle
from tests.gateway.places import Place, PostgresPlace

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store that the commands find by the environment."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    return place


def typed(*arguments: str, stdin: bytes = b"") -> Result:
    cli = typer.Typer()
    for name, group in (
        ("tenants", commands.tenants),
        ("keys", commands.keys),
        ("prices", pricing.prices),
        ("store", commands.store),
        ("audit", auditing.audit),
    ):
        cli.add_typer(group, name=name)
    for name, command in (("usage", accounting.usage), ("backup", commands.backup), ("restore", commands.restore)):
        cli.command(name)(command)
    return CliRunner().invoke(cli, arguments, input=stdin, catch_exceptions=False)


def run(*arguments: str) -> str:
    result = typed(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def events(*kinds: str) -> list[dict[str, Any]]:
    wanted = [word for kind in kinds for word in ("--kind", kind)]
    return [json.loads(line) for line in run("audit", "list", "--json", *wanted).splitlines()]


def test_what_commands_do_is_told(here: Place, tmp_path: Path) -> None:
    """Each act once: what was done to what, by which user of the operating system; reads of usage and audit are acts."""
    run("tenants", "create", "acme")
    key = run("keys", "create", "acme", "--quiet").strip()
    run("keys", "revoke", key[3:13])
    run("prices", "set", "m", "--prompt", "1", "--completion", "2")
    run("prices", "remove", "m")
    run("usage", "--by", "model")
    run("usage", "--calls", "3")
    run("store", "migrate")
    run("backup", str(tmp_path / "backup"))

    done = [it for it in events() if it["kind"] not in ("begin", "end", "checkpoint")]
    assert [it["kind"] for it in done] == [
        "tenant.create",
        "key.create",
        "key.revoke",
        "price.set",
        "price.remove",
        "usage.read",
        "usage.read",
        "store.migrate",
        "store.backup",
        "audit.read",
    ]
    assert {it["by"]["os_user"] for it in done} == {ME}
    assert key not in run("audit", "export") and key[-43:] not in run("audit", "export")
    assert done[4]["details"] == {
        "before": {"prompt_micros": 1_000_000, "cached_prompt_micros": 1_000_000, "completion_micros": 2_000_000}
    }


def test_a_first_start_and_a_restore_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restored store has the restored audit, and the act that brought it."""
    monkeypatch.setenv("SERVING_HOME", str(tmp_path / "first"))
    opening.first_start(Settings(home=tmp_path / "first"))
    assert [it["kind"] for it in events("tenant.create", "key.create")] == ["tenant.create", "key.create"]
    run("backup", str(tmp_path / "backup"))

    monkeypatch.setenv("SERVING_HOME", str(tmp_path / "second"))
    opening.first_start(Settings(home=tmp_path / "second"))
    run("restore", str(tmp_path / "backup"))
    assert events("store.restore")[0]["details"]["rows"]["keys"] == 1
    assert "nothing was changed" in run("audit", "verify")


def test_a_list_can_be_of_one_tenant_and_of_a_time(here: Place) -> None:
    """By the tenant's name; a table for eyes, JSON lines for programs."""
    run("tenants", "create", "acme")
    run("tenants", "create", "other")
    run("keys", "create", "other")
    table = run("audit", "list", "--tenant", "other").splitlines()
    assert [line.split()[2] for line in table[1:]] == ["tenant.create", "key.create", "audit.read"]
    assert table[0].split() == ["AT", "KIND", "BY", "SUBJECT", "DETAILS"]
    assert run("audit", "list", "--until", "2020-01-01", "--json") == ""
    assert len(run("audit", "list", "--limit", "2", "--json").splitlines()) == 2
    with pytest.raises(NotFound):
        run("audit", "list", "--tenant", "nobody")


def test_an_untouched_audit_is_clean(here: Place) -> None:
    """It says how much it saw, since when, and what no checkpoint covers."""
    run("tenants", "create", "acme")
    told = run("audit", "verify").splitlines()
    assert told[0].startswith("4 entries in 1 chains since ") and "1 checkpoints: nothing was changed" in told[0]
    assert len(told) == 1
    assert json.loads(run("audit", "verify", "--json"))["findings"] == []


def test_a_changed_entry_is_found(here: Place) -> None:
    """In a sentence with its chain, its number and its time, and exit code 1."""
    run("tenants", "create", "acme")
    here.execute("update audit set body = replace(body, 'acme', 'evil') where number = 2")
    result = typed("audit", "verify")
    assert result.exit_code == 1
    assert "number 2 of 20" in result.stdout and "it was changed after it was written" in result.stdout


@pytest.mark.parametrize("cut", ["number > 1", "number > 0"])
def test_a_cut_chain_is_found_with_checkpoints_that_were_kept(here: Place, tmp_path: Path, cut: str) -> None:
    """From a file, and from standard input; without them nothing tells the cut from a killed process."""
    run("tenants", "create", "acme")
    kept = tmp_path / "checkpoints"
    run("audit", "checkpoint", "--out", str(kept))
    run("audit", "verify", "--checkpoints", str(kept))
    is_its = "writer = (select writer from audit where kind = 'tenant.create')"
    here.execute(f"delete from audit where {cut} and {is_its}")  # noqa: S608 Our own words.

    result = typed("audit", "verify", "--checkpoints", str(kept))
    assert result.exit_code == 1 and "missing" in result.stdout
    assert typed("audit", "verify", "--checkpoints", "-", stdin=kept.read_bytes()).exit_code == 1
    assert typed("audit", "verify").exit_code == 0


def test_an_auditor_needs_no_database(here: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries, the public key and the checkpoints: three files."""
    run("tenants", "create", "acme")
    files = {name: str(tmp_path / name) for name in ("entries", "key", "checkpoints")}
    run("audit", "checkpoint", "--out", files["checkpoints"])
    run("audit", "export", "--out", files["entries"])
    Path(files["key"]).write_text(run("audit", "key"))
    # The database is elsewhere.
    monkeypatch.setenv("SERVING_HOME", str(tmp_path / "auditor"))
    monkeypatch.delenv("SERVING_STORE__URL_FILE", raising=False)
    verify = ("audit", "verify", "--entries", files["entries"], "--public-key", files["key"])
    assert "nothing was changed" in run(*verify, "--checkpoints", files["checkpoints"])

    lines = Path(files["entries"]).read_text().splitlines(keepends=True)
    Path(files["entries"]).write_text("".join(lines[1:]))
    assert typed(*verify).exit_code == 1
    assert not (tmp_path / "auditor").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("audit", "prune"), "kept for ever: set gateway.audit_retention_days"),
        (("audit", "verify", "--entries", "none"), "The file none cannot be used: no such file"),
        (("audit", "verify", "--public-key", "none"), "The file none cannot be used: no such file"),
        (("audit", "verify", "--entries", "pyproject.toml"), "Line 1 of pyproject.toml is no entry"),
        (("audit", "export", "--out", "/"), "The file / cannot be used"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(here: Place, arguments: tuple[str, ...], sentence: str) -> None:
    """It says what to do instead, or what is wrong with a file."""
    with pytest.raises(Refusal, match=sentence):
        run(*arguments)


def test_pruning_keeps_what_the_settings_say(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older entries go, younger ones stay, and the rest is clean."""
    run("tenants", "create", "acme")
    monkeypatch.setenv("SERVING_GATEWAY__AUDIT_RETENTION_DAYS", "2")
    assert "Removed 0 entries" in run("audit", "prune")
    assert "nothing was changed" in run("audit", "verify")


PAGE = (Path(__file__).parents[3] / "serving" / "SECURITY.md").read_text()
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
(GRANTS,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


def test_each_command_of_the_security_page_runs(tmp_path: Path) -> None:
    """In its order, as it is written, on a laptop's store whose gateway's log was collected."""
    settings = Settings(home=tmp_path / "home")
    opening.first_start(settings)
    with opening.opened(settings) as (store, keyring), opening.registered(settings) as registry:
        tenant = registry.create_tenant("acme")
        with store.begin() as connection:
            row = {"ref": "u1", "tenant_id": tenant.id, "subject": "anne@example.com", "created_at": 1.5}
            connection.execute(insert(end_users), [row])
        with opening.journal(store, keyring) as own:
            lines = [checkpoints.written(it) for it in own.sign_all()]
    (tmp_path / "gateway.log").write_text("".join(json.dumps({"message": line}) + "\n" for line in lines))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert len(SHELL) == 9
    for line in SHELL:
        said = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env={"PATH": path, "SERVING_HOME": str(settings.home)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert said.returncode == 0, (line, said.stdout, said.stderr)


def test_a_gateways_account_can_be_denied_to_change_the_audit(shared: PostgresPlace, tmp_path: Path) -> None:
    """With the grants of the security page a gateway works, and neither changes nor removes an entry; the owner prunes."""
    server, database = shared.server, shared.database
    assert all(f" {name}" in GRANTS for name in metadata.tables)
    server.execute(GRANTS, database)
    try:
        mine = tmp_path / "gateway-url"
        mine.write_text(server.url(database, user="serving_gateway"))
        url = mine.read_text()
        with Store.open(tmp_path, StoreSettings(url_file=mine)) as store:
            _work_as_a_gateway(store)
        for statement in (
            "delete from audit",
            "update audit set body = ''",
            "truncate audit",
            "drop table audit",
            "alter table audit add column x int",
        ):
            with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        with shared.open() as store, opening.journal(store, Keyring.open(store)) as own:
            pruned = pruning.prune(store, own, Actor(os_user="owner"), time.time() + 1)
        assert pruned.entries == 11
    finally:
        server.execute("drop owned by serving_gateway; drop role serving_gateway", database)


def _work_as_a_gateway(store: Store) -> None:
    """Each table is used: tenants, keys, prices, the ledger, changes, the audit."""
    keyring = Keyring.open(store)
    with Ledger(store, clock=time.time) as ledger, Audit(store, opening.signer(keyring), clock=time.time) as audit:
        registry = Registry(store, keyring, time.time, audit.witness(CALLER))
        registry.create_tenant("acme")
        registry.revoke_key(str(id_of(registry.create_key("acme"))))
        price_list.put(store, "m", Price(1, 1, 1), audit.witness(CALLER))
        settle(ledger, "r1")
        audit.settle(record(entry_id="e"))
        registry.first_key()
    assert len(list(reading.entries(store))) == 11
