"""Usage: the ledger summed up, for bills and for questions. Exact and estimated tokens are never added together, but for limits."""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, func, select

from serving.gateway.ledger.grouping import By
from serving.gateway.ledger.rows import OPEN
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger, tenants


class Tokens(msgspec.Struct, frozen=True):
    """Calls and their tokens, all exact or all estimated."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int


class Sum(msgspec.Struct, frozen=True):
    """One group's total; `open_requests` are running now, or their gateway's end was not noticed yet."""

    group: str
    exact: Tokens
    estimated: Tokens
    open_requests: int


class Used(msgspec.Struct, frozen=True):
    """What limits count: prompt and completion tokens, exact and estimated together, and their price (micros)."""

    tokens: int
    price_micros: int


class CallRow(msgspec.Struct, frozen=True):
    """One call as the ledger has it; times in seconds since the epoch."""

    request_id: str
    tenant: str
    key_id: str
    route: str
    model: str
    replica_id: str | None
    started_at: float
    finished_at: float | None
    outcome: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int
    estimated_by: str | None


_GROUPS: dict[By, ColumnElement[str]] = {
    By.TENANT: func.coalesce(tenants.c.name, ledger.c.tenant_id),
    By.MODEL: ledger.c.model,
    By.KEY: ledger.c.key_id,
    By.ROUTE: ledger.c.route,
    # Days of UTC.
    By.DAY: func.date(ledger.c.started_at),
}
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens")


def totals(store: Store, by: By, *, tenant: str | None = None, since: float | None = None) -> list[Sum]:
    """Sums over calls that started at or after `since` (seconds since the epoch), of one tenant or of all."""
    group = _GROUPS[by]
    is_open = ledger.c.outcome == OPEN
    exact = ~is_open & ledger.c.estimated_by.is_(None)
    estimated = ~is_open & ledger.c.estimated_by.is_not(None)
    query = select(group, *_sums(exact), *_sums(estimated), func.count().filter(is_open))
    query = query.select_from(ledger.outerjoin(tenants, tenants.c.id == ledger.c.tenant_id))
    query = query.where(*_asked_for(tenant, since))
    width = len(Tokens.__struct_fields__)
    with store.snapshot() as connection:
        return [
            Sum(str(name), _tokens(numbers[:width]), _tokens(numbers[width:-1]), int(numbers[-1]))
            for name, *numbers in connection.execute(query.group_by(group).order_by(group))
        ]


def used(store: Store, tenant_id: str, *, since: float, key_id: str | None = None, model: str | None = None) -> Used:
    """What a tenant, one of its keys or its calls of one model have used, by calls that started at or after `since`.

    An open call has used nothing yet. Reads the tenant's rows of that time by an index, one by one.
    """
    tokens = func.sum(ledger.c.prompt_tokens + ledger.c.completion_tokens)
    query = select(tokens, func.sum(ledger.c.price_micros)).where(
        ledger.c.tenant_id == tenant_id, ledger.c.started_at >= since
    )
    if key_id is not None:
        query = query.where(ledger.c.key_id == key_id)
    if model is not None:
        query = query.where(ledger.c.model == model)
    with store.snapshot() as connection:
        row = connection.execute(query).one()
    return Used(int(row[0] or 0), int(row[1] or 0))


def calls(store: Store, *, tenant: str | None = None, since: float | None = None, limit: int) -> list[CallRow]:
    """The newest `limit` calls, oldest first."""
    columns = (_GROUPS[By.TENANT].label("tenant"), *ledger.c)
    query = select(*columns).select_from(ledger.outerjoin(tenants, tenants.c.id == ledger.c.tenant_id))
    query = query.where(*_asked_for(tenant, since)).order_by(ledger.c.started_at.desc()).limit(limit)
    with store.snapshot() as connection:
        rows = connection.execute(query).mappings().all()
    return [CallRow(**{name: row[name] for name in CallRow.__struct_fields__}) for row in reversed(rows)]


def _asked_for(tenant: str | None, since: float | None) -> list[ColumnElement[bool]]:
    of_tenant = [] if tenant is None else [tenants.c.name == tenant]
    return of_tenant if since is None else [*of_tenant, ledger.c.started_at >= since]


def _sums(counted: ColumnElement[bool]) -> list[ColumnElement[int]]:
    tokens = [func.coalesce(func.sum(ledger.c[name]).filter(counted), 0) for name in _COUNTS]
    return [func.count().filter(counted), *tokens]


def _tokens(numbers: list[int]) -> Tokens:
    # PostgreSQL sums 64-bit integers into decimals.
    return Tokens(*(int(number) for number in numbers))
