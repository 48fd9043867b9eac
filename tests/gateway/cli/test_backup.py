"""Backup and restore: everything comes back, in either database, or nothing does and a sentence says why."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import stat
import threading
import time
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, String, Table, insert
from typer.testing import CliRunner

from serving.config import GatewaySettings, Settings
from serving.errors import Refusal, StoreUnavailable
from serving.gateway.cli import backup as backups
from serving.gateway.cli import commands
from serving.gateway.cli.opening import first_start, migrate, opened
from serving.gateway.identity import changes
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import mint
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.tenants import Tenants
from serving.gateway.nouns import Caller
from serving.gateway.store import schema
from serving.gateway.store.store import Store
from serving.gateway.store.tables import (
    Moment,
    audit,
    batches,
    conversation_items,
    conversations,
    end_users,
    files,
    ledger,
    prices,
    response_events,
    response_items,
    responses,
)
from tests.gateway.places import Place, PostgresPlace, SqlitePlace, settings_of
from tests.gateway.postgres import MIGRATED, Server

TABLES = (
    *("tenants", "keys", "prices", "end_users", "ledger", "audit"),
    *("responses", "response_events", "response_items", "conversations", "conversation_items", "files", "batches"),
)


PRICES = ("prompt_micros", "cached_prompt_micros", "completion_micros")
#: What a row of what is stored has in a column, by its type.
STORED: dict[type, object] = {
    Boolean: True,
    BigInteger: 7,
    Integer: 7,
    LargeBinary: b"\x00\xff",
    Moment: 1.5,
    String: "s1",
}
LINK = {"writer": "h:1:1", "written_at": 1.5, "kind": "k", "body": "{}"}
#: What version 0.1 knew of, in the first three tables.
FIRST_COLUMNS = {
    "tenants": {"id", "name", "created_at", "disabled_at"},
    "keys": {"id", "tenant_id", "name", "digest", "created_at", "revoked_at", "expires_at", "rights"},
    "ledger": {column.name for column in ledger.c if not column.nullable}
    | {"finished_at", "replica_id", "estimated_by"},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A second, empty store."""
    home = tmp_path / "target"
    home.mkdir()
    if request.param == "sqlite":
        return SqlitePlace(home)
    server: Server = request.getfixturevalue("postgres")
    return PostgresPlace(home, server, server.emptied(MIGRATED[1]))


def row(number: int, **columns: object) -> dict[str, object]:
    said = {
        "request_id": f"r{number:05}",
        "entry_id": f"e{number}",
        "tenant_id": "t1",
        "key_id": "k1",
        "route": "/v1/x",
    }
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens"), number)
    ends = {"started_at": 1_795_348_800.123456 + number, "finished_at": None, "outcome": "stop", "status": 200}
    return {**said, **counts, **ends, "model": "ü\u2028\t", "estimated_by": None, "gateway_id": "h:1:1", **columns}


def fill(place: Place, rows: int = 3) -> str:
    """A tenant, a disabled one, an ended key and a working one, and a ledger; returns the working key."""
    with opened(settings_of(place)) as (store, keyring):
        registry = Registry(store, keyring, time.time)
        for name in ("acme", "gone"):
            registry.create_tenant(name)
        registry.update_tenant("gone", is_disabled=True)
        registry.revoke_key(registry.create_key("gone", name="old")[3:13])
        with store.begin() as connection:
            connection.execute(insert(ledger), [row(number) for number in range(rows)])
            connection.execute(insert(ledger), [row(rows, finished_at=1.5, replica_id="x", prompt_tokens=2**53)])
            connection.execute(insert(prices), [{"model": "m", **dict.fromkeys(PRICES, 2**33)}])
            connection.execute(
                insert(end_users), [{"ref": "u1", "tenant_id": "t1", "subject": "ann", "created_at": 1.5}]
            )
            for table in (
                responses,
                response_events,
                response_items,
                conversations,
                conversation_items,
                files,
                batches,
            ):
                connection.execute(insert(table), [stored(table)])
            connection.execute(
                insert(audit), [{**LINK, "number": number, "digest": bytes([number])} for number in (0, 1)]
            )
        return registry.create_key("acme", name="ci", lifetime_s=1e6)


def stored(table: Table) -> dict[str, object]:
    """A row."""
    return {column.name: STORED[type(column.type)] for column in table.c}


def contents(place: Place) -> dict[str, list[dict[str, object]]]:
    """Every row of every table, as the code sees it; without what the two commands tell the audit of themselves."""
    with place.open() as store, store.begin() as connection:
        found = {
            name: [dict(found) for found in connection.execute(table.select().order_by(*table.primary_key)).mappings()]
            for name, table in backups.TABLES.items()
        }
    found["audit"] = [row for row in found["audit"] if not str(row["writer"]).startswith("command:")]
    return found


