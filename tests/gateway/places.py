"""Where a test's store is, in each database: how it is opened, and what can happen to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from serving.config import Settings, StoreSettings
from serving.gateway.store.store import Store
from tests.gateway.postgres import STATEMENT_TIMEOUT_MS, Server


class SqlitePlace:
    """A file in the home folder."""

    settings = StoreSettings()

    def __init__(self, home: Path) -> None:
        self.home = home

    def open(self) -> Store:
        return Store.open(self.home)

    def environment(self) -> dict[str, str]:
        return {"SERVING_HOME": str(self.home)}

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        """One statement past the Store."""
        raw = sqlite3.connect(self.home / "serving.db", isolation_level=None)
        try:
            return raw.execute(sql).fetchall()
        finally:
            raw.close()

    def take_away(self) -> None:
        (self.home / "serving.db").rename(self.home / "away")

    def bring_back(self) -> None:
        (self.home / "away").rename(self.home / "serving.db")

    @contextmanager
    def writers_wait(self) -> Iterator[None]:
        """Another connection holds the database, and no writer gets in."""
        raw = sqlite3.connect(self.home / "serving.db", isolation_level=None)
        raw.execute("begin immediate")
        yield
        raw.close()

    @contextmanager
    def everyone_waits(self) -> Iterator[None]:
        """Readers wait too."""
        raw = sqlite3.connect(self.home / "serving.db")
        # Leaving WAL and locking exclusively is the one way to make SQLite's readers wait.
        raw.executescript("pragma journal_mode=delete; begin exclusive")
        yield
        raw.rollback()
        raw.close()


class PostgresPlace:
    """A database of its own on the session's server."""

    def __init__(self, home: Path, server: Server, database: str) -> None:
        self.home = home
        self.server = server
        self.database = database
        url_file = home / "url"
        url_file.write_text(server.url(database, options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS}") + "\n")
        self.settings = StoreSettings(url_file=url_file)

    def open(self) -> Store:
        return Store.open(self.home, self.settings)

    def environment(self) -> dict[str, str]:
        return {"SERVING_HOME": str(self.home), "SERVING_STORE__URL_FILE": str(self.settings.url_file)}

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        return self.server.execute(sql, self.database)

    def take_away(self) -> None:
        self.server.execute(f"alter database {self.database} allow_connections false")
        sessions = f"from pg_stat_activity where datname = '{self.database}'"
        self.server.execute(f"select pg_terminate_backend(pid) {sessions}")

    def bring_back(self) -> None:
        self.server.execute(f"alter database {self.database} allow_connections true")

    @contextmanager
    def writers_wait(self) -> Iterator[None]:
        with self._locked("EXCLUSIVE"):
            yield

    @contextmanager
    def everyone_waits(self) -> Iterator[None]:
        with self._locked("ACCESS EXCLUSIVE"):
            yield

    @contextmanager
    def _locked(self, mode: str) -> Iterator[None]:
        with psycopg.connect(self.server.url(self.database)) as connection:
            connection.execute(f"LOCK TABLE tenants, keys, ledger, gateways IN {mode} MODE".encode())
            yield
            connection.rollback()


Place = SqlitePlace | PostgresPlace


def settings_of(place: Place) -> Settings:
    """All settings of a gateway on this place."""
    return Settings(home=place.home, store=place.settings)
