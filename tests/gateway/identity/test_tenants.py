"""Tenants: which keys open, which do not, and what happens during an outage of the store."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Connection, event

from serving.errors import StoreUnavailable, Unauthenticated
from serving.gateway.identity import tenants as limits
from serving.gateway.identity.changes import Follower
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import KEY_LENGTH, id_of, mint
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.tenants import Tenants
from serving.gateway.nouns import Caller, Right, Role
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.places import Place, SqlitePlace
from tests.gateway.world import until

KEY_CACHE_S = 10.0
#: Long enough for a machine that stalls.
LOOKUP_TIMEOUT_S = 10.0


class CountedStore(Store):
    """A real store that counts what it is asked."""

    transactions = 0

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        self.transactions += 1
        with super().looking() as connection:
            yield connection


class World:
    """A store with one tenant and its key, and a gateway's view of it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.home = place.home
        self.clock = Clock()
        self.wall_clock = Clock()
        self.store = place.open()
        self.keyring = Keyring.open(self.store)
        self.registry = Registry(self.store, self.keyring, self.wall_clock)
        self.tenants = Tenants(
            self.store,
            self.keyring,
            key_cache_s=KEY_CACHE_S,
            lookup_timeout_s=LOOKUP_TIMEOUT_S,
            clock=self.clock,
            wall_clock=self.wall_clock,
        )
        self.registry.create_tenant("acme")
        self.key = self.registry.create_key("acme", name="laptop")

    def identify(self, key: str) -> Caller:
        return asyncio.run(self.tenants.identify(key))


@pytest.fixture
def world(place: Place) -> Iterator[World]:
    world = World(place)
    with world.store:
        with world.tenants:
            yield world
        # A look-up that hung may still hold a connection, which only an open store takes back.
        for thread in threading.enumerate():
            if thread.name.startswith("key-lookup"):
                thread.join(30)


def test_a_key_names_its_tenant(world: World) -> None:
    """A valid key gives the tenant that pays and the id of the key, and nothing of the key's secret."""
    caller = world.identify(world.key)

    assert (caller.tenant, caller.key_id) == ("acme", id_of(world.key))
    assert world.key[-43:] not in repr(caller)


def test_a_caller_has_the_rights_of_its_key(world: World) -> None:
    """And no other key's of the same tenant."""
    loud = world.registry.create_key("acme", allowed=[Right.IGNORE_EOS])
    assert world.identify(loud).rights == {Right.IGNORE_EOS}
    assert world.identify(world.key).rights == frozenset()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "sk-",
        "x" * KEY_LENGTH,
        "sk-abcdefghij-" + "a" * 42 + "é",
        "sk-abcdefghij-" + "a" * 42 + "\n",
        "sk-abcdefghij-" + "a" * 44,
        "sk-" + "a" * 10_000_000,
    ],
)
def test_a_malformed_key_is_refused_without_asking_the_store(world: World, key: str) -> None:
    """What cannot be a key costs neither a hash nor a look-up: it is refused even while the store is away."""
    world.place.take_away()

    with pytest.raises(Unauthenticated):
        world.identify(key)


def test_an_unknown_key_is_refused(world: World) -> None:
    """A well-formed key that was never issued is not let in, and neither is one whose id exists."""
    forged = world.key[:14] + mint()[14:]

    for key in (mint(), forged):
        with pytest.raises(Unauthenticated):
            world.identify(key)


