"""End users: one reference a person, on every gateway; none is derived from a name; an outage of the database refuses no one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from serving.config import Settings
from serving.gateway.cli.opening import opened_store
from serving.gateway.identity import end_users as limits
from serving.gateway.identity.changes import Change, Kind, News
from serving.gateway.identity.end_users import EndUsers
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.places import Place, settings_of
from tests.gateway.processes import at_once
from tests.gateway.world import until

#: Long enough for a machine that stalls.
LOOKUP_TIMEOUT_S = 10.0


class Gateway:
    """What one gateway knows of people."""

    def __init__(self, store: Store, remembered_max: int = limits.REMEMBERED_MAX) -> None:
        self.clock = Clock()
        self.users = EndUsers(
            store,
            lookup_timeout_s=LOOKUP_TIMEOUT_S,
            clock=self.clock,
            wall_clock=Clock(),
            remembered_max=remembered_max,
        )


@pytest.fixture
def gateway(store: Store) -> Iterator[Gateway]:
    one = Gateway(store)
    yield one
    one.users.close()


def people(place: Place) -> list[tuple[object, ...]]:
    return place.execute("select ref, tenant_id, subject, stopgap from end_users order by created_at, stopgap")


async def test_a_person_has_one_reference(place: Place, store: Store, gateway: Gateway) -> None:
    """Made at first sight, the same on another gateway, another one in another tenant."""
    ref = await gateway.users.reference("t1", "ada")
    assert await gateway.users.reference("t1", "ada") == await Gateway(store).users.reference("t1", "ada") == ref
    assert len({ref, await gateway.users.reference("t2", "ada"), await gateway.users.reference("t1", "bob")}) == 3
    assert (ref, "t1", "ada", "") in people(place) and len(people(place)) == 3


async def test_a_reference_is_not_made_of_the_name(place: Place, store: Store, gateway: Gateway) -> None:
    """With the row gone, the same name leads to another reference: no one who has the rest can compute it."""
    ref = await gateway.users.reference("t1", "ada")
    place.execute("delete from end_users")
    assert await Gateway(store).users.reference("t1", "ada") != ref


async def test_many_calls_of_a_new_person_ask_once(gateway: Gateway, place: Place) -> None:
    """They wait for one answer."""
    refs = await asyncio.gather(*(gateway.users.reference("t1", "ada") for _ in range(50)))
    assert len(set(refs)) == len(people(place)) == 1


def _meet(settings: Settings) -> list[str]:
    async def references(store: Store) -> list[str]:
        users = Gateway(store).users
        return [await users.reference("t1", f"user-{number}") for number in range(20)]

    with opened_store(settings) as store:
        return asyncio.run(references(store))


def test_several_gateways_that_meet_a_person_at_once_agree(place: Place) -> None:
    """On whoever was first."""
    place.open().close()
    first, *others = at_once(4, _meet, settings_of(place))
    assert len(set(first)) == 20 and all(it == first for it in others)
    assert len(people(place)) == 20


async def test_a_person_who_is_remembered_is_so_through_an_outage(gateway: Gateway, place: Place) -> None:
    """However long it lasts."""
    ref = await gateway.users.reference("t1", "ada")
    place.take_away()
    for _ in range(3):
        gateway.clock.advance(limits.REMEMBERED_S)
        assert await gateway.users.reference("t1", "ada") == ref


async def test_a_person_who_comes_in_an_outage_is_written_down_later(gateway: Gateway, place: Place) -> None:
    """By the reference that the calls have had meanwhile."""
    place.take_away()
    ref = await gateway.users.reference("t1", "ada")
    assert await gateway.users.reference("t1", "ada") == ref
    await gateway.users.write_down()
    place.bring_back()
    await gateway.users.write_down()
    assert people(place) == [(ref, "t1", "ada", "")]
    assert await gateway.users.reference("t1", "ada") == ref


async def test_stopgaps_are_written_down_twice_at_once(gateway: Gateway, place: Place) -> None:
    """As when the gateway stops just then."""
    place.take_away()
    ref = await gateway.users.reference("t1", "ada")
    place.bring_back()
    await asyncio.gather(gateway.users.write_down(), gateway.users.write_down())
    assert people(place) == [(ref, "t1", "ada", "")]


async def test_a_stopgap_leads_to_a_person_who_was_known(store: Store, gateway: Gateway, place: Place) -> None:
    """Two gateways, one outage: both references are that person's, and one of them is used from then on."""
    other = Gateway(store)
    place.take_away()
    mine, its = await gateway.users.reference("t1", "ada"), await other.users.reference("t1", "ada")
    place.bring_back()
    await gateway.users.write_down()
    await other.users.write_down()
    assert mine != its and sorted(people(place)) == sorted([(mine, "t1", "ada", ""), (its, "t1", "ada", its)])
    assert await other.users.reference("t1", "ada") == await gateway.users.reference("t1", "ada") == mine


async def test_stopgaps_are_written_down_by_themselves(gateway: Gateway, place: Place) -> None:
    """When the database is back."""
    task = asyncio.create_task(gateway.users.run())
    place.take_away()
    await gateway.users.reference("t1", "ada")
    place.bring_back()
    await until(lambda: len(people(place)) == 1)
    task.cancel()


async def test_a_stopgap_may_be_gone_when_it_is_written(gateway: Gateway, place: Place) -> None:
    """It was written by another attempt, or found no room any more: the others are written all the same."""
    place.take_away()
    await gateway.users.reference("t1", "ada")
    place.bring_back()
    await asyncio.gather(gateway.users.write_down(), gateway.users.write_down())
    assert len(people(place)) == 1


async def test_a_database_that_failed_is_not_asked_for_a_moment(gateway: Gateway, place: Place) -> None:
    """Calls must not queue behind one that hangs; then it is asked again."""
    place.take_away()
    await gateway.users.reference("t1", "ada")
    place.bring_back()
    await gateway.users.reference("t1", "bob")
    assert people(place) == []
    gateway.clock.advance(limits.RETRY_S)
    await gateway.users.reference("t1", "eve")
    assert [row[2] for row in people(place)] == ["eve"]


async def test_who_was_erased_is_another_person(gateway: Gateway, place: Place) -> None:
    """At once where the change is noted, and nobody else with them; at the latest when the answer is old."""
    ada, bob = [await gateway.users.reference("t1", name) for name in ("ada", "bob")]
    place.execute("delete from end_users")
    gateway.users.forget(News(1, [Change(Kind.END_USER, ada), Change(Kind.KEY, bob)]))
    assert await gateway.users.reference("t1", "ada") != ada
    assert await gateway.users.reference("t1", "bob") == bob
    gateway.clock.advance(limits.REMEMBERED_S)
    assert await gateway.users.reference("t1", "bob") != bob


async def test_people_are_remembered_in_a_bounded_number(store: Store, place: Place) -> None:
    """Of more, those who were not seen for longest are asked for again."""
    gateway = Gateway(store, remembered_max=2)
    refs = [await gateway.users.reference("t1", name) for name in ("ada", "bob", "eve")]
    place.execute("delete from end_users")
    assert [await gateway.users.reference("t1", name) for name in ("bob", "eve")] == refs[1:]
    assert await gateway.users.reference("t1", "ada") != refs[0]
