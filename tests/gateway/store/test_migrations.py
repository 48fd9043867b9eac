"""The schema's history: what any version left is brought to today's tables, and no gateway runs on another's."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from serving.errors import Refusal
from serving.gateway.cli.opening import migrate
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.store import schema
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger, metadata
from tests.clock import Clock
from tests.gateway.places import Place, PostgresPlace, SqlitePlace, settings_of

#: What version 0.1 wrote, in its own words.
VERSION_0_1 = """
CREATE TABLE meta (schema_version INTEGER NOT NULL);
CREATE TABLE tenants (
    id VARCHAR(32) NOT NULL, name VARCHAR(64) NOT NULL, created_at DATETIME NOT NULL, disabled_at DATETIME,
    PRIMARY KEY (id), UNIQUE (name)
);
CREATE TABLE ledger (
    request_id VARCHAR(255) NOT NULL, entry_id VARCHAR(32) NOT NULL, tenant_id VARCHAR(32) NOT NULL,
    key_id VARCHAR(32) NOT NULL, route VARCHAR(255) NOT NULL, model VARCHAR(255) NOT NULL, replica_id VARCHAR(255),
    started_at DATETIME NOT NULL, finished_at DATETIME, outcome VARCHAR(64) NOT NULL, status INTEGER NOT NULL,
    prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL, cached_prompt_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL, estimated_by VARCHAR(64), gateway_id VARCHAR(255) NOT NULL,
    PRIMARY KEY (request_id)
);
CREATE INDEX ledger_open ON ledger (gateway_id) WHERE outcome = 'open';
CREATE INDEX ledger_by_start ON ledger (started_at);
CREATE INDEX ledger_by_tenant ON ledger (tenant_id, started_at);
CREATE TABLE keys (
    id VARCHAR(32) NOT NULL, tenant_id VARCHAR(32) NOT NULL, name VARCHAR(64) NOT NULL, digest BLOB NOT NULL,
    created_at DATETIME NOT NULL, revoked_at DATETIME, expires_at DATETIME,
    PRIMARY KEY (id), FOREIGN KEY(tenant_id) REFERENCES tenants (id), UNIQUE (digest)
);
CREATE INDEX ix_keys_tenant_id ON keys (tenant_id);
"""
SOME_ROWS = """
INSERT INTO meta VALUES (1);
INSERT INTO tenants VALUES ('t1', 'acme', '2026-11-22 12:00:00.000000', NULL);
INSERT INTO keys VALUES ('abcdefghij', 't1', 'ci', x'00ff', '2026-11-22 12:00:00.000000', NULL, NULL);
INSERT INTO ledger VALUES ('r1', 'e1', 't1', 'abcdefghij', '/v1/completions', 'm', NULL, '2026-11-22 12:00:00.250000',
    NULL, 'open', 0, 1, 2, 3, 4, NULL, 'elsewhere:1:1');
"""


def write_file(home: Path, sql: str) -> None:
    with sqlite3.connect(home / "serving.db") as raw:
        raw.executescript(sql)
    raw.close()


def test_a_file_of_version_0_1_is_taken_over_whole(tmp_path: Path) -> None:
    """Every tenant, key and row of it is there afterwards, and it can do what a new one can."""
    write_file(tmp_path, VERSION_0_1 + SOME_ROWS)

    with Store.open(tmp_path) as store:
        with store.begin() as connection:
            (row,) = connection.execute(select(ledger)).all()
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        (tmp_path / "pepper").write_bytes(bytes(32))
        registry = Registry(store, Keyring.open(store), Clock())
        (key,) = registry.keys("acme")
        assert (key.id, key.name) == ("abcdefghij", "ci")
        assert registry.tenants()[0].created_at == 1_795_348_800.0
    assert (row.request_id, row.started_at, row.reasoning_tokens) == ("r1", 1_795_348_800.25, 4)


@pytest.mark.parametrize("made", [0, 1, 3, 6])
def test_a_first_start_of_version_0_1_that_was_killed_is_finished(tmp_path: Path, made: int) -> None:
    """It committed table by table: whichever were made, the rest follows."""
    write_file(tmp_path, ";".join(VERSION_0_1.split(";")[:made]))

    with Store.open(tmp_path) as store, store.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert schema.is_current(connection, store.name)


def test_a_migration_that_fails_changes_nothing_in_a_file(tmp_path: Path) -> None:
    """All missing steps are one transaction: the error names the obstacle, and the file is as it was."""
    write_file(tmp_path, VERSION_0_1 + SOME_ROWS + "CREATE TABLE gateways (strange INTEGER);")

    with pytest.raises(Refusal, match="table gateways already exists"):
        Store.open(tmp_path)
    tables = SqlitePlace(tmp_path).execute("select count(*) from sqlite_master where name = 'alembic_version'")
    assert tables == [(0,)]


def test_a_migration_that_fails_changes_nothing_in_postgresql(unmigrated: PostgresPlace) -> None:
    """There too: not one table is made beside the one in the way."""
    unmigrated.execute("create table gateways (strange integer)")

    with pytest.raises(Refusal, match="already exists"):
        migrate(settings_of(unmigrated))
    assert unmigrated.execute("select tablename from pg_tables where schemaname = 'public'") == [("gateways",)]


def test_a_database_without_tables_is_refused_until_it_is_migrated(unmigrated: PostgresPlace) -> None:
    """On PostgreSQL only the command makes tables; a gateway names it."""
    with pytest.raises(Refusal, match="run `serving store migrate` once"):
        unmigrated.open()

    migrate(settings_of(unmigrated))
    unmigrated.open().close()


def test_a_release_that_knows_no_rights_works_on(place: Place) -> None:
    """Its statements name the columns of step 2: the keys that it makes have no rights, and it reads the others."""
    place.open().close()
    place.execute("insert into tenants (id, name, created_at) values ('t1', 'acme', '2026-11-22 12:00:00')")
    digest = "x'00ff'" if isinstance(place, SqlitePlace) else r"'\x00ff'"
    place.execute(
        "insert into keys (id, tenant_id, name, digest, created_at, revoked_at, expires_at) "  # noqa: S608 Our own words.
        f"values ('abcdefghij', 't1', 'ci', {digest}, '2026-11-22 12:00:00', null, null)"
    )
    with place.open() as store:
        (key,) = Registry(store, Keyring(bytes(32)), Clock()).keys("acme")
    assert (key.id, key.rights) == ("abcdefghij", ())
