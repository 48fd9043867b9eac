"""Registry: what operators do to tenants and keys, on either database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, update

from serving.errors import Conflict, NotFound, Refusal, StaleRevision
from serving.gateway.identity import changes
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of, mint
from serving.gateway.identity.records import KeyChange, Wanted
from serving.gateway.identity.registry import Registry
from serving.gateway.nouns import Right, Role
from serving.gateway.policies import Limits, Policy
from serving.gateway.store.store import Store
from serving.gateway.store.tables import keys, tenants
from tests.clock import Clock
from tests.gateway.places import Place


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(store: Store, clock: Clock) -> Registry:
    """With one tenant, acme."""
    registry = Registry(store, Keyring.open(store), clock)
    registry.create_tenant("acme")
    return registry


def test_a_tenants_name_is_its_own(registry: Registry) -> None:
    """Two tenants never share one, whether it is given at first or later."""
    registry.create_tenant("other")
    with pytest.raises(Refusal, match="called 'acme' exists already"):
        registry.create_tenant("acme")
    with pytest.raises(Refusal, match="called 'acme' exists already"):
        registry.update_tenant("other", new_name="acme")
    assert sorted(tenant.name for tenant in registry.tenants()) == ["acme", "other"]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a" * 64, "a\n"])
def test_a_name_that_would_not_print_is_refused(registry: Registry, name: str) -> None:
    """Names stand in tables, labels and command lines."""
    with pytest.raises(Refusal, match="A tenant's name is a letter or digit"):
        registry.create_tenant(name)


def test_a_key_is_active_until_it_expires_or_is_revoked(registry: Registry, clock: Clock) -> None:
    """Its state follows from its times alone."""
    registry.create_key("acme", name="short", lifetime_s=10.0)
    revoked = registry.create_key("acme", name="gone")
    registry.revoke_key(str(id_of(revoked)))
    states = {key.name: key.state(clock.now) for key in registry.keys("acme")}
    assert states == {"short": "active", "gone": "revoked"}
    clock.advance(10)
    assert {key.name: key.state(clock.now) for key in registry.keys("acme")}["short"] == "expired"


def test_a_key_is_revoked_once(registry: Registry, clock: Clock) -> None:
    """A second revocation leaves the moment of the first."""
    key_id = str(id_of(registry.create_key("acme")))
    registry.revoke_key(key_id)
    first = registry.keys()[0].revoked_at
    clock.advance(60)
    registry.revoke_key(key_id)
    assert registry.keys()[0].revoked_at == first == clock.now - 60


def test_a_rotated_key_keeps_its_name_tenant_and_lifetime(registry: Registry, clock: Clock) -> None:
    """The old one ends after the grace, and never later than planned."""
    old = registry.create_key("acme", name="ci", lifetime_s=100.0)
    clock.advance(40)
    new = registry.rotate_key(str(id_of(old)), grace_s=1000.0)
    found = {key.id: key for key in registry.keys("acme")}
    assert found[old[3:13]].expires_at == clock.now + 60
    assert (found[new[3:13]].name, found[new[3:13]].expires_at) == ("ci", clock.now + 100)


def test_what_a_newer_version_wrote_outlives_changes_by_this_one(registry: Registry, store: Store) -> None:
    """While gateways are updated one after another: what is renamed or rotated keeps limits, rights and a role unknown here."""
    key_id = str(id_of(registry.create_key("acme")))
    written = {"policy": '{"tokens_per_century":3}'}
    with store.begin() as connection:
        connection.execute(update(tenants).values(**written))
        connection.execute(update(keys).values(rights="later", role="auditor", **written))
    registry.update_tenant("acme", new_name="acme-2")
    registry.update_key(key_id, KeyChange(name="ci"))
    registry.rotate_key(key_id)
    with store.begin() as connection:
        assert list(connection.scalars(select(tenants.c.policy))) == [written["policy"]]
        rows = connection.execute(select(keys.c.name, keys.c.rights, keys.c.role, keys.c.policy)).all()
    assert [tuple(row) for row in rows] == [("ci", "later", "auditor", written["policy"])] * 2


def test_a_key_is_shown_once_it_is_kept(registry: Registry) -> None:
    """A key that is seen is one that works, whatever becomes of the database a moment later."""
    kept: list[bool] = []
    key = registry.create_key(
        "acme", show=lambda key: kept.append(id_of(key) in {it.id for it in registry.keys("acme")})
    )
    registry.rotate_key(
        str(id_of(key)), show=lambda key: kept.append(id_of(key) in {it.id for it in registry.keys("acme")})
    )
    assert kept == [True, True]


@pytest.mark.parametrize("shown", [0, 2])
def test_keys_that_were_not_shown_are_taken_back(registry: Registry, shown: int) -> None:
    """Those that were seen stay; the others are nobody's, and are gone."""
    seen: list[str] = []

    def show(key: str) -> None:
        if len(seen) == shown:
            raise OSError
        seen.append(key)

    with pytest.raises(OSError):  # noqa: PT011 Its own, whatever it says.
        registry.create_keys("acme", 5, show=show)
    assert {key.id for key in registry.keys("acme")} == {id_of(key) for key in seen}


