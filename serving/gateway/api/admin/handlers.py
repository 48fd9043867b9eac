"""Handlers: the routes of `/admin/v1` for tenants, keys and their policies. They run in threads and may block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Response
from pydantic import BaseModel

from serving.gateway.api.admin import authority, shapes
from serving.gateway.api.admin.desks import (
    AfterKey,
    AfterTenant,
    AnyDesk,
    IdempotencyKey,
    IfMatch,
    KeyId,
    Limit,
    NewPolicy,
    PlatformDesk,
    TenantDesk,
    TenantName,
    own_tenant,
)
from serving.gateway.api.admin.office import Desk
from serving.gateway.api.admin.shapes import (
    KeyMade,
    KeyNew,
    KeyPage,
    KeyPatch,
    KeyShown,
    Policy,
    Rotation,
    TenantChange,
    TenantNew,
    TenantPage,
    TenantShown,
    WhoAmI,
)
from serving.gateway.identity.keys import id_of
from serving.gateway.identity.records import Key, KeyChange, Tenant, Wanted
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.repetitions import Asked

router = APIRouter()

ShapeT = TypeVar("ShapeT", bound=BaseModel)


@router.get("/whoami")
async def whoami(desk: AnyDesk) -> WhoAmI:
    """Whose key this is, and what it may do."""
    return WhoAmI.of(desk.caller)


@router.get("/tenants")
async def list_tenants(desk: PlatformDesk, after: AfterTenant = None, limit: Limit = shapes.PAGE) -> TenantPage:
    """Tenants by name."""
    found = desk.registry.tenants(after=after or "", limit=limit)
    return TenantPage(data=[TenantShown.of(it) for it in found], next=found[-1].name if len(found) == limit else None)


@router.post("/tenants", status_code=201)
async def create_tenant(
    desk: PlatformDesk, new: TenantNew, response: Response, idempotency_key: IdempotencyKey = None
) -> TenantShown:
    """Add a tenant."""

    def make(registry: Registry) -> TenantShown:
        return TenantShown.of(registry.create_tenant(new.name, new.policy))

    return _tagged(_once(desk, idempotency_key, ("tenants", new), TenantShown, make), response)


@router.get("/tenants/{tenant}")
async def show_tenant(desk: TenantDesk, tenant: TenantName, response: Response) -> TenantShown:
    """One tenant."""
    return _tagged(TenantShown.of(own_tenant(desk, desk.registry, tenant)), response)


@router.patch("/tenants/{tenant}")
async def update_tenant(
    desk: PlatformDesk, tenant: TenantName, change: TenantChange, response: Response, if_match: IfMatch
) -> TenantShown:
    """Rename, disable, enable or bound a tenant; its keys and its ledger stay."""
    changed = desk.registry.update_tenant(
        tenant,
        is_disabled=change.disabled,
        new_name=change.name,
        policy=change.policy,
        if_revision=_revision(if_match),
    )
    return _tagged(TenantShown.of(changed), response)


@router.get("/tenants/{tenant}/policy", response_model=Policy)
async def show_tenant_policy(desk: TenantDesk, tenant: TenantName, response: Response) -> Any:
    """What a tenant may do, how much of it, in which order."""
    return _policy_of(own_tenant(desk, desk.registry, tenant), response)


@router.put("/tenants/{tenant}/policy", response_model=Policy)
async def set_tenant_policy(
    desk: PlatformDesk, tenant: TenantName, policy: NewPolicy, response: Response, if_match: IfMatch
) -> Any:
    """Give a tenant this policy, in place of the one it has."""
    changed = desk.registry.update_tenant(tenant, policy=policy, if_revision=_revision(if_match))
    return _policy_of(changed, response)


@router.get("/tenants/{tenant}/keys")
async def list_keys_of_tenant(
    desk: TenantDesk, tenant: TenantName, after: AfterKey = None, limit: Limit = shapes.PAGE
) -> KeyPage:
    """Keys of one tenant by id."""
    own_tenant(desk, desk.registry, tenant)
    return _page(desk, desk.registry.keys(tenant, after=after or "", limit=limit), limit)


@router.post("/tenants/{tenant}/keys", status_code=201)
async def create_key(
    desk: TenantDesk, tenant: TenantName, new: KeyNew, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyMade:
    """Make a key; this answer, and repetitions of it, are the only ones that hold its secret."""
    authority.require_grantable(desk.caller, new.role, new.rights)

    def make(registry: Registry) -> KeyMade:
        own_tenant(desk, registry, tenant)
        wanted = Wanted(new.name, new.rights, new.role, new.policy, new.lifetime_s)
        return _made(desk, registry, registry.create_keys(tenant, 1, wanted)[0])

    return _tagged(_once(desk, idempotency_key, ("keys", tenant, new), KeyMade, make), response)


@router.get("/keys")
async def list_keys(desk: PlatformDesk, after: AfterKey = None, limit: Limit = shapes.PAGE) -> KeyPage:
    """Keys of all tenants by id."""
    return _page(desk, desk.registry.keys(after=after or "", limit=limit), limit)


@router.get("/keys/{key_id}")
async def show_key(desk: TenantDesk, key_id: KeyId, response: Response) -> KeyShown:
    """One key; never its secret."""
    return _tagged(_shown(desk, _own_key(desk, desk.registry, key_id)), response)


@router.patch("/keys/{key_id}")
async def update_key(
    desk: TenantDesk, key_id: KeyId, change: KeyPatch, response: Response, if_match: IfMatch
) -> KeyShown:
    """Give a key another name, role or policy, or other rights."""
    revision = _revision(if_match)
    with desk.registry.together() as (acts, _):
        authority.require_below(desk.caller, _own_key(desk, acts, key_id))
        authority.require_grantable(desk.caller, change.role, change.rights)
        wanted = KeyChange(change.name, change.rights, change.role, change.policy)
        changed = acts.update_key(key_id, wanted, if_revision=revision)
    return _tagged(_shown(desk, changed), response)


@router.delete("/keys/{key_id}")
async def revoke_key(desk: TenantDesk, key_id: KeyId, response: Response, if_match: IfMatch) -> KeyShown:
    """Revoke a key: gateways refuse it within two seconds, and it stays in lists and bills."""
    revision = _revision(if_match)
    with desk.registry.together() as (acts, _):
        authority.require_below(desk.caller, _own_key(desk, acts, key_id))
        acts.revoke_key(key_id, if_revision=revision)
        revoked = acts.key(key_id)
    return _tagged(_shown(desk, revoked), response)


@router.post("/keys/{key_id}/rotate", status_code=201)
async def rotate_key(
    desk: TenantDesk, key_id: KeyId, rotation: Rotation, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyMade:
    """Make a key like this one, which itself works for the grace period."""

    def make(registry: Registry) -> KeyMade:
        old = _own_key(desk, registry, key_id)
        authority.require_grantable(desk.caller, old.role, old.rights)
        return _made(desk, registry, registry.rotate_key(key_id, grace_s=rotation.grace_s))

    return _tagged(_once(desk, idempotency_key, ("rotate", key_id, rotation), KeyMade, make), response)


@router.get("/keys/{key_id}/policy", response_model=Policy)
async def show_key_policy(desk: TenantDesk, key_id: KeyId, response: Response) -> Any:
    """What a key may do, besides what its tenant may not."""
    return _policy_of(_own_key(desk, desk.registry, key_id), response)


@router.put("/keys/{key_id}/policy", response_model=Policy)
async def set_key_policy(
    desk: TenantDesk, key_id: KeyId, policy: NewPolicy, response: Response, if_match: IfMatch
) -> Any:
    """Give a key this policy, in place of the one it has."""
    revision = _revision(if_match)
    with desk.registry.together() as (acts, _):
        authority.require_below(desk.caller, _own_key(desk, acts, key_id))
        changed = acts.update_key(key_id, KeyChange(policy=policy), if_revision=revision)
    return _policy_of(changed, response)


def _own_key(desk: Desk, registry: Registry, key_id: str) -> Key:
    key = registry.key(key_id)
    authority.require_own(desk.caller, key.tenant_id)
    return key


def _shown(desk: Desk, key: Key) -> KeyShown:
    return KeyShown.of(key, desk.office.wall_clock())


def _made(desk: Desk, registry: Registry, key: str) -> KeyMade:
    shown = _shown(desk, registry.key(str(id_of(key))))
    return KeyMade(**dict(shown), key=key)


def _page(desk: Desk, found: list[Key], limit: int) -> KeyPage:
    return KeyPage(data=[_shown(desk, it) for it in found], next=found[-1].id if len(found) == limit else None)


def _policy_of(held: Tenant | Key, response: Response) -> Any:
    response.headers["etag"] = f'"{held.revision}"'
    return held.policy


def _tagged(shown: ShapeT, response: Response) -> ShapeT:
    """Its revision as the `ETag` that a change of it names."""
    response.headers["etag"] = f'"{shown.revision}"'  # type: ignore[attr-defined] # all that are changed count it
    return shown


def _revision(if_match: str) -> int | None:
    """The revision that a change is meant for; None for `*`, whichever it is."""
    return None if if_match == "*" else int(if_match.strip('"'))


def _once(
    desk: Desk, key: str | None, request: tuple[object, ...], shape: type[ShapeT], make: Callable[[Registry], ShapeT]
) -> ShapeT:
    """What `make` makes in one transaction; once, where the request has an `Idempotency-Key`."""
    if key is None:
        with desk.registry.together() as (acts, _):
            return make(acts)
    words = [it.model_dump_json() if isinstance(it, BaseModel) else it for it in request]
    asked = Asked(desk.caller, key, msgspec.json.encode(words))
    answer = desk.office.repetitions.once(desk.registry, asked, lambda acts: make(acts).model_dump_json().encode())
    return shape.model_validate_json(answer)