def run(place: Place, *arguments: str, max_body_bytes: int = 8 * 1024 * 1024, **store: Path) -> str:
    """One of the two commands, with the settings of a place."""
    cli = typer.Typer()
    cli.command("backup")(commands.backup)
    cli.command("restore")(commands.restore)
    gateway = GatewaySettings(max_body_bytes=max_body_bytes)
    settings = Settings(home=place.home, store=place.settings.model_copy(update=store), gateway=gateway)
    return CliRunner().invoke(cli, arguments, obj=settings, catch_exceptions=False).stdout


def identify(place: Place, key: str) -> str:
    with opened(settings_of(place)) as (store, keyring), ExitStack() as opened_here:
        tenants = opened_here.enter_context(Tenants(store, keyring, key_cache_s=10, lookup_timeout_s=10))
        return asyncio.run(tenants.identify(key)).tenant


def test_everything_comes_back_in_either_database(place: Place, target: Place, tmp_path: Path) -> None:
    """Tenants, keys, pepper and ledger: the rows are equal to the last microsecond, and the key opens as before."""
    key = fill(place, rows=2500)
    told = run(place, "backup", str(tmp_path / "b"))
    restored = run(target, "restore", str(tmp_path / "b"))

    assert told.endswith("holds 2 tenants, 2 keys and 2501 calls.\n")
    assert restored.startswith("Restored 2 tenants, 2 keys and 2501 calls.\n")
    assert contents(target) == contents(place)
    assert identify(target, key) == "acme"
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    assert stat.S_IMODE((target.home / "pepper").stat().st_mode) == 0o600


def test_what_goes_on_stays_with_the_gateways_that_run_it(place: Place, target: Place, tmp_path: Path) -> None:
    """An upload that has not ended, and a batch: two installations would write the same files. What has ended comes back, and where to
    look for the bytes is said.
    """
    fill(place)
    before = contents(place)
    with place.open() as store, store.begin() as connection:
        connection.execute(insert(files), [stored(files) | {"id": "s2", "is_whole": False}])
        connection.execute(insert(batches), [stored(batches) | {"id": "s2", "ended_at": None}])
    run(place, "backup", str(tmp_path / "b"))
    assert "The bytes of 1 files are in no backup" in run(target, "restore", str(tmp_path / "b"))
    found = contents(target)
    assert (found["files"], found["batches"]) == (before["files"], before["batches"])


def test_a_line_is_as_long_as_what_may_be_stored(tmp_path: Path) -> None:
    """A stored response fits, as large as the settings let it be; where they let it be smaller it is refused, not as damage."""
    source, target = SqlitePlace(tmp_path / "source"), SqlitePlace(tmp_path / "target")
    with opened(settings_of(source)) as (store, _), store.begin() as connection:
        connection.execute(insert(responses), [stored(responses) | {"sealed_input": bytes(10_000_000)}])
    run(source, "backup", str(tmp_path / "b"))
    with pytest.raises(Refusal, match="longer than anything that is stored with this gateway"):
        run(target, "restore", str(tmp_path / "b"), max_body_bytes=1024)
    run(target, "restore", str(tmp_path / "b"))
    assert contents(target)["responses"] == contents(source)["responses"]