def test_a_rotation_that_was_not_shown_leaves_the_old_key_as_it_was(registry: Registry, store: Store) -> None:
    """With the end that it had, of which gateways learn that saw the other one meanwhile."""
    old = registry.create_key("acme", lifetime_s=100.0)
    (before,) = registry.keys()
    seen: list[int] = []

    def fail(_: str) -> None:
        seen.append(changes.since(store, None).revision)
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 Its own, whatever it says.
        registry.rotate_key(str(id_of(old)), show=fail)
    assert registry.keys() == [before]
    assert Change(Kind.KEY, before.id) in (changes.since(store, seen[0]).changes or [])


def test_keys_that_cannot_be_taken_back_are_named(registry: Registry, place: Place) -> None:
    """The operator revokes them: they exist, and were never seen."""

    def fail(_: str) -> None:
        place.take_away()
        raise OSError

    with pytest.raises(Refusal, match=r"2 keys were made .* revoke \w{10}, \w{10} with `serving keys revoke`"):
        registry.create_keys("acme", 2, show=fail)


def test_many_keys_are_made_at_once_or_not_at_all(registry: Registry) -> None:
    """With one name, end and tenant, each of its own id and secret."""
    made = registry.create_keys("acme", 300, Wanted("class", lifetime_s=60.0))
    found = registry.keys("acme")
    assert len(set(made)) == 300 and {key.id for key in found} == {id_of(key) for key in made}
    assert {(key.name, key.expires_at) for key in found} == {("class", found[0].created_at + 60)}
    with pytest.raises(Refusal, match="There is no tenant"):
        registry.create_keys("nobody", 300)
    assert len(registry.keys()) == 300


def test_a_rotated_key_keeps_its_rights(registry: Registry) -> None:
    """They are listed; a key made without any has none."""
    plain = registry.create_key("acme", name="plain")
    loud = registry.create_key("acme", name="load", allowed=[Right.IGNORE_EOS])
    for key in (plain, loud):
        registry.rotate_key(str(id_of(key)))
    listed = [(key.name, key.rights) for key in registry.keys("acme")]
    assert sorted(listed) == [("load", ("ignore_eos",))] * 2 + [("plain", ())] * 2


def test_the_first_keys_file_decides(registry: Registry, store: Store) -> None:
    """The same key at every start; a new one once it has been revoked."""
    first = registry.first_key()
    assert registry.first_key() == first == (store.home / "admin.key").read_text().strip()
    registry.revoke_key(str(id_of(first)))
    second = registry.first_key()
    assert second != first and registry.first_key() == second


def test_a_prepared_first_key_is_registered_once(registry: Registry, tmp_path: Path) -> None:
    """Every upgrade runs this again; a revoked key stays revoked."""
    path, key = tmp_path / "given.key", mint()
    path.write_text(key + "\n")
    assert registry.admit_first_key(path).tenant == "default"
    registry.revoke_key(str(id_of(key)))
    assert registry.admit_first_key(path).revoked_at is not None
    path.write_text(key[:14] + mint()[14:])
    with pytest.raises(Refusal, match="is not the one that the database has under its id"):
        registry.admit_first_key(path)


BOUNDED = Policy(requests_per_minute=60, models=("gpt-oss-120b",), per_model={"gpt-oss-120b": Limits(open_requests=2)})


def test_a_tenant_and_a_key_have_their_policies(registry: Registry) -> None:
    """As they were given, from the beginning or by a change; what is not named stays."""
    tenant = registry.create_tenant("ward", BOUNDED)
    key_id = id_of(registry.create_key("ward", name="pacs", policy=BOUNDED, role=Role.TENANT_ADMIN)) or ""
    assert registry.tenant("ward") == tenant
    assert (registry.key(key_id).policy, registry.key(key_id).role) == (BOUNDED, Role.TENANT_ADMIN)

    registry.update_tenant("ward", policy=Policy())
    key = registry.update_key(key_id, KeyChange(role=Role.MEMBER))
    assert registry.tenant("ward").policy == Policy()
    assert (key.policy, key.role, key.name) == (BOUNDED, Role.MEMBER, "pacs")


def test_a_change_of_another_state_than_was_meant_is_refused(registry: Registry) -> None:
    """Whoever read it before somebody else changed it is told so, and changes nothing."""
    before = registry.tenant("acme")
    key_id = id_of(registry.create_key("acme")) or ""
    registry.update_tenant("acme", policy=BOUNDED, if_revision=before.revision)
    registry.update_key(key_id, KeyChange(name="one"), if_revision=1)

    with pytest.raises(StaleRevision):
        registry.update_tenant("acme", policy=Policy(), if_revision=before.revision)
    with pytest.raises(StaleRevision):
        registry.update_key(key_id, KeyChange(name="two"), if_revision=1)
    assert (registry.tenant("acme").policy, registry.key(key_id).name) == (BOUNDED, "one")


