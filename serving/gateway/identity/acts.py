"""Acts: what administrators do. A witness is told of each in the transaction that does it: what cannot be witnessed is not done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec
from sqlalchemy import Connection


class ActKind(StrEnum):
    """What was done."""

    TENANT_CREATE = "tenant.create"
    TENANT_UPDATE = "tenant.update"
    KEY_CREATE = "key.create"
    KEY_UPDATE = "key.update"
    KEY_ROTATE = "key.rotate"
    KEY_REVOKE = "key.revoke"
    #: Someone signed in to the console, or out of it.
    SESSION_BEGIN = "session.begin"
    SESSION_END = "session.end"
    #: A person's name was removed; by the reference.
    USER_ERASE = "user.erase"
    #: New keys that could not be shown were deleted again.
    KEY_WITHDRAW = "key.withdraw"
    PRICE_SET = "price.set"
    PRICE_REMOVE = "price.remove"
    #: Who is behind references was looked up.
    USERS_READ = "users.read"
    USAGE_READ = "usage.read"
    AUDIT_READ = "audit.read"
    #: Entries older than the settings keep were removed.
    AUDIT_PRUNE = "audit.prune"
    STORE_MIGRATE = "store.migrate"
    STORE_BACKUP = "store.backup"
    STORE_RESTORE = "store.restore"
    #: Stored responses and conversations were shown to an administrator, or deleted with files and batches.
    STORED_READ = "stored.read"
    STORED_ERASE = "stored.erase"
    #: They were sealed with the vault's newest key.
    VAULT_REWRAP = "vault.rewrap"


class Act(msgspec.Struct, frozen=True):
    """One act."""

    kind: str
    #: The id of what it was done to: a tenant's, a key's, a model, an end user's reference.
    subject: str
    #: The id of the tenant whom it concerns; empty: no single one.
    tenant_id: str = ""
    #: What was there before and after, and what else an auditor asks for, as JSON. Never a key, a digest or a prompt.
    details: Mapping[str, object] = {}


#: Called inside the transaction, behind the change and its note for gateways; what it raises undoes them.
Witness = Callable[[Connection, Act], None]


def unwitnessed(connection: Connection, act: Act) -> None:
    """For stores of tests and of measurements, which no auditor reads."""


def difference(before: msgspec.Struct, after: msgspec.Struct) -> dict[str, object]:
    """The fields in which two states differ: `{"before": {…}, "after": {…}}`."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    changed = [name for name in before.__struct_fields__ if old.get(name) != new.get(name)]
    return {"before": {name: old.get(name) for name in changed}, "after": {name: new.get(name) for name in changed}}
