"""Records: tenants and keys as the store has them: their shapes, what a new one must be, and how rows become them."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Table, Update, select, update

from serving.errors import NotFound, Refusal, StaleRevision
from serving.gateway import policies
from serving.gateway.identity import rights
from serving.gateway.nouns import Right, Role
from serving.gateway.policies import NO_POLICY, Policy
from serving.gateway.store.tables import keys, tenants

#: Of a tenant.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_NAME = re.compile(NAME_PATTERN)
#: Characters of a key's name.
KEY_NAME_MAX = 64
#: Seconds a key may be given to live, and an old one beside the new: a hundred years, so that every date has four digits.
LIFETIME_MAX_S = 36_500 * 86_400.0


class Tenant(msgspec.Struct, frozen=True):
    """A paying team. Times are seconds since the epoch."""

    id: str
    name: str
    created_at: float
    disabled_at: float | None = None
    policy: Policy = NO_POLICY
    #: Counts its changes.
    revision: int = 1


class Key(msgspec.Struct, frozen=True):
    """What may be shown of a key. Times are seconds since the epoch."""

    id: str
    tenant: str
    name: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    #: What it may do that others may not.
    rights: tuple[Right, ...] = ()
    role: Role = Role.MEMBER
    policy: Policy = NO_POLICY
    #: To the minute; None: never.
    last_used_at: float | None = None
    #: Counts its changes.
    revision: int = 1
    tenant_id: str = ""

    def state(self, now: float) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


class Wanted(msgspec.Struct, frozen=True):
    """What a new key is to be."""

    name: str = ""
    allowed: tuple[Right, ...] = ()
    role: Role = Role.MEMBER
    policy: Policy = NO_POLICY
    #: Seconds from now on for which it works; None: for ever.
    lifetime_s: float | None = None


PLAIN = Wanted()


class KeyChange(msgspec.Struct, frozen=True):
    """What of a key is to be otherwise; None leaves it."""

    name: str | None = None
    allowed: tuple[Right, ...] | None = None
    role: Role | None = None
    policy: Policy | None = None


def require_sound(wanted: Wanted) -> None:
    """Raises Refusal for a name that cannot be shown, or a life without an end in the calendar."""
    if len(wanted.name) > KEY_NAME_MAX or not wanted.name.isprintable():
        raise Refusal(f"A key's name has at most {KEY_NAME_MAX} printable characters.")
    if wanted.lifetime_s is not None:
        require_lifetime(wanted.lifetime_s)


def columns_of(wanted: Wanted) -> dict[str, str | None]:
    """What can be changed of a key, as the table has it."""
    return {
        "name": wanted.name,
        "rights": rights.written(wanted.allowed),
        "role": None if wanted.role is Role.MEMBER else wanted.role,
        "policy": policies.written(wanted.policy),
    }


def changed_columns(change: KeyChange, wanted: Wanted) -> dict[str, str | None]:
    """The columns of a change that makes a key as `wanted`. What it leaves is as it was written, by a newer version maybe."""
    said = {"name": change.name, "rights": change.allowed, "role": change.role, "policy": change.policy}
    return {name: value for name, value in columns_of(wanted).items() if said[name] is not None}


def columns_as_written(connection: Connection, key_id: str) -> dict[str, Any]:
    """What can be changed of a key, as the table has it: a newer version may have written more than this one reads."""
    passed = select(keys.c.name, keys.c.rights, keys.c.role, keys.c.policy)
    return dict(connection.execute(passed.where(keys.c.id == key_id)).one()._mapping)


class Columns(msgspec.Struct, frozen=True):
    """What keys made together have in common."""

    tenant_id: str
    created_at: float
    wanted: Wanted
    expires_at: float | None = None

    def values(self) -> dict[str, object]:
        times = {"created_at": self.created_at, "expires_at": self.expires_at}
        return {"tenant_id": self.tenant_id, **times, **columns_of(self.wanted)}


def columns(tenant_id: str, wanted: Wanted, now: float) -> Columns:
    """Of keys that are made now, in seconds since the epoch."""
    return Columns(tenant_id, now, wanted, None if wanted.lifetime_s is None else now + wanted.lifetime_s)


def require_lifetime(lifetime_s: float) -> None:
    """Raises Refusal for what is less than nothing, or longer than `LIFETIME_MAX_S`."""
    if not 0 <= lifetime_s <= LIFETIME_MAX_S:
        raise Refusal(
            f"A key can be given 0 to {LIFETIME_MAX_S / 86_400:,.0f} days; without --expires-days it never ends."
        )


def checked_name(name: str) -> str:
    """A tenant's name as it was given; raises Refusal for what is none."""
    if not _NAME.fullmatch(name):
        raise Refusal(
            "A tenant's name is a letter or digit, then up to 62 letters, digits, dots, dashes or underscores."
        )
    return name


def tenant_called(connection: Connection, name: str) -> Tenant:
    """Raises NotFound."""
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"There is no tenant called '{name}'; `serving tenants list` shows those there are.")
    return tenant_of(row)


def tenant_of(row: Row[*tuple[Any, ...]]) -> Tenant:
    """A row of the table."""
    return Tenant(row.id, row.name, row.created_at, row.disabled_at, policies.read(row.policy), row.revision)


#: Rows for `key_of`.
KEYS = select(
    keys.c.id,
    tenants.c.name.label("tenant"),
    keys.c.name,
    keys.c.created_at,
    keys.c.expires_at,
    keys.c.revoked_at,
    keys.c.rights,
    keys.c.tenant_id,
    keys.c.role,
    keys.c.policy,
    keys.c.last_used_at,
    keys.c.revision,
).join_from(keys, tenants)


def key_with_id(connection: Connection, key_id: str) -> Key:
    """Raises NotFound."""
    row = connection.execute(KEYS.where(keys.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no key '{key_id}'; `serving keys list` shows those there are.")
    return key_of(row)


def key_of(row: Row[*tuple[Any, ...]]) -> Key:
    """A row of `KEYS`."""
    words = tuple(sorted(rights.read(row.rights)))
    return Key(
        row.id,
        row.tenant,
        row.name,
        row.created_at,
        row.expires_at,
        row.revoked_at,
        words,
        rights.role(row.role),
        policies.read(row.policy),
        row.last_used_at,
        row.revision,
        row.tenant_id,
    )


def at_revision(table: Table, before: Tenant | Key, if_revision: int | None) -> Update:
    """A change of what was read as `before`; raises StaleRevision where another state was meant."""
    if if_revision not in (None, before.revision):
        raise stale()
    return update(table).where(table.c.id == before.id, table.c.revision == before.revision)


def require_one(connection: Connection, change: Update) -> None:
    """Make a change that is for one row; raises StaleRevision where it finds none."""
    # Another change came between reading and writing.
    if connection.execute(change).rowcount != 1:
        raise stale()


def stale() -> StaleRevision:
    """Another state was meant."""
    return StaleRevision("It was changed meanwhile: read it again.")
