"""What handlers work with."""

from __future__ import annotations

import time

from serving.gateway.api.admin.office import Desk, Office
from serving.gateway.audit import reading
from serving.gateway.audit.audit import Audit
from serving.gateway.audit.checkpoints import Signer
from serving.gateway.audit.reading import Asked
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.repetitions import Repetitions
from serving.gateway.store.store import Store
from tests.gateway.api.admin.test_sight import blind
from tests.gateway.calls import CALLER


def test_what_a_caller_does_is_told_of_that_caller(store: Store) -> None:
    """One office serves all requests, and the audit has who each one's is, together with what it does."""
    registry = Registry(store, Keyring.open(store), time.time)
    audit = Audit(store, Signer(bytes(32)), clock=time.time)
    office = Office(store, registry, Repetitions(bytes(32), time.time), time.time, audit, "USD", blind())
    desk = Desk(CALLER, office)
    with desk.registry.together() as (acts, _):
        tenant = acts.create_tenant("acme")
    (event,) = reading.page(store, Asked(kinds=["tenant.create"]), limit=10).events
    assert (event.subject, event.by["key_id"]) == (tenant.id, CALLER.key_id)