def test_a_key_of_another_pepper_is_refused(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The digests depend on the pepper: a copied database is worth nothing without it."""
    with Store.open(tmp_path_factory.mktemp("thief")) as other:
        thief = Tenants(
            world.store,
            Keyring.open(other),
            key_cache_s=KEY_CACHE_S,
            lookup_timeout_s=LOOKUP_TIMEOUT_S,
            clock=world.clock,
        )

        with thief, pytest.raises(Unauthenticated):
            asyncio.run(thief.identify(world.key))


def test_a_revoked_key_lives_no_longer_than_the_cache(world: World) -> None:
    """Revocation takes effect at the latest when the cached answer ends."""
    world.identify(world.key)
    world.registry.revoke_key(world.key[3:13])
    world.identify(world.key)

    world.clock.advance(KEY_CACHE_S)
    with pytest.raises(Unauthenticated):
        world.identify(world.key)


def test_a_cached_key_ends_at_its_expiry_to_the_moment(world: World) -> None:
    """A key's own end is known with the answer and needs no second look-up."""
    key = world.registry.create_key("acme", lifetime_s=5.0)
    world.identify(key)

    world.wall_clock.advance(5.0)
    with pytest.raises(Unauthenticated):
        world.identify(key)


@pytest.mark.parametrize("moved_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_does_not_lengthen_a_revoked_keys_life(world: World, moved_s: float) -> None:
    """An hour back or forward, by hand or by NTP: revocation takes as long as ever, by the clock that nobody sets."""
    world.identify(world.key)
    world.registry.revoke_key(world.key[3:13])
    world.wall_clock.advance(moved_s)

    world.clock.advance(KEY_CACHE_S)
    with pytest.raises(Unauthenticated):
        world.identify(world.key)


@pytest.mark.parametrize("moved_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_does_not_lengthen_an_outage(world: World, moved_s: float) -> None:
    """After a failure the store is asked again in STORE_RETRY_S, and the outage's grace is as long as it was."""
    world.identify(world.key)
    world.place.take_away()
    world.clock.advance(KEY_CACHE_S)
    world.identify(world.key)
    world.wall_clock.advance(moved_s)
    world.clock.advance(limits.OUTAGE_GRACE_S - KEY_CACHE_S - 1)
    assert world.identify(world.key).tenant == "acme"
    world.place.bring_back()

    fresh = world.registry.create_key("acme")
    world.clock.advance(limits.STORE_RETRY_S)
    assert world.identify(fresh).tenant == "acme"


@pytest.mark.parametrize(("moved_s", "is_let_in"), [(-3600.0, True), (3600.0, False)])
def test_a_keys_own_end_is_a_date(world: World, moved_s: float, is_let_in: bool) -> None:
    """It is compared with the wall clock, cached or not."""
    key = world.registry.create_key("acme", lifetime_s=60.0)
    world.identify(key)
    world.wall_clock.advance(moved_s)
    for _ in range(2):
        if is_let_in:
            assert world.identify(key).tenant == "acme"
        else:
            with pytest.raises(Unauthenticated):
                world.identify(key)
        world.clock.advance(KEY_CACHE_S)


def test_a_disabled_tenant_is_out_and_an_enabled_one_is_back(world: World) -> None:
    """Disabling a tenant ends all of its keys; enabling it brings them back."""
    world.registry.update_tenant("acme", is_disabled=True)
    with pytest.raises(Unauthenticated):
        world.identify(world.key)

    world.registry.update_tenant("acme", is_disabled=False)
    world.clock.advance(KEY_CACHE_S)
    assert world.identify(world.key).tenant == "acme"


def test_a_valid_key_survives_an_outage_for_the_grace_and_no_longer(world: World) -> None:
    """A key that was valid keeps working while the store is away, for OUTAGE_GRACE_S."""
    world.identify(world.key)
    world.place.take_away()

    world.clock.advance(limits.OUTAGE_GRACE_S - 1)
    assert world.identify(world.key).tenant == "acme"
    world.clock.advance(1)
    with pytest.raises(StoreUnavailable):
        world.identify(world.key)


def test_an_unknown_key_during_an_outage_is_503_and_not_401(world: World) -> None:
    """Only the store can say that a key is unknown; until it answers, the client may retry."""
    world.place.take_away()

    with pytest.raises(StoreUnavailable) as caught:
        world.identify(world.key)

    assert (caught.value.status, caught.value.code, caught.value.is_retryable) == (503, "store_unavailable", True)


def test_a_store_that_came_back_is_asked_again(world: World) -> None:
    """After STORE_RETRY_S the next caller finds out that the outage is over."""
    world.place.take_away()
    with pytest.raises(StoreUnavailable):
        world.identify(world.key)
    world.place.bring_back()

    world.clock.advance(limits.STORE_RETRY_S)
    assert world.identify(world.key).tenant == "acme"


def test_revocation_wins_over_the_outage_grace(world: World) -> None:
    """A key that the store has called revoked is not revived by an outage."""
    world.identify(world.key)
    world.registry.revoke_key(world.key[3:13])
    world.clock.advance(KEY_CACHE_S)
    with pytest.raises(Unauthenticated):
        world.identify(world.key)
    world.place.take_away()

    world.clock.advance(KEY_CACHE_S)
    with pytest.raises(StoreUnavailable):
        world.identify(world.key)


def test_after_the_last_look_up_nothing_is_held_open(tmp_path: Path) -> None:
    """A moment later: until then the next one uses its connection."""
    log = tmp_path / "serving.db-wal"
    world = World(SqlitePlace(tmp_path))

    async def ask() -> None:
        await world.tenants.identify(world.key)
        assert log.exists()
        await until(lambda: not log.exists())

    with world.store, world.tenants:
        asyncio.run(ask())


def test_simultaneous_callers_share_one_look_up(world: World) -> None:
    """A hundred requests with one new key ask the store once, and all get in."""
    counted = CountedStore.open(world.home, world.place.settings)
    counted.transactions = 0

    async def ask() -> list[Caller]:
        with Tenants(
            counted, world.keyring, key_cache_s=KEY_CACHE_S, lookup_timeout_s=LOOKUP_TIMEOUT_S, clock=world.clock
        ) as tenants:
            return list(await asyncio.gather(*(tenants.identify(world.key) for _ in range(100))))

    with counted:
        callers = asyncio.run(ask())
    assert counted.transactions == 1
    assert {caller.tenant for caller in callers} == {"acme"}


def test_a_caller_who_leaves_does_not_fail_the_others(world: World) -> None:
    """Cancelling one of the requests that wait for the same look-up leaves its answer to the others."""

    async def ask() -> Caller:
        leaver = asyncio.create_task(world.tenants.identify(world.key))
        stayer = asyncio.create_task(world.tenants.identify(world.key))
        await asyncio.sleep(0)
        leaver.cancel()
        return await stayer

    assert asyncio.run(ask()).tenant == "acme"


def test_guesses_do_not_push_valid_keys_out(world: World) -> None:
    """Unknown keys are remembered apart: after a flood of them the valid one still survives an outage."""
    with Tenants(
        world.store,
        world.keyring,
        key_cache_s=KEY_CACHE_S,
        lookup_timeout_s=LOOKUP_TIMEOUT_S,
        clock=world.clock,
        valid_keys_max=1,
        unknown_keys_max=20,
    ) as world.tenants:
        world.identify(world.key)

        async def flood() -> None:
            for _ in range(60):
                with pytest.raises(Unauthenticated):
                    await world.tenants.identify(mint())

        asyncio.run(flood())
        world.place.take_away()
        world.clock.advance(KEY_CACHE_S)
        assert world.identify(world.key).tenant == "acme"


def test_the_event_loop_turns_while_the_store_hangs(world: World) -> None:
    """A look-up that blocks holds up its own caller, for as long as it may, and no other request."""
    tenants = Tenants(world.store, world.keyring, key_cache_s=1, lookup_timeout_s=1, clock=world.clock)

    async def ask() -> int:
        caller = asyncio.create_task(tenants.identify(world.key))
        turns = 0
        while not caller.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(StoreUnavailable):
            await caller
        return turns

    with world.place.everyone_waits(), tenants:
        turns = asyncio.run(ask())
    assert turns > 10


def test_tenants_never_share_a_salt(place: Place) -> None:
    """Two tenants' salts differ, one tenant's never changes, both fit the engine's rule, and none follows from an id."""
    with place.open() as store:
        tenants = [
            Tenants(store, Keyring(pepper), key_cache_s=1, lookup_timeout_s=10, clock=Clock())
            for pepper in (b"p" * 32, b"q" * 32)
        ]
        salts = [tenants[0].cache_salt(Caller(tenant, "acme", "k")) for tenant in ("a", "b", "a")]
        assert salts[0] == salts[2] != salts[1] and all(re.fullmatch(r"[0-9a-f]{64}", salt) for salt in salts)
        assert tenants[1].cache_salt(Caller("a", "acme", "k")) != salts[0]


def refusal(world: World, key: str) -> str | None:
    with pytest.raises(Unauthenticated) as refused:
        world.identify(key)
    return refused.value.code


class SeenStore(Store):
    """A real store that shows what its database is asked."""

    asked: list[tuple[str, object]]

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        with super().looking() as connection:
            event.listen(connection, "before_cursor_execute", self._see)
            try:
                yield connection
            finally:
                event.remove(connection, "before_cursor_execute", self._see)

    def _see(self, *seen: Any) -> None:
        _, _, statement, parameters, *_ = seen
        self.asked.append((statement, parameters))


def work(world: World, key: str) -> tuple[Counter[str], list[tuple[str, object]]]:
    """All that is done to refuse a key that was never seen: lines of code, by thread, and what the database is asked."""
    lines: Counter[str] = Counter()

    def trace(frame: FrameType, kind: str, _: object) -> Any:
        if "identity" in frame.f_code.co_filename and kind == "line":
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            lines[f"{threading.current_thread().name.partition('_')[0]} {place}"] += 1
        return trace

    seen = SeenStore.open(world.home, world.place.settings)
    seen.asked = []
    tenants = Tenants(seen, world.keyring, key_cache_s=KEY_CACHE_S, lookup_timeout_s=LOOKUP_TIMEOUT_S)
    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        with seen, tenants, pytest.raises(Unauthenticated):
            asyncio.run(tenants.identify(key))
    finally:
        sys.settrace(before)
        threading.settrace(before)
    return lines, seen.asked


def test_a_guess_takes_the_same_work_whatever_is_right_of_it(world: World) -> None:
    """The same lines of code, and the same question, about nothing but an HMAC of the whole key: there is no time to measure.

    Of a guess with an id that exists, and all of its secret but one character, as of one of which nothing is right.
    """
    last = "a" if world.key[-1] != "a" else "b"
    lines, asked = work(world, mint())
    for guess in (world.key[:14] + mint()[14:], world.key[:-1] + last, "sk-" + mint()[3:13] + world.key[13:]):
        its_lines, its_asked = work(world, guess)
        assert its_lines == lines
        ((statement, parameters),) = its_asked
        assert statement == asked[0][0] and _values(parameters) == [world.keyring.digest(guess)]
    assert any(line.startswith("key-lookup") for line in lines), "the look-up's own thread was watched"


def _values(parameters: Any) -> list[bytes]:
    values = parameters.values() if isinstance(parameters, dict) else parameters
    # psycopg wraps what is bytes.
    unwrapped: list[Any] = [getattr(it, "obj", it) for it in values]
    return [bytes(it) for it in unwrapped]


def test_each_fault_of_a_key_has_its_own_code(world: World) -> None:
    """Whoever holds a key learns what has become of it; one that was never ours is just incorrect."""
    revoked, disabled = world.registry.create_key("acme"), world.registry.create_key("acme")
    expiring = world.registry.create_key("acme", lifetime_s=1.0)
    world.registry.revoke_key(id_of(revoked) or "")
    world.wall_clock.advance(1.0)
    assert refusal(world, mint()) == "invalid_api_key"
    assert refusal(world, revoked) == "key_revoked"
    assert refusal(world, expiring) == "key_expired"
    world.registry.update_tenant("acme", is_disabled=True)
    assert refusal(world, disabled) == "tenant_disabled"


def test_a_caller_has_its_policies_and_its_role(world: World) -> None:
    """The tenant's and the key's."""
    ours, its = Policy(tokens_per_day=5), Policy(open_requests=1)
    world.registry.update_tenant("acme", policy=ours)
    caller = world.identify(world.registry.create_key("acme", policy=its, role=Role.TENANT_ADMIN))
    assert (caller.tenant_policy, caller.key_policy, caller.role) == (ours, its, Role.TENANT_ADMIN)


def test_a_tenant_is_known_by_its_name(world: World) -> None:
    """As those need it who show otherwise than by a key that they belong to it."""
    caller = asyncio.run(world.tenants.of_tenant("acme"))
    assert (caller.tenant, caller.tenant_id) == ("acme", world.registry.tenant("acme").id)
    with pytest.raises(Unauthenticated) as refused:
        asyncio.run(world.tenants.of_tenant("nobody"))
    assert refused.value.code == "unknown_tenant"
    world.registry.update_tenant("acme", is_disabled=True)
    world.clock.advance(KEY_CACHE_S)
    with pytest.raises(Unauthenticated) as refused:
        asyncio.run(world.tenants.of_tenant("acme"))
    assert refused.value.code == "tenant_disabled"


def follow(world: World) -> Follower:
    follower = Follower(world.store, world.tenants.forget)
    asyncio.run(follower.catch_up())
    world.clock.advance(0.1)
    return follower


def test_what_is_changed_is_forgotten_at_once_and_nothing_else(world: World) -> None:
    """A revoked key is refused at the next call, though the cache would hold it longer; other keys are not asked for again."""
    other = world.registry.create_key("acme")
    follower = follow(world)
    world.identify(world.key)
    world.identify(other)
    world.registry.revoke_key(id_of(world.key) or "")
    world.clock.advance(0.1)
    asyncio.run(follower.catch_up())

    assert refusal(world, world.key) == "key_revoked"
    world.place.take_away()
    assert world.identify(other).key_id == id_of(other)
    world.place.bring_back()


def test_a_changed_tenant_is_another_at_once(world: World) -> None:
    """All its keys have its new policy."""
    follower = follow(world)
    world.identify(world.key)
    world.registry.update_tenant("acme", policy=Policy(tokens_per_day=5))
    world.clock.advance(0.1)
    asyncio.run(follower.catch_up())
    assert world.identify(world.key).tenant_policy == Policy(tokens_per_day=5)


def test_a_new_tenant_is_no_longer_unknown(world: World) -> None:
    """Also where it was asked for a moment before it was made."""
    follower = follow(world)
    with pytest.raises(Unauthenticated):
        asyncio.run(world.tenants.of_tenant("late"))
    world.registry.create_tenant("late")
    world.clock.advance(0.1)
    asyncio.run(follower.catch_up())
    assert asyncio.run(world.tenants.of_tenant("late")).tenant == "late"
