"""What handlers work with."""

from __future__ import annotations

from serving.gateway.api.admin.office import Desk, Office
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.repetitions import Repetitions
from serving.gateway.store.store import Store
from tests.gateway.calls import CALLER


def test_a_desk_has_what_its_office_has(store: Store) -> None:
    """One office serves all requests, and each request its own caller."""
    registry = Registry(store, Keyring.open(store), lambda: 0.0)
    desk = Desk(CALLER, Office(store, registry, Repetitions(bytes(32), lambda: 0.0), lambda: 0.0))
    assert (desk.registry, desk.caller) == (registry, CALLER)
