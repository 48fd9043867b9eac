"""Schema: which databases this version may use."""

from __future__ import annotations

import pytest

from serving.errors import Refusal
from serving.gateway.cli.opening import migrate
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.store import schema
from tests.clock import Clock
from tests.gateway.places import Place, PostgresPlace, settings_of


def test_an_older_schema_is_refused_until_it_is_migrated(shared: PostgresPlace) -> None:
    """A gateway that came before its migration says what to do."""
    shared.execute("update alembic_version set version_num = '0001'")

    with pytest.raises(Refusal, match="run `serving store migrate` once"):
        shared.open()


def test_a_newer_revision_of_a_known_level_is_used_as_it_is(place: Place) -> None:
    """A release can be taken back: its migrations stay, the version before works on, and its own Job changes nothing."""
    place.open().close()
    place.execute("update alembic_version set version_num = '0999'")

    migrate(settings_of(place))
    with place.open() as store:
        assert Registry(store, Keyring.open(store), Clock()).create_tenant("acme").name == "acme"
    assert place.execute("select version_num from alembic_version") == [("0999",)]


def test_a_newer_level_is_refused(place: Place) -> None:
    """An older version never touches a database whose meaning has changed, nor does its `store migrate`."""
    place.open().close()
    place.execute("update meta set schema_version = 2")

    for refused in (place.open, lambda: migrate(settings_of(place))):
        with pytest.raises(Refusal, match="has schema 2 and this version knows up to 1"):
            refused()


def test_an_empty_database_has_no_revision(unmigrated: PostgresPlace) -> None:
    """And is not current; after the migrations it is, and a second run finds nothing to do."""
    migrate(settings_of(unmigrated))
    with unmigrated.open() as store, store.begin() as connection:
        assert schema.revision_of(connection) == schema.REVISION and schema.is_current(connection, store.name)
        assert not schema.migrate(connection, store.name)


@pytest.mark.parametrize("change", ["delete from meta", "update meta set schema_version = 0"])
def test_a_level_below_ours_is_used(place: Place, change: str) -> None:
    """The row of a first start that was interrupted may be missing."""
    place.open().close()
    place.execute(change)
    with place.open() as store, store.begin() as connection:
        assert schema.is_current(connection, store.name)
