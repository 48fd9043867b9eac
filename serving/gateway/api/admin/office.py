"""Office: what handlers of `/admin/v1` work with."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from serving.gateway.api.admin.sight import Sight
from serving.gateway.audit.audit import Audit
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.repetitions import Repetitions
from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from serving.gateway.stored.vault import Vault


class Office(msgspec.Struct, frozen=True):
    """What is the same for all requests."""

    store: Store
    registry: Registry
    repetitions: Repetitions
    wall_clock: Callable[[], float]
    audit: Audit
    #: Of prices.
    currency: str
    sight: Sight
    vault: Vault = Vault(None)


class Desk(msgspec.Struct, frozen=True):
    """What one request has."""

    caller: Caller
    office: Office

    @property
    def registry(self) -> Registry:
        """It tells the audit of what this caller does."""
        return self.office.registry.witnessed(self.office.audit.witness(self.caller))
