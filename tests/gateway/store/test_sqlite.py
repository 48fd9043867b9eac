"""SQLite: one file, its owner's alone, never silently replaced."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

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


def test_the_log_is_kept_between_transactions_that_follow(tmp_path: Path) -> None:
    """Writing the log back takes most of a small transaction; at rest the file is complete without it."""
    log = tmp_path / "serving.db-wal"
    with SqlitePlace(tmp_path).open() as store:
        for _ in range(2):
            with store.following() as connection:
                connection.execute(delete(tenants))
                connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
            assert log.stat().st_size
            store.rest()
            assert not log.exists()


def test_look_ups_that_follow_share_connections(tmp_path: Path) -> None:
    """In whichever thread; at once each has its own. Afterwards the file is complete without its log; a lost file is an outage."""
    log = tmp_path / "serving.db-wal"
    with SqlitePlace(tmp_path).open() as store:
        with store.looking() as one, store.looking() as beside:
            assert one is not beside
        with store.looking() as next_one:
            next_one.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
            assert next_one in (one, beside) and log.exists()
        store.rest_from_looking()
        assert not log.exists()
        (tmp_path / "serving.db").rename(tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailable), store.looking() as connection:
            connection.execute(select(tenants))
        (tmp_path / "elsewhere").rename(tmp_path / "serving.db")
        with store.looking() as connection:
            assert len(connection.execute(select(tenants)).all()) == 1


def test_a_look_up_that_outlives_its_store_leaves_the_file_complete(tmp_path: Path) -> None:
    """A gateway that ends does not wait for its threads: what is still read, or only then, closes its own connection."""
    log = tmp_path / "serving.db-wal"
    store = SqlitePlace(tmp_path).open()
    with store.looking() as connection:
        connection.execute(select(tenants))
        store.close()
        assert log.exists()
    assert not log.exists()
    with store.looking() as connection:
        connection.execute(select(tenants))
    assert not log.exists()


def test_transactions_that_follow_share_a_connection(tmp_path: Path) -> None:
    """One for each would cost more than what it is for; a failed one does not end it for the next."""
    with SqlitePlace(tmp_path).open() as store:
        with store.following() as first:
            first.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
        with pytest.raises(IntegrityError), store.following() as second:
            second.execute(insert(tenants).values(id="t1", name="other", created_at=1.0))
        with store.following() as third:
            assert [found.name for found in third.execute(select(tenants))] == ["acme"]

    assert first is second is third


def test_a_kept_connection_does_not_hide_that_the_file_is_gone(tmp_path: Path) -> None:
    """It holds the old file open, and no transaction goes there; the file that comes back is used again."""
    place = SqlitePlace(tmp_path)
    with place.open() as store:
        with store.following() as connection:
            connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
        place.take_away()
        with pytest.raises(StoreUnavailable), store.following() as connection:
            connection.execute(select(tenants))
        place.bring_back()
        with store.following() as connection:
            assert [found.name for found in connection.execute(select(tenants))] == ["acme"]


def test_a_kept_connection_does_not_write_into_a_file_that_was_replaced(tmp_path: Path) -> None:
    """A database that was put in the other's place, by a restore for instance, gets the next transaction."""
    place, other = SqlitePlace(tmp_path / "a"), SqlitePlace(tmp_path / "b")
    with place.open() as store, other.open() as replacement:
        replacement.close()
        with store.following() as connection:
            connection.execute(insert(tenants).values(id="t1", name="acme", created_at=1.0))
        place.take_away()
        (tmp_path / "b" / "serving.db").rename(tmp_path / "a" / "serving.db")
        with store.following() as connection:
            connection.execute(insert(tenants).values(id="t2", name="newer", created_at=1.0))

    assert ("newer",) in place.execute("select name from tenants")
