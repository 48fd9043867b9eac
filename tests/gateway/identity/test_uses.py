"""Uses: the last use of a key, to the minute, in one statement a minute, whichever gateway saw it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from serving.gateway.identity import uses as limits
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of
from serving.gateway.identity.records import Wanted
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.uses import Uses
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.places import Place


class CountedStore(Store):
    """A real store that counts what is written."""

    transactions = 0

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        self.transactions += 1
        with super().begin() as connection:
            yield connection


class World:
    """A store with keys."""

    def __init__(self, place: Place, count: int) -> None:
        self.store = CountedStore.open(place.home, place.settings)
        self.clock = Clock(1_000_000_000.0)
        self.registry = Registry(self.store, Keyring.open(self.store), self.clock)
        self.registry.create_tenant("acme")
        self.ids = [str(id_of(key)) for key in self.registry.create_keys("acme", count, Wanted())]
        self.store.transactions = 0

    def last_used(self) -> list[float | None]:
        by_id = {key.id: key.last_used_at for key in self.registry.keys("acme")}
        return [by_id[key_id] for key_id in self.ids]


@pytest.fixture
def world(place: Place) -> Iterator[World]:
    world = World(place, 3)
    with world.store:
        yield world


async def test_what_gathered_is_written_in_one_statement(world: World) -> None:
    """A thousand calls by two keys: one transaction, and the minute of each. A key that was not used has none."""
    uses = Uses(world.store, world.clock)
    for _ in range(500):
        uses.note(world.ids[0])
        uses.note(world.ids[1])
    await uses.write()
    assert world.store.transactions == 1
    minute = world.clock.now // 60 * 60
    assert world.last_used() == [minute, minute, None]
    await uses.write()
    assert world.store.transactions == 2, "the one that looked"
    uses.close()


async def test_a_later_use_is_never_overwritten_by_an_earlier(world: World) -> None:
    """Another gateway may write late, or its clock be behind."""
    mine, its = Uses(world.store, world.clock), Uses(world.store, Clock(world.clock.now - 600))
    mine.note(world.ids[0])
    its.note(world.ids[0])
    await mine.write()
    await its.write()
    assert world.last_used()[0] == world.clock.now // 60 * 60


async def test_an_outage_loses_no_use(world: World, place: Place) -> None:
    """It is written when the database is back, with the minute in which it was."""
    uses = Uses(world.store, world.clock)
    minutes = []
    place.take_away()
    for key_id in world.ids[:2]:
        uses.note(key_id)
        await uses.write()
        minutes.append(world.clock.now // 60 * 60)
        world.clock.advance(180)
    place.bring_back()
    await uses.write()
    assert world.last_used() == [*minutes, None]


async def test_more_keys_than_a_statement_takes(place: Place) -> None:
    """Are written in several."""
    count = limits.BATCH_MAX + 1
    world = World(place, count)
    with world.store:
        uses = Uses(world.store, world.clock)
        for key_id in world.ids:
            uses.note(key_id)
        await uses.write()
        assert world.store.transactions == 2 and None not in world.last_used()


async def test_a_removed_key_is_no_fault(world: World, place: Place) -> None:
    """It may have been used just before."""
    uses = Uses(world.store, world.clock)
    uses.note("gone")
    await uses.write()
    assert world.last_used() == [None] * 3
