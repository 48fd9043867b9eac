"""Registry: what operators do to tenants and keys. The request path only reads the result (`tenants.py`)."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import msgspec
from sqlalchemy import Connection, Update, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from serving.errors import Conflict, NotFound, Refusal, StoreUnavailable
from serving.gateway import policies
from serving.gateway.identity import changes
from serving.gateway.identity.acts import Act, ActKind, Witness, difference, unwitnessed
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.identity.key_files import key_in, no_key, read_key, unusable
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import id_of, mint
from serving.gateway.identity.records import (
    KEYS,
    PLAIN,
    Columns,
    Key,
    KeyChange,
    Tenant,
    Wanted,
    at_revision,
    changed_columns,
    checked_name,
    columns,
    columns_as_written,
    key_of,
    key_with_id,
    require_lifetime,
    require_one,
    require_sound,
    stale,
    tenant_called,
    tenant_of,
)
from serving.gateway.nouns import Right, Role
from serving.gateway.policies import NO_POLICY, Policy
from serving.gateway.store.store import Store, locked, write_private
from serving.gateway.store.tables import keys, tenants

FIRST_TENANT = "default"
FIRST_KEY_NAME = "admin"
FIRST_KEY_FILE = "admin.key"

#: Keys named in one statement; SQLite takes 32,766 variables.
_IDS_MAX = 1000


def _discard(_: str) -> None:
    """Discards a key that is not to be shown."""


class Registry:
    """Tenants and keys of one store. Methods raise Refusal for what cannot be done, StoreUnavailable in an outage."""

    def __init__(
        self, store: Store, keyring: Keyring, clock: Callable[[], float], witness: Witness = unwitnessed
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._clock = clock
        #: Told of every change, in its transaction.
        self._witness = witness
        #: The transaction that all acts are part of, where there is one.
        self._joined: Connection | None = None

    def witnessed(self, witness: Witness) -> Registry:
        """The same registry in other hands: this witness is told of what it does."""
        return Registry(self._store, self._keyring, self._clock, witness)

    @contextmanager
    def together(self) -> Iterator[tuple[Registry, Connection]]:
        """All acts of the registry that this gives, in one transaction: all of them happen or none.

        What an act raises ends it. Keys made in it are not shown: they are kept only at its end.
        """
        with self._changing() as connection:
            joined = Registry(self._store, self._keyring, self._clock, self._witness)
            joined._joined = connection
            yield joined, connection

    @property
    def witness(self) -> Witness:
        """Told of every change: for acts of others in the same transaction."""
        return self._witness

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._store.begin() if self._joined is None else nullcontext(self._joined)

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """A transaction of an operator; they run one after another, so that none waits for another that waits for it."""
        if self._joined is not None:
            yield self._joined
            return
        with self._store.begin() as connection:
            changes.take_turn(connection)
            yield connection

    def create_tenant(self, name: str, policy: Policy = NO_POLICY) -> Tenant:
        tenant = Tenant(id=secrets.token_hex(8), name=checked_name(name), created_at=self._clock(), policy=policy)
        try:
            with self._changing() as connection:
                values = msgspec.structs.asdict(tenant) | {"policy": policies.written(policy)}
                connection.execute(insert(tenants), [values])
                changes.note(connection, Change(Kind.TENANT, tenant.id))
                made = {"name": name, "policy": msgspec.to_builtins(policy)}
                self._witness(connection, Act(ActKind.TENANT_CREATE, tenant.id, tenant.id, made))
        except IntegrityError:
            raise _taken(name) from None
        return tenant

    def tenants(self, *, after: str = "", limit: int | None = None) -> list[Tenant]:
        """By name: all, or at most `limit` behind the one called `after`."""
        query = select(tenants).where(tenants.c.name > after).order_by(tenants.c.name).limit(limit)
        with self._reading() as connection:
            return [tenant_of(row) for row in connection.execute(query)]

    def tenant(self, name: str) -> Tenant:
        """Raises NotFound."""
        with self._reading() as connection:
            return tenant_called(connection, name)

    def update_tenant(
        self,
        name: str,
        *,
        is_disabled: bool | None = None,
        new_name: str | None = None,
        policy: Policy | None = None,
        if_revision: int | None = None,
    ) -> Tenant:
        """Disable, enable, rename or bound; None leaves as it is. A disabled tenant keeps its keys and its ledger.

        Raises StaleRevision where it has another revision than `if_revision`.
        """
        try:
            with self._changing() as connection:
                before = tenant_called(connection, name)
                disabled_at = before.disabled_at
                if is_disabled is not None:
                    disabled_at = (disabled_at or self._clock()) if is_disabled else None
                after = msgspec.structs.replace(
                    before,
                    name=checked_name(new_name) if new_name else name,
                    disabled_at=disabled_at,
                    policy=before.policy if policy is None else policy,
                    revision=before.revision + 1,
                )
                change = at_revision(tenants, before, if_revision)
                values: dict[str, object] = {"name": after.name, "disabled_at": disabled_at}
                if policy is not None:
                    # Else it stays as it is written, though by a newer version that says more in it.
                    values["policy"] = policies.written(policy)
                require_one(connection, change.values(revision=after.revision, **values))
                changes.note(connection, Change(Kind.TENANT, before.id))
                changed = {"name": before.name, **difference(before, after)}
                self._witness(connection, Act(ActKind.TENANT_UPDATE, before.id, before.id, changed))
        except IntegrityError:
            raise _taken(str(new_name)) from None
        return after

    def create_key(
        self,
        tenant: str,
        *,
        name: str = "",
        lifetime_s: float | None = None,
        allowed: Collection[Right] = (),
        role: Role = Role.MEMBER,
        policy: Policy = NO_POLICY,
        show: Callable[[str], None] = _discard,
    ) -> str:
        """A new key for `tenant`; see `create_keys`."""
        wanted = Wanted(name, tuple(allowed), role, policy, lifetime_s)
        (key,) = self.create_keys(tenant, 1, wanted, show=show)
        return key

    def create_keys(
        self,
        tenant: str,
        count: int,
        wanted: Wanted = PLAIN,
        *,
        show: Callable[[str], None] = _discard,
    ) -> list[str]:
        """New keys for `tenant`, which are never seen again but in this return value and by `show`.

        All of them are kept or none, and each is shown once they are: a key that is seen works. Where `show` raises, that
        key and those it was not called for are taken back.
        """
        require_sound(wanted)
        now, made = self._clock(), [mint() for _ in range(count)]
        with self._changing() as connection:
            owner = tenant_called(connection, tenant)
            self._create_keys(connection, made, columns(owner.id, wanted, now))
        self._show(made, show)
        return made

    def admit_key(self, tenant: str, key: str, wanted: Wanted = PLAIN) -> None:
        """Register a key that was made elsewhere, for `tenant`; raises Refusal for what is no key, Conflict for one there is."""
        require_sound(wanted)
        if id_of(key) is None:
            raise no_key("It")
        with self._changing() as connection:
            owner = tenant_called(connection, tenant)
            if self.known(key) is not None:
                raise Conflict(f"The key '{id_of(key)}' is there already.")
            self._create_keys(connection, [key], columns(owner.id, wanted, self._clock()))

    def known(self, key: str) -> Key | None:
        """A key by its secret; raises Refusal where another has its id."""
        with self._reading() as connection:
            digest = connection.scalar(select(keys.c.digest).where(keys.c.id == id_of(key)))
            if digest is None:
                return None
            if not hmac.compare_digest(digest, self._keyring.digest(key)):
                raise Refusal(f"The key '{id_of(key)}' is not the one that the database has under that id.")
            return key_with_id(connection, str(id_of(key)))

    def keys(self, tenant: str | None = None, *, after: str = "", limit: int | None = None) -> list[Key]:
        """Every key, or those of one tenant, oldest first; with a `limit` by id, that many behind the one called `after`."""
        with self._reading() as connection:
            query = KEYS.order_by(tenants.c.name, keys.c.created_at, keys.c.id)
            if limit is not None:
                query = KEYS.where(keys.c.id > after).order_by(keys.c.id).limit(limit)
            if tenant is not None:
                query = query.where(tenants.c.id == tenant_called(connection, tenant).id)
            return [key_of(row) for row in connection.execute(query)]

    def key(self, key_id: str) -> Key:
        """Raises NotFound."""
        with self._reading() as connection:
            return key_with_id(connection, key_id)

    def update_key(self, key_id: str, change: KeyChange, *, if_revision: int | None = None) -> Key:
        """Give a key another name, role or policy, or other rights.

        Raises StaleRevision where it has another revision than `if_revision`, and Conflict where it was revoked.
        """
        with self._changing() as connection:
            before = key_with_id(connection, key_id)
            if before.revoked_at is not None:
                raise Conflict(f"The key '{key_id}' was revoked: create a new one instead.")
            wanted = Wanted(
                before.name if change.name is None else change.name,
                before.rights if change.allowed is None else change.allowed,
                change.role or before.role,
                before.policy if change.policy is None else change.policy,
            )
            require_sound(wanted)
            changed = changed_columns(change, wanted)
            at = at_revision(keys, before, if_revision)
            require_one(connection, at.values(revision=before.revision + 1, **changed))
            changes.note(connection, Change(Kind.KEY, key_id))
            after = key_with_id(connection, key_id)
            self._witness(connection, Act(ActKind.KEY_UPDATE, key_id, before.tenant_id, difference(before, after)))
            return after

    def rotate_key(self, key_id: str, *, grace_s: float = 0.0, show: Callable[[str], None] = _discard) -> str:
        """A new key like `key_id`, which itself expires after the grace. A key passes its lifetime and its rights on.

        `show` as for a new one: where it raises, the old key is as it was.
        """
        require_lifetime(grace_s)
        now, key = self._clock(), mint()
        with self._changing() as connection:
            old = key_with_id(connection, key_id)
            if (state := old.state(now)) != "active":
                raise Conflict(f"The key '{key_id}' is {state}: create a new one instead.")
            expires_at, old_expires_at = None, now + grace_s
            if old.expires_at is not None:
                expires_at = now + old.expires_at - old.created_at
                old_expires_at = min(old.expires_at, old_expires_at)
            like = columns_as_written(connection, key_id)
            self._insert_keys(
                connection, [key], like | {"tenant_id": old.tenant_id, "created_at": now, "expires_at": expires_at}
            )
            connection.execute(_ending(key_id, old_expires_at, old.revision + 1))
            changes.note(connection, Change(Kind.KEY, key_id))
            followed = {"new_key": id_of(key), "expires_at": expires_at, "old_expires_at": old_expires_at}
            self._witness(connection, Act(ActKind.KEY_ROTATE, key_id, old.tenant_id, followed))
        self._show([key], show, old)
        return key

    def revoke_key(self, key_id: str, *, if_revision: int | None = None) -> None:
        """Revoke a key. Gateways that have it cached refuse it as soon as they know, within two seconds.

        Raises StaleRevision where it has another revision than `if_revision`.
        """
        with self._changing() as connection:
            before = key_with_id(connection, key_id)
            if if_revision not in (None, before.revision):
                raise stale()
            change = update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None))
            connection.execute(change.values(revoked_at=self._clock(), revision=keys.c.revision + 1))
            changes.note(connection, Change(Kind.KEY, key_id))
            was = {"name": before.name, "state": before.state(self._clock())}
            self._witness(connection, Act(ActKind.KEY_REVOKE, key_id, before.tenant_id, was))

    def first_key(self) -> str:
        """The administrator's key, kept in `home/admin.key` (0600); made with the tenant "default" when there is none.

        The file decides: a database that was started afresh learns its key again, a key that was revoked is replaced.
        """
        path = self._store.home / FIRST_KEY_FILE
        try:
            with locked(self._store.home):
                key = key_in(path) if path.exists() else None
                if key is None or self._has_ended(key):
                    key = mint()
                    write_private(path, key.encode() + b"\n")
                self._admit_first(key, path)
        except OSError as error:
            raise unusable(path, error) from None
        return key

    def admit_first_key(self, path: Path) -> Key:
        """Register the key in `path`, made beforehand, as tenant default's `admin`; known already, it stays as it is.

        A changed file adds its key. The one before works until it is revoked, and a revoked one stays revoked: this
        runs again with every upgrade.
        """
        key = read_key(path)
        self._admit_first(key, path)
        return self.key(str(id_of(key)))

    def _has_ended(self, key: str) -> bool:
        try:
            return self.key(str(id_of(key))).state(self._clock()) != "active"
        except NotFound:
            return False

    def _admit_first(self, key: str, path: Path) -> None:
        now = self._clock()
        with self._store.alone() as connection:
            digest = connection.scalar(select(keys.c.digest).where(keys.c.id == id_of(key)))
            if digest is None:
                wanted = Wanted(FIRST_KEY_NAME, role=Role.PLATFORM_ADMIN)
                self._create_keys(connection, [key], columns(self._first_tenant(connection, now), wanted, now))
            elif digest != self._keyring.digest(key):
                raise Refusal(f"The key in {path} is not the one that the database has under its id: delete that file.")

    def _first_tenant(self, connection: Connection, now: float) -> str:
        found: str | None = connection.scalar(select(tenants.c.id).where(tenants.c.name == FIRST_TENANT))
        if found is not None:
            return found
        tenant_id = secrets.token_hex(8)
        connection.execute(insert(tenants).values(id=tenant_id, name=FIRST_TENANT, created_at=now))
        self._witness(connection, Act(ActKind.TENANT_CREATE, tenant_id, tenant_id, {"name": FIRST_TENANT}))
        return tenant_id

    def _create_keys(self, connection: Connection, made: Sequence[str], columns: Columns) -> None:
        self._insert_keys(connection, made, columns.values())
        ids = [str(id_of(key)) for key in made]
        wanted = msgspec.to_builtins(columns.wanted) | {"expires_at": columns.expires_at}
        act = Act(ActKind.KEY_CREATE, ids[0], columns.tenant_id, {"keys": ids, **wanted})
        self._witness(connection, act)

    def _insert_keys(self, connection: Connection, made: Iterable[str], same: Mapping[str, object]) -> None:
        values = [{"id": id_of(key), "digest": self._keyring.digest(key), **same} for key in made]
        connection.execute(insert(keys), values)
        # A guess at one of them may be remembered as unknown: any change makes gateways ask anew for what was.
        changes.note(connection, Change(Kind.KEY, str(values[0]["id"])))

    def _show(self, made: Sequence[str], show: Callable[[str], None], rotated: Key | None = None) -> None:
        """Show keys that are kept; what could not be shown is taken back, and the key that was `rotated` is as it was."""
        shown = 0
        try:
            for key in made:
                show(key)
                shown += 1
        except BaseException:
            self._take_back(made[shown:], rotated)
            raise

    def _take_back(self, unseen: Sequence[str], rotated: Key | None) -> None:
        ids = [str(id_of(key)) for key in unseen]
        try:
            with self._changing() as connection:
                for first in range(0, len(ids), _IDS_MAX):
                    connection.execute(delete(keys).where(keys.c.id.in_(ids[first : first + _IDS_MAX])))
                if rotated is not None:
                    connection.execute(_ending(rotated.id, rotated.expires_at, rotated.revision))
                    changes.note(connection, Change(Kind.KEY, rotated.id))
                self._witness(connection, Act(ActKind.KEY_WITHDRAW, ids[0], details={"keys": ids}))
        except StoreUnavailable as error:
            named = ", ".join(ids[:10]) + (" …" if len(ids) > 10 else "")
            raise Refusal(
                f"{len(ids)} keys were made and could not be shown, and the database cannot take them back "
                f"({error.reason}): revoke {named} with `serving keys revoke`."
            ) from None


def _taken(name: str) -> Conflict:
    return Conflict(f"A tenant called '{name}' exists already.")


def _ending(key_id: str, expires_at: float | None, revision: int) -> Update:
    return update(keys).where(keys.c.id == key_id).values(expires_at=expires_at, revision=revision)
