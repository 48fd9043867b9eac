"""Desks: what parameters of several routes of `/admin/v1` mean: who may ask, which page, which revision."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Depends, Header, Path, Query, Request

from serving.gateway.api.admin import authority, shapes
from serving.gateway.api.admin.office import Desk
from serving.gateway.api.admin.shapes import Policy
from serving.gateway.identity.records import Tenant
from serving.gateway.identity.registry import Registry


async def _desk(request: Request) -> Desk:
    desk: Desk = request.scope["desk"]
    return desk


async def _platform_desk(request: Request) -> Desk:
    authority.require_platform_admin(request.scope["desk"].caller)
    return await _desk(request)


async def _tenant_desk(request: Request) -> Desk:
    authority.require_tenant_admin(request.scope["desk"].caller)
    return await _desk(request)


AnyDesk = Annotated[Desk, Depends(_desk)]
TenantDesk = Annotated[Desk, Depends(_tenant_desk)]
PlatformDesk = Annotated[Desk, Depends(_platform_desk)]
TenantName = Annotated[str, Path(pattern=shapes.TENANT_NAME)]
KeyId = Annotated[str, Path(pattern=shapes.KEY_ID)]
NewPolicy = Annotated[Policy, Body()]
Limit = Annotated[int, Query(ge=1, le=shapes.PAGE_MAX, description="How many at most.")]
AfterTenant = Annotated[str | None, Query(pattern=shapes.TENANT_NAME, description="The `next` of the page before.")]
AfterKey = Annotated[str | None, Query(pattern=shapes.KEY_ID, description="The `next` of the page before.")]
IfMatch = Annotated[
    str,
    Header(
        max_length=64,
        pattern=r'^(\*|"[0-9]{1,9}")$',
        description="The `ETag` of what is to be changed, or `*` for any.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, pattern=r"^[!-~]*$", description="Makes a repetition harmless for a day."),
]


def own_tenant(desk: Desk, registry: Registry, name: str) -> Tenant:
    """Raises NotFound for what is not there and what is another's, after the same look-up."""
    tenant = registry.tenant(name)
    authority.require_own(desk.caller, tenant.id)
    return tenant
