"""What the gateway's tests stand on: a store in either database, and a gateway before one scripted engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serving.config import StoreSettings
from serving.gateway.store.store import Store
from tests.gateway.places import Place, PostgresPlace, SqlitePlace
from tests.gateway.postgres import MIGRATED, Server, running
from tests.gateway.world import World, running_gateway
from tests.scripted_engine import ScriptedEngine


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The session's server, with databases that have this version's tables."""
    home = tmp_path_factory.mktemp("migrated")
    with running() as server:
        for name in MIGRATED:
            server.execute(f"create database {name}")
            (home / "url").write_text(server.url(name))
            Store.open(home, StoreSettings(url_file=home / "url"), may_migrate=True).close()
        yield server


@pytest.fixture
def shared(postgres: Server, tmp_path: Path) -> PostgresPlace:
    """A PostgreSQL database with its tables and nothing in them."""
    return PostgresPlace(tmp_path, postgres, postgres.emptied(MIGRATED[0]))


@pytest.fixture
def unmigrated(postgres: Server, tmp_path: Path) -> Iterator[PostgresPlace]:
    """A PostgreSQL database as its administrator hands it over: empty."""
    with postgres.new_database() as name:
        yield PostgresPlace(tmp_path, postgres, name)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where the store is: the test runs once for each database."""
    if request.param == "sqlite":
        return SqlitePlace(tmp_path)
    found: PostgresPlace = request.getfixturevalue("shared")
    return found


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    """The same, open."""
    with place.open() as store:
        yield store


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as scripted:
        yield scripted


@pytest.fixture
async def world(engine: ScriptedEngine, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway before `engine`, which is ready."""
    async with running_gateway(tmp_path, (engine.url,)) as running:
        yield running