def _of_the_version_before(data: bytes) -> bytes:
    """Three tables, whose rows say less."""
    head, *rest = [json.loads(line) for line in gzip.decompress(data).splitlines()]
    kept = [it for it in rest if it.get("table") in FIRST_COLUMNS]
    for it in kept:
        it["values"] = {name: value for name, value in it["values"].items() if name in FIRST_COLUMNS[it["table"]]}
    lines = [json.dumps(it).encode() + b"\n" for it in (head | {"schema": 3}, *kept)]
    rows = {name: count for name, count in rest[-1]["rows"].items() if name in FIRST_COLUMNS}
    foot = {"kind": "foot", "rows": rows, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    return gzip.compress(b"".join(lines) + json.dumps(foot).encode() + b"\n")


def test_a_backup_of_the_version_before_is_restored(place: Place, target: Place, tmp_path: Path) -> None:
    """It knew of no prices, policies or users: what it held comes back, and what it lacks is as if it had never been set."""
    key = fill(place)
    run(place, "backup", str(tmp_path / "b"))
    (tmp_path / "b").write_bytes(_of_the_version_before((tmp_path / "b").read_bytes()))
    assert run(target, "restore", str(tmp_path / "b")) == "Restored 2 tenants, 2 keys and 4 calls.\n"

    assert identify(target, key) == "acme"
    found, before = contents(target), contents(place)
    assert found["prices"] == found["end_users"] == found["audit"] == []
    assert found["tenants"] == [it | {"revision": 1} for it in before["tenants"]]
    assert found["ledger"] == before["ledger"]


def test_gateways_that_follow_a_store_learn_that_it_was_restored(place: Place, tmp_path: Path) -> None:
    """Anything may have changed then."""
    fill(place)
    run(place, "backup", str(tmp_path / "b"))
    target = SqlitePlace(tmp_path / "target")
    with target.open() as store:
        before = changes.since(store, None)
        run(target, "restore", str(tmp_path / "b"))
        assert changes.since(store, before.revision).changes is None


@pytest.mark.parametrize("table", ["prices", "end_users"])
def test_a_store_with_prices_or_users_is_in_use(target: Place, tmp_path: Path, table: str) -> None:
    """They are no first start's either."""
    source = SqlitePlace(tmp_path / "source")
    fill(source)
    run(source, "backup", str(tmp_path / "b"))
    columns = {"prices": "('m', 1, 1, 1)", "end_users": "('u', 't', 's', '', '2026-11-22 00:00:00')"}
    with target.open():
        target.execute(f"insert into {table} values {columns[table]}")  # noqa: S608 Our own words.
    with pytest.raises(Refusal, match="is in use: restore into a new one"):
        run(target, "restore", str(tmp_path / "b"))


def test_a_person_can_read_it(place: Place, tmp_path: Path) -> None:
    """gzip and one JSON object a line: what it is, what is in it, how much, and no key."""
    key = fill(place)
    run(place, "backup", str(tmp_path / "b"))
    with gzip.open(tmp_path / "b", "rt") as file:
        lines = [json.loads(line) for line in file]

    assert (lines[0]["kind"], lines[0]["format"], lines[0]["schema"]) == ("head", 1, schema.REVISION)
    assert {line["table"] for line in lines[1:-1]} == set(TABLES)
    counts = {"tenants": 2, "keys": 2, "prices": 1, "end_users": 1, "ledger": 4, "audit": 6}
    assert lines[-1]["rows"] == counts | dict.fromkeys(TABLES[6:], 1)
    assert key[-43:] not in json.dumps(lines)


def test_it_shows_one_moment_while_gateways_write(place: Place, tmp_path: Path) -> None:
    """Rows that were committed together are in it together, however long it takes and however many follow."""
    fill(place)
    stop = threading.Event()

    def write() -> None:
        with place.open() as store:
            number = 100
            while not stop.is_set():
                with store.begin() as connection:
                    connection.execute(insert(ledger), [row(number, model="pair"), row(number + 1, model="pair")])
                number += 2

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            run(place, "backup", str(tmp_path / "b"))
    finally:
        stop.set()
        writer.join()
    target = SqlitePlace(tmp_path / "target")
    run(target, "restore", str(tmp_path / "b"))

    ids = [int(str(found["request_id"])[1:]) for found in contents(target)["ledger"] if found["model"] == "pair"]
    assert ids == list(range(100, 100 + len(ids))) and len(ids) % 2 == 0 and ids


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


def _without_foot(data: bytes) -> bytes:
    return gzip.compress(b"".join(gzip.decompress(data).splitlines(keepends=True)[:-1]))


def _without_a_row(data: bytes) -> bytes:
    lines = gzip.decompress(data).splitlines(keepends=True)
    return gzip.compress(b"".join(lines[:3] + lines[4:]))


def _with_another_number(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data).replace(b'"prompt_tokens":1,', b'"prompt_tokens":9,'))


def _continued(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data) + b'{"kind":"row","table":"tenants","values":{}}\n')


def _something_else(_: bytes) -> bytes:
    return b"SQLite format 3\0" + bytes(4000)


def _one_long_line(_: bytes) -> bytes:
    return gzip.compress(b"[" * 10_000_000)


DAMAGES = [_cut, _flipped, _without_foot, _without_a_row, _with_another_number, _continued, _something_else]


@pytest.mark.parametrize("damage", [*DAMAGES, _one_long_line, lambda _: b""])
def test_a_damaged_file_is_refused_and_changes_nothing(tmp_path: Path, damage: Any) -> None:
    """Cut short, changed, continued or something else: one sentence, and the store is as empty as before."""
    source, target = SqlitePlace(tmp_path / "source"), SqlitePlace(tmp_path / "target")
    fill(source)
    run(source, "backup", str(tmp_path / "b"))
    (tmp_path / "b").write_bytes(damage((tmp_path / "b").read_bytes()))

    with pytest.raises(Refusal, match="is not a whole backup"):
        run(target, "restore", str(tmp_path / "b"))
    assert contents(target) == {name: [] for name in TABLES}
    assert not (target.home / "pepper").exists()


