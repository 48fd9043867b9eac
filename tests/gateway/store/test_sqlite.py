"""SQLite: one file, its owner's alone, never silently replaced."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select

from serving.errors import Refusal, StoreUnavailable
from serving.gateway.store.sqlite import BUSY_TIMEOUT_MS
from serving.gateway.store.store import Store
from serving.gateway.store.tables import tenants
from tests.gateway.places import SqlitePlace


def test_every_file_is_its_owners_alone(tmp_path: Path) -> None:
    """The database and the files SQLite adds while it is in use have mode 0600."""
    home = tmp_path / "home"
    with Store.open(home) as store, store.begin() as connection:
        connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}

    assert {"serving.db", "serving.db-wal", "serving.db-shm"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Something else under the database's name is left alone."""
    (tmp_path / "serving.db").write_bytes(b"not a database at all " * 400)

    with pytest.raises(Refusal, match="file is not a database"):
        Store.open(tmp_path)


def test_a_missing_file_is_an_outage_and_not_a_new_database(tmp_path: Path) -> None:
    """A database that disappears while in use is reported, never silently replaced by an empty one."""
    with Store.open(tmp_path) as store:
        (tmp_path / "serving.db").rename(tmp_path / "elsewhere")

        with pytest.raises(StoreUnavailable) as caught, store.begin() as connection:
            connection.execute(select(tenants))

    assert caught.value.reason == "unable to open database file"
    assert not (tmp_path / "serving.db").exists()


def test_a_writer_waits_for_another_and_then_gives_up(tmp_path: Path) -> None:
    """Far above any transaction of ours, far below a request's patience; a reader does not wait at all."""
    place = SqlitePlace(tmp_path)
    with place.open() as store:
        with store.begin() as connection:
            assert connection.exec_driver_sql("pragma busy_timeout").scalar() == BUSY_TIMEOUT_MS
            assert connection.exec_driver_sql("pragma foreign_keys").scalar() == 1
            assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        with place.writers_wait(), store.begin() as connection:
            assert connection.execute(select(tenants)).all() == []


def test_a_stay_keeps_the_log_between_transactions(tmp_path: Path) -> None:
    """Writing the log back takes most of a small transaction; at rest the file is complete without it."""
    log = tmp_path / "serving.db-wal"
    with SqlitePlace(tmp_path).open() as store:
        for _ in range(2):
            store.stay()
            with store.begin() as connection:
                connection.execute(delete(tenants))
                connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
            assert log.stat().st_size
            store.rest()
            assert not log.exists()


def test_a_stay_does_not_hide_that_the_file_is_gone(tmp_path: Path) -> None:
    """It holds the old file open, and no transaction goes there; the file that comes back is used again."""
    place = SqlitePlace(tmp_path)
    with place.open() as store:
        store.stay()
        with store.begin() as connection:
            connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
        place.take_away()
        with pytest.raises(StoreUnavailable), store.begin() as connection:
            connection.execute(select(tenants))
        store.rest()
        place.bring_back()
        store.stay()
        with store.begin() as connection:
            assert [found.name for found in connection.execute(select(tenants))] == ["acme"]
