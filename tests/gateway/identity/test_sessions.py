"""Sessions: they can do what their credential can, and end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from sqlalchemy import Connection, select

from serving.errors import KeyExpired, KeyRevoked, SessionEnded, TenantDisabled
from serving.gateway.identity import people
from serving.gateway.identity.acts import Act, Witness
from serving.gateway.identity.changes import Follower
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of
from serving.gateway.identity.records import Wanted
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.sessions import SESSIONS_MAX, Begun, Sessions
from serving.gateway.identity.sessions import id_of as id_of_session
from serving.gateway.identity.tenants import Tenants
from serving.gateway.nouns import OIDC, Caller, Right, Role
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from serving.gateway.store.tables import end_users, sessions
from tests.clock import Clock

ISSUER = "https://sso.example.com"


class House:
    """A store with a tenant, who is signed in there, and a gateway's view of it."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock, self.wall_clock = store, Clock(), Clock()
        keyring = Keyring.open(store)
        self.registry = Registry(store, keyring, self.wall_clock)
        self.tenant = self.registry.create_tenant("acme", Policy(requests_per_minute=9))
        wanted = Wanted("laptop", (Right.NAME_USERS,), Role.TENANT_ADMIN, Policy(weight=2.0), 7200.0)
        (self.key,) = self.registry.create_keys("acme", 1, wanted)
        self.tenants = Tenants(
            store, keyring, key_cache_s=10, lookup_timeout_s=10, clock=self.clock, wall_clock=self.wall_clock
        )
        self.follower = Follower(store, self.tenants.forget)
        self.acts: list[tuple[Caller, Act]] = []
        self.sessions = Sessions(store, self.witness, lasts_s=3600.0, wall_clock=self.wall_clock)

    def witness(self, caller: Caller) -> Witness:
        def told(_: Connection, act: Act) -> None:
            self.acts.append((caller, act))

        return told

    async def caller(self) -> Caller:
        return await self.tenants.identify(self.key)

    async def person(self) -> Caller:
        """Of single sign-on, and with a name in the database."""
        with self.store.begin() as connection:
            values = {"ref": "r1", "tenant_id": self.tenant.id, "subject": "ada", "created_at": 1.0}
            connection.execute(end_users.insert().values(values))
        caller = await self.tenants.of_tenant("acme")
        return msgspec.structs.replace(caller, key_id=OIDC, user_ref="r1", role=Role.PLATFORM_ADMIN)

    async def shows(self, begun: Begun, *issuers: str) -> Caller:
        """Whom a gateway takes it for, once it knows of all that was changed."""
        self.clock.advance(0.5)
        await self.follower.catch_up()
        # What is asked in the moment of a change is asked anew.
        self.clock.advance(0.1)
        return await self.tenants.of_session(id_of_session(begun.word), frozenset(issuers))


@pytest.fixture
async def house(store: Store) -> AsyncIterator[House]:
    one = House(store)
    with one.tenants, one.sessions:
        await one.follower.catch_up()
        yield one


async def test_a_session_is_its_key_and_no_more(house: House) -> None:
    """Tenant, role, rights and policies are the key's, as they are now; the database has no word that opens anything."""
    caller = await house.caller()
    begun = await house.sessions.begin(caller)
    assert await house.shows(begun) == caller
    with house.store.begin() as connection:
        (row,) = connection.execute(select(sessions)).all()
    assert begun.word not in map(str, row) and house.key not in map(str, row)
    shown = await house.sessions.shown(begun.word)
    assert shown is not None and (shown.key_name, shown.user, shown.ends_at) == ("laptop", None, begun.ends_at)
    ((who, act),) = house.acts
    assert (who, act.kind, act.tenant_id) == (caller, "session.begin", house.tenant.id)


async def test_it_ends_with_its_key_or_its_tenant(house: House) -> None:
    """Within the half second in which gateways learn of anything, and by the same names."""
    begun = await house.sessions.begin(await house.caller())
    house.registry.update_tenant("acme", is_disabled=True)
    with pytest.raises(TenantDisabled):
        await house.shows(begun)
    house.registry.update_tenant("acme", is_disabled=False)
    assert (await house.shows(begun)).tenant == "acme"
    house.registry.revoke_key(str(id_of(house.key)))
    with pytest.raises(KeyRevoked):
        await house.shows(begun)


async def test_it_ends_by_time_its_own_or_its_keys(house: House) -> None:
    """Whichever comes first."""
    first = await house.sessions.begin(await house.caller())
    house.wall_clock.advance(3600.0)
    with pytest.raises(SessionEnded):
        await house.shows(first)
    house.wall_clock.advance(3000.0)
    second = await house.sessions.begin(await house.caller())
    house.wall_clock.advance(600.0)
    with pytest.raises(KeyExpired):
        await house.shows(second)
    assert await house.sessions.shown(first.word) is None, "it is removed when the next one begins"


async def test_signing_out_ends_it_everywhere(house: House) -> None:
    """A copy of the cookie opens nothing afterwards; what there is not can be ended too."""
    caller = await house.caller()
    begun, other = await house.sessions.begin(caller), await house.sessions.begin(caller)
    assert await house.shows(begun) == caller
    for _ in range(2):
        await house.sessions.end(begun.word, caller)
    with pytest.raises(SessionEnded):
        await house.shows(begun)
    assert await house.shows(other) == caller
    assert [act.kind for _, act in house.acts] == ["session.begin", "session.begin", "session.end"]


async def test_a_person_has_the_role_that_the_issuer_said(house: House) -> None:
    """For as long as its issuer is trusted here, and until the person is erased."""
    person = await house.person()
    begun = await house.sessions.begin(person, ISSUER)
    assert await house.shows(begun, ISSUER) == person
    shown = await house.sessions.shown(begun.word)
    assert shown is not None and (shown.key_name, shown.user) == (None, "ada")
    people.erase(house.store, "acme", "ada")
    with pytest.raises(SessionEnded):
        await house.shows(begun, ISSUER)


async def test_a_session_of_an_issuer_that_is_trusted_no_more_has_ended(house: House) -> None:
    """An operator takes it out of the settings, and its people's sessions with it."""
    begun = await house.sessions.begin(await house.person(), ISSUER)
    with pytest.raises(SessionEnded):
        await house.shows(begun, "https://another.example.com")


async def test_the_oldest_of_too_many_ends(house: House) -> None:
    """Of one key; the table does not grow for ever."""
    caller = await house.caller()
    begun = []
    for _ in range(SESSIONS_MAX + 1):
        begun.append(await house.sessions.begin(caller))
        house.wall_clock.advance(1.0)
    with pytest.raises(SessionEnded):
        await house.shows(begun[0])
    assert await house.shows(begun[1]) == await house.shows(begun[-1]) == caller
