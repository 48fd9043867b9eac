"""Where several gateways count together, each a real one: Valkey alone and as a cluster, PostgreSQL, SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.gateway.admission.counters.redis import RedisTally
from serving.gateway.admission.counters.sql import SqlTally
from serving.gateway.admission.counters.tally import Tally
from tests.gateway import valkey
from tests.gateway.places import PostgresPlace, SqlitePlace
from tests.gateway.valkey import Valkey


@dataclass(frozen=True)
class Ground:
    """A place for tallies: how one is made by a clock, and how all they know is forgotten."""

    tally: Callable[[Callable[[], int] | None], Tally]
    empty: Callable[[], None]


@pytest.fixture(scope="session")
def alone() -> Iterator[Valkey]:
    with valkey.running() as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Valkey]:
    with valkey.running(is_cluster=True) as server:
        yield server


@pytest.fixture(params=["valkey", "cluster", "sqlite", "postgresql"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """The test runs once for each."""
    if request.param in {"valkey", "cluster"}:
        server: Valkey = request.getfixturevalue("alone" if request.param == "valkey" else "cluster")
        url_file = server.url_file()
        server.empty()
        is_cluster = server.is_cluster
        yield Ground(
            lambda clock_us: RedisTally(url_file, is_cluster=is_cluster, timeout_s=10, clock_us=clock_us), server.empty
        )
        return
    place: SqlitePlace | PostgresPlace
    place = SqlitePlace(tmp_path) if request.param == "sqlite" else request.getfixturevalue("shared")
    with place.open() as store:

        def empty() -> None:
            place.execute("delete from counters")
            place.execute("delete from leases")

        yield Ground(lambda clock_us: SqlTally(store, clock_us=clock_us), empty)
