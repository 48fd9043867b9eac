"""Live: what is now, over HTTP: one's own use against one's limits, the fleet, and the last hour. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from serving.gateway.admission import limits
from serving.gateway.admission.counters.counter import Kind
from serving.gateway.admission.limits import MICROS, S_US
from serving.gateway.admission.reservations import Held
from serving.gateway.api.admin import reports
from serving.gateway.api.admin.desks import AnyDesk, PlatformDesk, TenantDesk, TenantName, own_tenant
from serving.gateway.api.admin.office import Desk
from serving.gateway.api.admin.reports import TokensShown
from serving.gateway.api.admin.shapes import KeyShown, told
from serving.gateway.api.admin.sight import FleetSeen, HourSeen
from serving.gateway.identity import people
from serving.gateway.ledger import usage
from serving.gateway.ledger.grouping import By
from serving.gateway.nouns import OIDC, Caller, Right, Role
from serving.gateway.policies import Budget, Policy

#: Seconds for which no call is open: the ledger's index is of when calls began.
_OPEN_S = 3600.0

router = APIRouter()

What = Literal[
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
    "tokens_per_month",
    "open_requests",
    "budget",
    "soft_budget",
]


class LimitShown(BaseModel):
    """One limit and what calls have taken of it, on all gateways; budgets in millionths of the currency."""

    what: What
    of: Literal["tenant", "key"]
    model: str | None
    limit: int
    used: int
    resets_at: float | None


class LimitPage(BaseModel):
    """All limits of a tenant."""

    data: list[LimitShown]
    currency: str


class Me(BaseModel):
    """Who asks, what that has used, and what it may use. `today` and `month` are UTC's, and of this key or person alone."""

    tenant: str
    tenant_id: str
    role: Role
    rights: list[Right]
    user: str | None
    key: KeyShown | None
    currency: str
    today: TokensShown
    month: TokensShown
    limits: list[LimitShown]


@router.get("/me", tags=[reports.TAG])
async def show_me(desk: AnyDesk) -> Me:
    """Who asks, what that has used today and this month, and what it may use."""
    caller, now = desk.caller, desk.office.wall_clock()
    key = None if caller.key_id == OIDC else KeyShown.of(desk.registry.key(caller.key_id), now)
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Me(
        tenant=caller.tenant,
        tenant_id=caller.tenant_id,
        role=caller.role,
        rights=sorted(caller.rights),
        user=_user(desk),
        key=key,
        currency=desk.office.currency,
        today=_used(desk, today),
        month=_used(desk, today.replace(day=1)),
        limits=list(_limits(desk, caller)),
    )


@router.get("/tenants/{tenant}/limits", tags=[reports.TAG])
async def show_limits(desk: TenantDesk, tenant: TenantName) -> LimitPage:
    """A tenant's limits, and what its calls have taken of them."""
    found = own_tenant(desk, desk.registry, tenant)
    of_tenant = Caller(found.id, found.name, "", tenant_policy=found.policy)
    return LimitPage(data=list(_limits(desk, of_tenant)), currency=desk.office.currency)


@router.get("/fleet")
async def show_fleet(desk: PlatformDesk) -> Annotated[FleetSeen, told(FleetSeen)]:
    """Models and replicas as they are now, what waits, and the reason where an engine does not start."""
    return desk.office.sight.fleet()


@router.get("/activity")
async def show_activity(desk: PlatformDesk) -> Annotated[HourSeen, told(HourSeen)]:
    """Requests, tokens, times to the first token and kept promises of the last hour, by model. Goodput is `kept` over a slot's seconds;
    Prometheus has the hours of all gateways.
    """
    return desk.office.sight.hour()


def _user(desk: Desk) -> str | None:
    ref = desk.caller.user_ref
    return None if ref is None else people.subject_of(desk.office.store, ref)


def _used(desk: Desk, since: datetime) -> TokensShown:
    caller = desk.caller
    key_id, user_ref = (None, caller.user_ref) if caller.key_id == OIDC else (caller.key_id, None)
    asked = usage.Asked(tenant=caller.tenant, key_id=key_id, user_ref=user_ref, since=since.timestamp())
    parts = [part for it in usage.totals(desk.office.store, By.TENANT, asked) for part in (it.exact, it.estimated)]
    return TokensShown(**{name: sum(getattr(it, name) for it in parts) for name in TokensShown.model_fields})


def _limits(desk: Desk, caller: Caller) -> Iterator[LimitShown]:
    now = desk.office.wall_clock()
    for held in desk.office.sight.levels(caller):
        counted = _counted(held, now)
        if counted.what != limits.BUDGET:
            yield counted
            continue
        policy = caller.key_policy if counted.of == "key" else caller.tenant_policy
        yield from _budgets(counted, policy)
    for slot in limits.everything(caller, now):
        if slot.kind is Kind.OPEN:
            of = limits.subject(slot.name)
            since = now - _OPEN_S
            used = usage.open_calls(desk.office.store, of.tenant_id, since=since, key_id=of.key_id, model=of.model)
            yield _shown(slot.what, slot.name, slot.limit, used, None)


def _budgets(counted: LimitShown, policy: Policy) -> Iterator[LimitShown]:
    """The budget that refuses calls, and the one that warns: one counter has both."""
    budget = policy.monthly_budget or Budget()
    for what, money in (("budget", budget.hard), ("soft_budget", budget.soft)):
        if money is not None:
            yield counted.model_copy(update={"what": what, "limit": round(money * MICROS)})


def _counted(held: Held, now: float) -> LimitShown:
    slot, level = held.slot, held.level
    resets_at = now + level.resets_in_us / S_US
    return _shown(slot.what, slot.name, slot.limit, slot.limit - level.remaining, resets_at)


def _shown(what: Any, name: str, limit: int, used: int, resets_at: float | None) -> LimitShown:
    of = limits.subject(name)
    return LimitShown(
        what=what, of="key" if of.key_id else "tenant", model=of.model, limit=limit, used=used, resets_at=resets_at
    )
