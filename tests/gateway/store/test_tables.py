"""Tables: what migrations make is what the code knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from serving.gateway.store import migrations, schema
from serving.gateway.store.store import Store
from serving.gateway.store.tables import keys, ledger, metadata, tenants
from tests.gateway.places import Place, PostgresPlace


def test_migrations_make_the_tables_that_the_code_knows(place: Place) -> None:
    """In either database, alembic finds nothing to add, drop or change; and the newest step is the one asked for."""
    with place.open() as store, store.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, metadata)
        revision = schema.revision_of(connection)

    assert differences == []
    steps = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert revision == schema.REVISION == int(steps.get_current_head() or 0)


def test_open_rows_have_their_own_index(place: Place) -> None:
    """Closing what the dead left must not read the whole ledger: alembic's comparison does not see the condition."""
    place.open().close()
    sources = ("select sql from sqlite_master", "select indexdef from pg_indexes")
    (found,) = [row for row in place.execute(sources[isinstance(place, PostgresPlace)]) if "ledger_open" in str(row[0])]

    assert "'open'" in str(found[0])


def test_a_moment_is_seconds_here_and_readable_there(place: Place, store: Store) -> None:
    """Microseconds included, in UTC whatever the machine's zone; None stays None."""
    with store.begin() as connection:
        connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1_795_348_800.25))
        assert connection.execute(select(tenants.c.created_at, tenants.c.disabled_at)).one() == (1_795_348_800.25, None)
    ((written,),) = place.execute("select cast(created_at as varchar(40)) from tenants")
    assert str(written).startswith("2026-11-22 12:00:00.25")


def test_a_bill_outlives_its_key_and_tenant(place: Place, store: Store) -> None:
    """A row of the ledger needs neither: none may be refused. A key needs its tenant."""
    assert not list(ledger.foreign_keys) and list(keys.foreign_keys)
    with pytest.raises(IntegrityError), store.begin() as connection:
        connection.execute(insert(keys).values(id="k", tenant_id="none", name="", digest=bytes(32), created_at=1.0))
