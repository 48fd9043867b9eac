"""The store: one file that any number of processes may make, open and share, and that refuses in sentences."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from serving.errors import Refusal, StoreUnavailable
from serving.gateway.store.store import Store
from serving.gateway.store.tables import metadata, tenants
from tests.gateway.places import Place
from tests.gateway.processes import at_once


def test_a_second_open_finds_what_the_first_one_wrote(place: Place) -> None:
    """Creating is idempotent: an existing database is opened as it is."""
    with place.open() as store, store.begin() as connection:
        connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.5))

    with place.open() as store, store.begin() as connection:
        assert connection.execute(select(tenants.c.name, tenants.c.created_at)).all() == [("acme", 1.5)]


def create(home: Path) -> str:
    with Store.open(home) as store:
        return store.name


def test_processes_that_create_at_once_all_succeed(tmp_path: Path) -> None:
    """However many processes start on an empty home together, each gets the same complete database."""
    assert at_once(6, create, tmp_path) == [str(tmp_path / "serving.db")] * 6
    with sqlite3.connect(tmp_path / "serving.db") as raw:
        assert raw.execute("select count(*), max(schema_version) from meta").fetchone() == (1, 1)
        assert raw.execute("pragma journal_mode").fetchone() == ("wal",)
        names = {name for (name,) in raw.execute("select name from sqlite_master where type = 'table'")}
    assert names == {*metadata.tables, "alembic_version"}


def test_a_home_that_cannot_be_written_is_refused() -> None:
    """Where no folder can be made, the refusal names the folder."""
    with pytest.raises(Refusal, match="The folder /proc/nowhere cannot hold the database"):
        Store.open(Path("/proc/nowhere"))


def test_a_full_disk_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """When the file system takes no more, the command says so and shows no traceback.

    The limit on file size stands for the full disk: SQLite meets a write that the kernel refuses.
    """
    program = """
import resource, sys
from pathlib import Path
from serving.errors import Refusal
from serving.gateway.store.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    Store.open(Path(sys.argv[1]))
except Refusal as refusal:
    print(refusal)
"""
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)

    assert run.stderr == ""
    assert run.stdout.startswith(f"The database {tmp_path / 'serving.db'} cannot be used: ")


def test_what_a_client_is_told_of_an_outage_names_nothing_inner(place: Place) -> None:
    """The sentence for clients holds neither the path nor the database's words; those are in `reason`."""
    with place.open() as store:
        place.take_away()
        with pytest.raises(StoreUnavailable) as caught, store.begin():
            pass
        place.bring_back()

    assert "database" not in caught.value.message and "database" in caught.value.reason
    assert str(place.home) not in caught.value.message


def test_a_transaction_that_fails_leaves_nothing(place: Place) -> None:
    """What was written before the error is rolled back."""
    twice = [{"id": name, "name": "acme", "created_at": 1.5} for name in ("t1", "t2")]
    with place.open() as store, pytest.raises(IntegrityError), store.begin() as connection:
        connection.execute(insert(tenants), twice)

    assert place.execute("select count(*) from tenants") == [(0,)]


def test_a_snapshot_sees_its_start_alone(place: Place) -> None:
    """What is committed while it reads is not in it."""
    with place.open() as store, store.snapshot() as reading:
        before = reading.execute(select(tenants)).all()
        with store.begin() as writing:
            writing.execute(insert(tenants).values(id="t1", name="acme", created_at=1.5))
        after = reading.execute(select(tenants)).all()

    assert before == after == []
    assert place.execute("select count(*) from tenants") == [(1,)]


def test_those_who_want_to_be_alone_take_turns(place: Place) -> None:
    """Of two such transactions the second begins when the first has ended, and sees what it wrote."""
    order: list[str] = []

    def second() -> None:
        with place.open() as store, store.alone() as connection:
            order.append(f"second sees {connection.execute(select(tenants.c.name)).scalars().all()}")

    with place.open() as store:
        with store.alone() as connection:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join(0.3)
            connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.5))
            order.append("first")
        thread.join()

    assert order == ["first", "second sees ['acme']"]


def test_those_who_hold_one_name_take_turns(place: Place) -> None:
    """The second waits for the first one's end, and goes on from what that wrote; it holds the name before it writes anything."""
    order: list[str] = []

    def second() -> None:
        with place.open() as store, store.begin() as connection:
            store.hold(connection, "chain")
            order.append(f"second sees {connection.execute(select(tenants.c.name)).scalars().all()}")

    with place.open() as store:
        with store.begin() as connection:
            store.hold(connection, "chain")
            store.hold(connection, "chain")
            thread = threading.Thread(target=second)
            thread.start()
            thread.join(0.3)
            connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.5))
            order.append("first")
        thread.join()

    assert order == ["first", "second sees ['acme']"]
