"""Acts: every change by an administrator is told to a witness, in its own transaction."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from sqlalchemy import Connection

from serving.errors import Refusal
from serving.gateway.identity.acts import Act, ActKind, difference
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of
from serving.gateway.identity.records import KeyChange
from serving.gateway.identity.registry import Registry
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from tests.clock import Clock


class Seen:
    """A witness that keeps what it is told, or refuses it."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.is_refusing = False

    def __call__(self, connection: Connection, act: Act) -> None:
        if self.is_refusing:
            raise Refusal("nothing is witnessed now")
        self.acts.append(act)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def registry(store: Store, seen: Seen) -> Registry:
    return Registry(store, Keyring.open(store), Clock(), seen)


def test_a_tenants_and_a_keys_life_is_told(registry: Registry, seen: Seen) -> None:
    """Each step once, with the tenant whom it concerns; what was changed has its state before and after."""
    tenant = registry.create_tenant("acme")
    registry.update_tenant("acme", policy=Policy(tokens_per_day=5))
    key_id = str(id_of(registry.create_key("acme", name="ci")))
    registry.update_key(key_id, KeyChange(name="build"))
    new_id = str(id_of(registry.rotate_key(key_id)))
    registry.revoke_key(new_id)

    assert [(act.kind, act.subject) for act in seen.acts] == [
        (ActKind.TENANT_CREATE, tenant.id),
        (ActKind.TENANT_UPDATE, tenant.id),
        (ActKind.KEY_CREATE, key_id),
        (ActKind.KEY_UPDATE, key_id),
        (ActKind.KEY_ROTATE, key_id),
        (ActKind.KEY_REVOKE, new_id),
    ]
    assert {act.tenant_id for act in seen.acts} == {tenant.id}
    assert seen.acts[1].details["after"] == {"policy": {"tokens_per_day": 5}, "revision": 2}
    assert seen.acts[3].details["before"] == {"name": "ci", "revision": 1}
    assert seen.acts[4].details["new_key"] == new_id


def test_the_first_key_is_told(registry: Registry, seen: Seen) -> None:
    """And the tenant that is made for it; a start that changes nothing tells nothing."""
    registry.first_key()
    registry.first_key()
    assert [act.kind for act in seen.acts] == [ActKind.TENANT_CREATE, ActKind.KEY_CREATE]


def test_keys_that_were_not_shown_are_told_as_withdrawn(registry: Registry, seen: Seen) -> None:
    """Who reads of their creation reads of their end."""

    def show(key: str) -> None:
        raise BrokenPipeError

    registry.create_tenant("acme")
    with pytest.raises(BrokenPipeError):
        registry.create_key("acme", show=show)
    assert [act.kind for act in seen.acts[1:]] == [ActKind.KEY_CREATE, ActKind.KEY_WITHDRAW]
    assert seen.acts[1].details["keys"] == seen.acts[2].details["keys"]


@pytest.mark.parametrize(
    "change",
    [
        lambda registry, key_id: registry.create_tenant("other"),
        lambda registry, key_id: registry.update_tenant("acme", is_disabled=True),
        lambda registry, key_id: registry.create_key("acme"),
        lambda registry, key_id: registry.update_key(key_id, KeyChange(name="new")),
        lambda registry, key_id: registry.rotate_key(key_id),
        lambda registry, key_id: registry.revoke_key(key_id),
    ],
)
def test_what_cannot_be_witnessed_is_not_done(
    registry: Registry, seen: Seen, change: Callable[[Registry, str], object]
) -> None:
    """The witness's refusal undoes the change."""
    registry.create_tenant("acme")
    key_id = str(id_of(registry.create_key("acme")))
    before = (registry.tenants(), registry.keys())
    seen.is_refusing = True
    with pytest.raises(Refusal, match="nothing is witnessed"):
        change(registry, key_id)
    assert (registry.tenants(), registry.keys()) == before


def test_no_key_is_told(registry: Registry, seen: Seen) -> None:
    """Acts are kept where many may read them."""
    registry.create_tenant("acme")
    key = registry.create_key("acme")
    key += registry.rotate_key(str(id_of(key)))
    told = msgspec.json.encode(seen.acts).decode()
    assert not any(secret in told for secret in (key[14:57], key[-43:]))


def test_a_difference_has_what_differs_alone() -> None:
    """An auditor sees the change, not the state around it."""
    before, after = Policy(tokens_per_day=1, weight=2.0), Policy(weight=2.0, open_requests=3)
    changed = difference(before, after)
    assert changed["before"] == {"tokens_per_day": 1, "open_requests": None}
    assert changed["after"] == {"tokens_per_day": None, "open_requests": 3}
