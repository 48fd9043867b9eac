"""Memories: what is stored of responses and conversations, shown to administrators, and deleted with files and batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from serving.gateway.api.admin import reports
from serving.gateway.api.admin.desks import TenantDesk, TenantName, own_tenant
from serving.gateway.api.admin.office import Desk
from serving.gateway.api.admin.shapes import told
from serving.gateway.identity.acts import Act, ActKind
from serving.gateway.nouns import Role
from serving.gateway.stored import estate
from serving.gateway.stored.estate import Thing, Whose

#: Things on one page: each may hold megabytes.
PAGE_MAX = 32

router = APIRouter(tags=[reports.TAG])

Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="How many at most.")]


class ThingPage(BaseModel):
    """What is stored, by id, conversations first."""

    data: list[Annotated[Thing, told(Thing)]]
    next: str | None


class Erased(BaseModel):
    """How many responses, conversations, files and batches were deleted."""

    count: int


@router.get("/stored")
async def show_stored(
    desk: TenantDesk,
    tenant: reports.Tenant = None,
    user: reports.Name = None,
    after: reports.After = None,
    limit: Limit = PAGE_MAX,
) -> ThingPage:
    """What is stored of a tenant or of one end user, opened: it says what people asked and were answered. Files and batches are not in
    it: with a key of their tenant they are read by `/v1/files` and `/v1/batches`.
    """
    whose = _whose(desk, tenant, user)
    act = Act(ActKind.STORED_READ, "stored", whose.tenant_id or "", {"user": user})
    desk.office.audit.note(desk.caller, act)
    found, behind = estate.page(desk.office.store, desk.office.vault, whose, after=after or "", limit=limit)
    return ThingPage(data=found, next=behind)


@router.delete("/tenants/{tenant}/stored")
async def erase_stored(desk: TenantDesk, tenant: TenantName, user: reports.Name = None) -> Erased:
    """Delete what is stored of a tenant, or of one end user of it, files and batches included; batches that run are stopped. The sealed
    bytes of files are removed by a running gateway, which begins about ten minutes later at most.
    """
    whose = Whose(own_tenant(desk, desk.registry, tenant).id, user)
    return Erased(count=estate.erase(desk.office.store, whose, desk.office.audit.witness(desk.caller)))


def _whose(desk: Desk, tenant: str | None, user: str | None) -> Whose:
    """What an administrator means, and may: a tenant's alone its own tenant's."""
    if tenant is None and desk.caller.role is Role.PLATFORM_ADMIN:
        return Whose(None, user)
    return Whose(own_tenant(desk, desk.registry, tenant or desk.caller.tenant).id, user)