def _edited(data: bytes, before: bytes, after: bytes) -> bytes:
    """A backup changed by someone who put the checksum right too."""
    *lines, foot = gzip.decompress(data).replace(before, after).splitlines(keepends=True)
    sums = json.loads(foot) | {"sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    return gzip.compress(b"".join(lines) + json.dumps(sums).encode() + b"\n")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (b'"outcome":', b'"outcame":', "is not a whole backup"),
        (b'"digest":"', b'"digest":"!', "is not a whole backup"),
        (b'"pepper":"', b'"pepper":"QUJD', "is not a whole backup"),
        (b'"prompt_tokens":1,', b'"prompt_tokens":99999999999999999999,', "is not a whole backup"),
        (b'"started_at":1795348801.123456', b'"started_at":"noon"', "is not a whole backup"),
        (b'"request_id":"r00002"', b'"request_id":"r00001"', "contradict one another"),
    ],
)
def test_an_edited_backup_is_refused_and_changes_nothing(
    target: Place, tmp_path: Path, before: bytes, after: bytes, words: str
) -> None:
    """Unknown columns, other types and a pepper that is none, though every checksum is right."""
    source = SqlitePlace(tmp_path / "source")
    fill(source)
    run(source, "backup", str(tmp_path / "b"))
    whole = (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_bytes(_edited(whole, before, after))
    assert gzip.decompress(whole).count(before)

    with pytest.raises(Refusal, match=words):
        run(target, "restore", str(tmp_path / "b"), "--pepper-out", str(tmp_path / "pepper"))
    assert contents(target) == {name: [] for name in TABLES} and not (tmp_path / "pepper").exists()


def test_a_backup_from_a_pipe_is_refused(tmp_path: Path) -> None:
    """It is read twice, and a pipe would be waited for without an end."""
    os.mkfifo(tmp_path / "pipe")
    target = SqlitePlace(tmp_path / "target")

    with pytest.raises(Refusal, match="is no plain file"):
        run(target, "restore", str(tmp_path / "pipe"))


def test_a_store_in_use_is_not_overwritten(place: Place, target: Place, tmp_path: Path) -> None:
    """A target with one tenant, one key or one row of its own keeps everything."""
    fill(place)
    run(place, "backup", str(tmp_path / "b"))
    with opened(settings_of(target)) as (store, keyring):
        Registry(store, keyring, time.time).create_tenant("mine")
    before = contents(target)

    with pytest.raises(Refusal, match="is in use: restore into a new one"):
        run(target, "restore", str(tmp_path / "b"))
    assert contents(target) == before


def test_a_second_key_is_not_what_a_first_start_makes(place: Place, target: Place, tmp_path: Path) -> None:
    """Whatever its name: it may be in use by another program."""
    fill(place)
    run(place, "backup", str(tmp_path / "b"))
    with opened(settings_of(target)) as (store, keyring):
        registry = Registry(store, keyring, time.time)
        registry.create_tenant("default")
        for _ in range(2):
            registry.create_key("default", name="admin")
    before = contents(target)

    with pytest.raises(Refusal, match="is in use: restore into a new one"):
        run(target, "restore", str(tmp_path / "b"))
    assert contents(target) == before


def test_a_backup_replaces_files_alone(place: Place, tmp_path: Path) -> None:
    """Not a device or a pipe; and a link stays one, with the backup where it leads."""
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", tmp_path, Path()):
        with pytest.raises(Refusal, match="no plain file"):
            run(place, "backup", str(odd))
    (tmp_path / "link").symlink_to(tmp_path / "b")
    run(place, "backup", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "b").is_file() and (tmp_path / "pipe").is_fifo()


def test_what_a_first_start_made_gives_way(place: Place, target: Place, tmp_path: Path) -> None:
    """An installation has its first tenant and key before anyone can restore into it; the given key works afterwards."""
    fill(place)
    run(place, "backup", str(tmp_path / "b"))
    first = mint()
    file = target.home / "first"
    file.write_text(first)
    migrate(Settings(home=target.home, store=target.settings.model_copy(update={"first_key_file": file})))

    run(target, "restore", str(tmp_path / "b"), first_key_file=file)
    assert identify(target, first) == "default"
    assert {tenant["name"] for tenant in contents(target)["tenants"]} == {"acme", "gone", "default"}


def test_a_laptops_first_start_gives_way(tmp_path: Path) -> None:
    """The next start after a restore makes its own key known again, beside those that came back."""
    source, target = SqlitePlace(tmp_path / "source"), SqlitePlace(tmp_path / "target")
    for place in (source, target):
        first_start(settings_of(place))
    run(source, "backup", str(tmp_path / "b"))
    run(target, "restore", str(tmp_path / "b"))
    first_start(settings_of(target))

    for place in (source, target):
        assert identify(target, (place.home / "admin.key").read_text().strip()) == "default"


def test_a_pepper_in_a_given_file_is_compared_and_not_written(place: Place, target: Place, tmp_path: Path) -> None:
    """With a pepper_file of other content nothing is restored, unless the pepper is written where it is told."""
    key = fill(place)
    run(place, "backup", str(tmp_path / "b"))
    given, out = tmp_path / "given", tmp_path / "out"
    for content in (None, bytes(32)):
        if content is not None:
            given.write_bytes(content)
        with pytest.raises(Refusal, match="--pepper-out FILE"):
            run(target, "restore", str(tmp_path / "b"), pepper_file=given)
    assert contents(target) == {name: [] for name in TABLES}

    assert str(out) in run(target, "restore", str(tmp_path / "b"), "--pepper-out", str(out), pepper_file=given)
    assert out.read_bytes() == (place.home / "pepper").read_bytes() and stat.S_IMODE(out.stat().st_mode) == 0o600
    settings = Settings(home=target.home, store=target.settings.model_copy(update={"pepper_file": given}))
    with pytest.raises(Refusal, match="is not the one of the database"), opened(settings):
        pass
    given.write_bytes(out.read_bytes())
    with opened(settings) as (store, keyring), Tenants(store, keyring, key_cache_s=10, lookup_timeout_s=10) as tenants:
        assert asyncio.run(tenants.identify(key)) == Caller(tenants_id(store), "acme", key[3:13])


def tenants_id(store: Store) -> str:
    return next(tenant.id for tenant in Registry(store, Keyring(b""), time.time).tenants() if tenant.name == "acme")


def test_a_file_in_the_peppers_way_is_left_alone(tmp_path: Path) -> None:
    """--pepper-out overwrites nothing."""
    source, target = SqlitePlace(tmp_path / "source"), SqlitePlace(tmp_path / "target")
    fill(source)
    run(source, "backup", str(tmp_path / "b"))
    (tmp_path / "out").write_text("mine")

    with pytest.raises(Refusal, match="holds something else"):
        run(target, "restore", str(tmp_path / "b"), "--pepper-out", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_backup_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """It may hold what this version would lose."""
    source, target = SqlitePlace(tmp_path / "source"), SqlitePlace(tmp_path / "target")
    fill(source)
    run(source, "backup", str(tmp_path / "b"))
    now, later = (b'"schema":%d' % it for it in (schema.REVISION, schema.REVISION + 1))
    newer = gzip.decompress((tmp_path / "b").read_bytes()).replace(now, later, 1)
    (tmp_path / "b").write_bytes(gzip.compress(newer))

    with pytest.raises(Refusal, match="is from a newer version"):
        run(target, "restore", str(tmp_path / "b"))


def test_a_backup_that_fails_leaves_the_one_before(place: Place, tmp_path: Path) -> None:
    """Written whole or not at all: an outage, or a folder that takes nothing, leaves no half file and no draft."""
    fill(place)
    run(place, "backup", str(tmp_path / "b"))
    before = (tmp_path / "b").read_bytes()
    with opened(settings_of(place)) as (store, keyring):
        place.take_away()
        with pytest.raises(StoreUnavailable):
            backups.write(store, keyring, tmp_path / "b", time.time)
        place.bring_back()

    with pytest.raises(Refusal, match="cannot be written"):
        run(place, "backup", "/proc/nowhere/b")
    assert (tmp_path / "b").read_bytes() == before
    assert [name for name in os.listdir(tmp_path) if name.startswith(".b")] == []


def test_memory_does_not_grow_with_the_ledger(place: Place, tmp_path: Path) -> None:
    """Rows pass through in batches: 5,000 of them need a fraction of their size in memory, both ways."""
    fill(place, rows=5_000)
    tracemalloc.start()
    try:
        whole = contents(place)
        size, _ = tracemalloc.get_traced_memory()
        whole.clear()
        tracemalloc.reset_peak()
        run(place, "backup", str(tmp_path / "b"))
        for table in reversed(TABLES):
            place.execute(f"delete from {table}")  # noqa: S608 Our own words.
        run(place, "restore", str(tmp_path / "b"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 3