def test_a_key_passes_on_its_role_and_policy(registry: Registry) -> None:
    """A rotated key may what it could."""
    old = id_of(registry.create_key("acme", policy=BOUNDED, role=Role.PLATFORM_ADMIN)) or ""
    new = id_of(registry.rotate_key(old)) or ""
    assert (registry.key(new).policy, registry.key(new).role) == (BOUNDED, Role.PLATFORM_ADMIN)


def test_a_page_begins_behind_the_last(registry: Registry) -> None:
    """All tenants and all keys come once, in pages of any size."""
    for number in range(5):
        registry.create_tenant(f"t{number}")
    registry.create_keys("t1", 5)
    names: list[str] = []
    while page := registry.tenants(after=names[-1] if names else "", limit=2):
        names += [tenant.name for tenant in page]
    ids: list[str] = []
    while found := registry.keys("t1", after=ids[-1] if ids else "", limit=2):
        ids += [key.id for key in found]
    assert names == [tenant.name for tenant in registry.tenants()]
    assert sorted(ids) == sorted(key.id for key in registry.keys("t1"))


def test_what_is_not_there_and_what_was_ended_are_told_apart(registry: Registry) -> None:
    """One may be asked for again later, the other not."""
    key_id = id_of(registry.create_key("acme")) or ""
    registry.revoke_key(key_id)
    with pytest.raises(Conflict):
        registry.update_key(key_id, KeyChange(name="new"))
    with pytest.raises(NotFound):
        registry.key("abcdefghij")
    with pytest.raises(NotFound):
        registry.tenant("nobody")


def test_acts_together_happen_or_do_not(registry: Registry, store: Store) -> None:
    """One transaction: what fails leaves nothing of what went before it, not even a note for gateways."""
    before = changes.since(store, None).revision
    with pytest.raises(NotFound), registry.together() as (acts, _):  # noqa: PT012 The last one raises.
        acts.update_tenant("acme", is_disabled=True)
        acts.create_key("acme", name="ci")
        acts.update_tenant("nobody", is_disabled=True)
    assert (registry.tenant("acme").disabled_at, registry.keys("acme")) == (None, [])
    assert changes.since(store, None).revision == before
    with registry.together() as (acts, _):
        acts.update_tenant("acme", is_disabled=True)
        acts.create_key("acme", name="ci")
        assert [key.name for key in acts.keys("acme")] == ["ci"]
    assert registry.tenant("acme").disabled_at is not None and len(registry.keys("acme")) == 1


def test_operators_wait_for_one_another_and_for_nothing_else(registry: Registry) -> None:
    """Transactions that change the same things in another order all happen: the database has none to break off."""
    registry.create_tenant("other")

    def change(*names: str) -> None:
        for _ in range(10):
            with registry.together() as (acts, _):
                for name in names:
                    acts.update_tenant(name, policy=Policy(requests_per_minute=1))

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(change, "acme", "other"), threads.submit(change, "other", "acme")]:
            done.result(60)
    assert [tenant.revision for tenant in registry.tenants()] == [21, 21]


def test_a_stale_revocation_is_refused(registry: Registry) -> None:
    """A key that changed since it was read is not revoked by who says which state was meant; a rotation changes it too."""
    key_id = str(id_of(registry.create_key("acme")))
    registry.rotate_key(key_id, grace_s=60)
    with pytest.raises(StaleRevision):
        registry.revoke_key(key_id, if_revision=1)
    registry.revoke_key(key_id, if_revision=2)
    assert registry.key(key_id).revoked_at is not None


def test_a_key_made_elsewhere_is_admitted_once(registry: Registry) -> None:
    """It is known by its secret from then on, with what it was to be; what is no key is refused."""
    key = mint()
    assert registry.known(key) is None
    registry.admit_key("acme", key, Wanted("ci", role=Role.TENANT_ADMIN))
    found = registry.known(key)
    assert found is not None and (found.name, found.tenant, found.role) == ("ci", "acme", Role.TENANT_ADMIN)
    with pytest.raises(Conflict, match="is there already"):
        registry.admit_key("acme", key)
    with pytest.raises(Refusal, match="It does not hold a key"):
        registry.admit_key("acme", "sk-short")


def test_a_secret_under_anothers_id_is_no_known_key(registry: Registry) -> None:
    """The id is public: it opens nothing, and is not taken over."""
    key = registry.create_key("acme")
    with pytest.raises(Refusal, match="is not the one that the database has under that id"):
        registry.known(key[:14] + mint()[14:])
