"""Registry: what operators do to tenants and keys, on either database."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import Refusal
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of, mint
from serving.gateway.identity.registry import Registry
from serving.gateway.store.store import Store
from tests.clock import Clock


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


def test_a_key_that_was_not_shown_is_not_made(registry: Registry) -> None:
    """Where `show` raises, nothing was written."""

    def fail(_: str) -> None:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 Its own, whatever it says.
        registry.create_key("acme", show=fail)
    assert registry.keys() == []


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
