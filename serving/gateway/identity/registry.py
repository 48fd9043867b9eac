"""Registry: what operators do to tenants and keys. The request path only reads the result (`tenants.py`)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Update, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from serving.errors import Refusal, StoreUnavailable
from serving.gateway.identity import rights
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of, mint
from serving.gateway.nouns import Right
from serving.gateway.store.store import Store, locked, write_private
from serving.gateway.store.tables import keys, tenants

FIRST_TENANT = "default"
FIRST_KEY_NAME = "admin"
FIRST_KEY_FILE = "admin.key"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: Characters of a key's name.
_KEY_NAME_MAX = 64
#: Keys named in one statement; SQLite takes 32,766 variables.
_IDS_MAX = 1000
#: Seconds a key may be given to live, and an old one beside the new: a hundred years, so that every date has four digits.
_LIFETIME_MAX_S = 36_500 * 86_400.0


class Tenant(msgspec.Struct, frozen=True):
    """A paying team. Times are seconds since the epoch."""

    id: str
    name: str
    created_at: float
    disabled_at: float | None = None


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

    def state(self, now: float) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


class _Columns(msgspec.Struct, frozen=True):
    """What keys made together have in common, as the table has it."""

    tenant_id: str
    name: str
    created_at: float
    expires_at: float | None = None
    rights: str | None = None


def _discard(_: str) -> None:
    """Discards a key that is not to be shown."""


class Registry:
    """Tenants and keys of one store. Methods raise Refusal for what cannot be done, StoreUnavailable in an outage."""

    def __init__(self, store: Store, keyring: Keyring, clock: Callable[[], float]) -> None:
        self._store = store
        self._keyring = keyring
        self._clock = clock

    def create_tenant(self, name: str) -> Tenant:
        tenant = Tenant(id=secrets.token_hex(8), name=_checked(name), created_at=self._clock())
        try:
            with self._store.begin() as connection:
                connection.execute(insert(tenants), [msgspec.structs.asdict(tenant)])
        except IntegrityError:
            raise Refusal(f"A tenant called '{name}' exists already.") from None
        return tenant

    def tenants(self) -> list[Tenant]:
        with self._store.begin() as connection:
            return [
                msgspec.convert(row, Tenant, from_attributes=True)
                for row in connection.execute(select(tenants).order_by(tenants.c.name))
            ]

    def update_tenant(self, name: str, *, is_disabled: bool | None = None, new_name: str | None = None) -> Tenant:
        """Disable, enable or rename; None leaves as it is. A disabled tenant keeps its keys and its ledger."""
        try:
            with self._store.begin() as connection:
                before = _tenant_called(connection, name)
                disabled_at = before.disabled_at
                if is_disabled is not None:
                    disabled_at = (disabled_at or self._clock()) if is_disabled else None
                after = msgspec.structs.replace(
                    before, name=_checked(new_name) if new_name else name, disabled_at=disabled_at
                )
                change = update(tenants).where(tenants.c.id == before.id)
                connection.execute(change.values(name=after.name, disabled_at=after.disabled_at))
        except IntegrityError:
            raise Refusal(f"A tenant called '{new_name}' exists already.") from None
        return after

    def create_key(
        self,
        tenant: str,
        *,
        name: str = "",
        lifetime_s: float | None = None,
        allowed: Collection[Right] = (),
        show: Callable[[str], None] = _discard,
    ) -> str:
        """A new key for `tenant`; see `create_keys`."""
        (key,) = self.create_keys(tenant, 1, name=name, lifetime_s=lifetime_s, allowed=allowed, show=show)
        return key

    def create_keys(
        self,
        tenant: str,
        count: int,
        *,
        name: str = "",
        lifetime_s: float | None = None,
        allowed: Collection[Right] = (),
        show: Callable[[str], None] = _discard,
    ) -> list[str]:
        """New keys for `tenant`, which are never seen again but in this return value and by `show`.

        All of them are kept or none, and each is shown once they are: a key that is seen works. Where `show` raises, that
        key and those it was not called for are taken back.
        """
        if len(name) > _KEY_NAME_MAX or not name.isprintable():
            raise Refusal(f"A key's name has at most {_KEY_NAME_MAX} printable characters.")
        if lifetime_s is not None:
            _refuse_long(lifetime_s)
        now, made = self._clock(), [mint() for _ in range(count)]
        expires_at = None if lifetime_s is None else now + lifetime_s
        with self._store.begin() as connection:
            owner = _tenant_called(connection, tenant)
            self._insert_keys(connection, made, _Columns(owner.id, name, now, expires_at, rights.written(allowed)))
        self._show(made, show)
        return made

    def keys(self, tenant: str | None = None) -> list[Key]:
        """Every key, or those of one tenant, oldest first."""
        with self._store.begin() as connection:
            query = _KEYS.order_by(tenants.c.name, keys.c.created_at, keys.c.id)
            if tenant is not None:
                query = query.where(tenants.c.id == _tenant_called(connection, tenant).id)
            return [_key(row) for row in connection.execute(query)]

    def rotate_key(self, key_id: str, *, grace_s: float = 0.0, show: Callable[[str], None] = _discard) -> str:
        """A new key like `key_id`, which itself expires after the grace. A key passes its lifetime and its rights on.

        `show` as for a new one: where it raises, the old key is as it was.
        """
        _refuse_long(grace_s)
        now, key = self._clock(), mint()
        with self._store.begin() as connection:
            old, tenant_id = _key_with_id(connection, key_id)
            if (state := old.state(now)) != "active":
                raise Refusal(f"The key '{key_id}' is {state}: create a new one instead.")
            expires_at, old_expires_at = None, now + grace_s
            if old.expires_at is not None:
                expires_at = now + old.expires_at - old.created_at
                old_expires_at = min(old.expires_at, old_expires_at)
            columns = _Columns(tenant_id, old.name, now, expires_at, rights.written(old.rights))
            self._insert_keys(connection, [key], columns)
            connection.execute(_ending(key_id, old_expires_at))
        self._show([key], show, _ending(key_id, old.expires_at))
        return key

    def revoke_key(self, key_id: str) -> None:
        """Revoke a key. Gateways that have it cached accept it for at most `gateway.key_cache_s` longer."""
        with self._store.begin() as connection:
            _key_with_id(connection, key_id)
            change = update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None))
            connection.execute(change.values(revoked_at=self._clock()))

    def first_key(self) -> str:
        """The administrator's key, kept in `home/admin.key` (0600); made with the tenant "default" when there is none.

        The file decides: a database that was started afresh learns its key again, a key that was revoked is replaced.
        """
        path = self._store.home / FIRST_KEY_FILE
        try:
            with locked(self._store.home):
                key = _read(path) if path.exists() else None
                if key is None or self._has_ended(key):
                    key = mint()
                    write_private(path, key.encode() + b"\n")
                self._admit_first(key, path)
        except OSError as error:
            raise _unusable(path, error) from None
        return key

    def admit_first_key(self, path: Path) -> Key:
        """Register the key in `path`, made beforehand, as tenant default's `admin`; known already, it stays as it is.

        A changed file adds its key. The one before works until it is revoked, and a revoked one stays revoked: this
        runs again with every upgrade.
        """
        try:
            key = _read(path)
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(path, error) from None
        if key is None:
            raise Refusal(
                f"The file {path} does not hold a key: 'sk-', 10 lower-case letters or digits, '-', and 43 letters, "
                "digits, dashes or underscores."
            )
        self._admit_first(key, path)
        return next(known for known in self.keys() if known.id == id_of(key))

    def _has_ended(self, key: str) -> bool:
        known = next((known for known in self.keys() if known.id == id_of(key)), None)
        return known is not None and known.state(self._clock()) != "active"

    def _admit_first(self, key: str, path: Path) -> None:
        now = self._clock()
        with self._store.alone() as connection:
            digest = connection.scalar(select(keys.c.digest).where(keys.c.id == id_of(key)))
            if digest is None:
                self._insert_keys(connection, [key], _Columns(_first_tenant(connection, now), FIRST_KEY_NAME, now))
            elif digest != self._keyring.digest(key):
                raise Refusal(f"The key in {path} is not the one that the database has under its id: delete that file.")

    def _insert_keys(self, connection: Connection, made: Iterable[str], columns: _Columns) -> None:
        same = msgspec.structs.asdict(columns)
        values = [{"id": id_of(key), "digest": self._keyring.digest(key), **same} for key in made]
        connection.execute(insert(keys), values)

    def _show(self, made: Sequence[str], show: Callable[[str], None], also: Update | None = None) -> None:
        """Show keys that are kept; what could not be shown is taken back, and `also` is done then."""
        shown = 0
        try:
            for key in made:
                show(key)
                shown += 1
        except BaseException:
            self._take_back(made[shown:], also)
            raise

    def _take_back(self, unseen: Sequence[str], also: Update | None) -> None:
        ids = [str(id_of(key)) for key in unseen]
        try:
            with self._store.begin() as connection:
                for first in range(0, len(ids), _IDS_MAX):
                    connection.execute(delete(keys).where(keys.c.id.in_(ids[first : first + _IDS_MAX])))
                if also is not None:
                    connection.execute(also)
        except StoreUnavailable as error:
            named = ", ".join(ids[:10]) + (" …" if len(ids) > 10 else "")
            raise Refusal(
                f"{len(ids)} keys were made and could not be shown, and the database cannot take them back "
                f"({error.reason}): revoke {named} with `serving keys revoke`."
            ) from None


_KEYS = select(
    keys.c.id,
    tenants.c.name.label("tenant"),
    keys.c.name,
    keys.c.created_at,
    keys.c.expires_at,
    keys.c.revoked_at,
    keys.c.rights,
    keys.c.tenant_id,
).join_from(keys, tenants)


def _refuse_long(lifetime_s: float) -> None:
    if not 0 <= lifetime_s <= _LIFETIME_MAX_S:
        raise Refusal(
            f"A key can be given 0 to {_LIFETIME_MAX_S / 86_400:,.0f} days; without --expires-days it never ends."
        )


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Refusal(
            "A tenant's name is a letter or digit, then up to 62 letters, digits, dots, dashes or underscores."
        )
    return name


def _tenant_called(connection: Connection, name: str) -> Tenant:
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    if row is None:
        raise Refusal(f"There is no tenant called '{name}'; `serving tenants list` shows those there are.")
    return msgspec.convert(row, Tenant, from_attributes=True)


def _first_tenant(connection: Connection, now: float) -> str:
    found: str | None = connection.scalar(select(tenants.c.id).where(tenants.c.name == FIRST_TENANT))
    if found is not None:
        return found
    tenant_id = secrets.token_hex(8)
    connection.execute(insert(tenants).values(id=tenant_id, name=FIRST_TENANT, created_at=now))
    return tenant_id


def _key_with_id(connection: Connection, key_id: str) -> tuple[Key, str]:
    row = connection.execute(_KEYS.where(keys.c.id == key_id)).one_or_none()
    if row is None:
        raise Refusal(f"There is no key '{key_id}'; `serving keys list` shows those there are.")
    return _key(row), row.tenant_id


def _key(row: Row[*tuple[Any, ...]]) -> Key:
    words = tuple(sorted(rights.read(row.rights)))
    return Key(row.id, row.tenant, row.name, row.created_at, row.expires_at, row.revoked_at, words)


def _ending(key_id: str, expires_at: float | None) -> Update:
    return update(keys).where(keys.c.id == key_id).values(expires_at=expires_at)


def _unusable(path: Path, error: OSError | UnicodeDecodeError) -> Refusal:
    reason = error.strerror if isinstance(error, OSError) else "it is not text"
    return Refusal(f"The file {path} cannot be used: {(reason or 'unknown error').lower()}.")


def _read(path: Path) -> str | None:
    """The key in the file; None when there is no key in it."""
    key = path.read_text().strip()
    return key if id_of(key) else None
