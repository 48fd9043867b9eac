"""Usage: the ledger summed up, for bills and for questions. Exact and estimated tokens are never added together, but for limits."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import ColumnElement, FromClause, Select, String, and_, case, cast, func, null, or_, select

from serving.gateway.ledger.grouping import NONE, By
from serving.gateway.ledger.rows import OPEN
from serving.gateway.store.store import Store
from serving.gateway.store.tables import end_users, ledger, tenants

#: Rows in memory at a time where they are passed on one by one.
BATCH_ROWS = 500


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls: those that have all that is said here. Moments in seconds since the epoch, of when calls began."""

    tenant: str | None = None
    key_id: str | None = None
    #: As it is served: an adapter counts under its own name.
    model: str | None = None
    user_ref: str | None = None
    #: The moment itself included.
    since: float | None = None
    #: The moment itself excluded.
    until: float | None = None


ALL = Asked()


class Tokens(msgspec.Struct, frozen=True):
    """Calls and their tokens, all exact or all estimated, and what those cost (micros) that have a price."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int
    price_micros: int = 0


class Sum(msgspec.Struct, frozen=True):
    """One group's total; `open_requests` are running now, or their gateway's end was not noticed yet."""

    group: str
    exact: Tokens
    estimated: Tokens
    open_requests: int
    #: Of an end user who has not been erased, the subject.
    label: str | None = None


class Used(msgspec.Struct, frozen=True):
    """What limits count: prompt and completion tokens, exact and estimated together, and their price (micros)."""

    tokens: int
    price_micros: int


class CallRow(msgspec.Struct, frozen=True):
    """One call as the ledger has it; times in seconds since the epoch."""

    request_id: str
    tenant: str
    key_id: str
    user_ref: str | None
    route: str
    model: str
    base_model: str | None
    priority: str | None
    replica_id: str | None
    started_at: float
    finished_at: float | None
    waited_s: float | None
    ttft_s: float | None
    attempts: int | None
    outcome: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int
    estimated_by: str | None
    price_micros: int | None


class Charge(msgspec.Struct, frozen=True):
    """What calls of one day have in common, and their sums: a line of a bill. Open calls are in none."""

    #: Of UTC, as `2026-11-22`.
    day: str
    tenant_id: str
    tenant: str
    key_id: str
    model: str
    base_model: str | None
    priority: str | None
    #: Its tokens were not said by an engine.
    is_estimated: bool
    requests: int
    #: Requests whose model had no price.
    unpriced_requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int
    price_micros: int


_TENANT = func.coalesce(tenants.c.name, ledger.c.tenant_id)
# Days of UTC.
_DAY = cast(func.date(ledger.c.started_at), String)
_GROUPS: dict[By, ColumnElement[str]] = {
    By.TENANT: _TENANT,
    By.MODEL: func.coalesce(ledger.c.base_model, ledger.c.model),
    By.ADAPTER: case((ledger.c.base_model.is_not(None), ledger.c.model), else_=NONE),
    By.KEY: ledger.c.key_id,
    By.USER: func.coalesce(ledger.c.user_ref, NONE),
    By.PRIORITY: func.coalesce(ledger.c.priority, NONE),
    By.ROUTE: ledger.c.route,
    By.DAY: _DAY,
}
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens", "price_micros")
_IS_OPEN = ledger.c.outcome == OPEN


def totals(
    store: Store, by: By, asked: Asked = ALL, *, after: str | None = None, limit: int | None = None
) -> list[Sum]:
    """Sums over the calls that are asked for, by group; a page of at most `limit` begins behind the group `after`."""
    group = _GROUPS[by]
    exact = and_(~_IS_OPEN, ledger.c.estimated_by.is_(None))
    estimated = and_(~_IS_OPEN, ledger.c.estimated_by.is_not(None))
    label = func.max(end_users.c.subject) if by is By.USER else null()
    query = select(group, label, *_sums(exact), *_sums(estimated), func.count().filter(_IS_OPEN))
    query = query.select_from(_with_names(by)).where(*_conditions(asked))
    if after is not None:
        query = query.where(group > after)
    width = len(Tokens.__struct_fields__)
    with store.snapshot() as connection:
        return [
            Sum(str(name), _tokens(numbers[:width]), _tokens(numbers[width:-1]), int(numbers[-1]), said)
            for name, said, *numbers in connection.execute(query.group_by(group).order_by(group).limit(limit))
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


def open_calls(
    store: Store, tenant_id: str, *, since: float, key_id: str | None = None, model: str | None = None
) -> int:
    """Calls of a tenant, one of its keys or one of its models that began at or after `since` and run, or whose gateway's end was not
    noticed yet.
    """
    query = select(func.count()).where(ledger.c.tenant_id == tenant_id, ledger.c.started_at >= since, _IS_OPEN)
    if key_id is not None:
        query = query.where(ledger.c.key_id == key_id)
    if model is not None:
        query = query.where(ledger.c.model == model)
    with store.snapshot() as connection:
        return connection.scalar(query) or 0


def calls(store: Store, asked: Asked = ALL, *, before: tuple[float, str] | None = None, limit: int) -> list[CallRow]:
    """The newest `limit` calls, oldest first; of those `before` a call, by its `started_at` and `request_id`, where one is named."""
    query = _calls(asked).order_by(ledger.c.started_at.desc(), ledger.c.request_id.desc()).limit(limit)
    if before is not None:
        started_at, request_id = before
        same = and_(ledger.c.started_at == started_at, ledger.c.request_id < request_id)
        # The first condition says nothing more, and is the one that an index has: the pages before need not be read again.
        query = query.where(ledger.c.started_at <= started_at, or_(ledger.c.started_at < started_at, same))
    with store.snapshot() as connection:
        rows = connection.execute(query).mappings().all()
    return [CallRow(**row) for row in reversed(rows)]


def each_call(store: Store, asked: Asked = ALL) -> Iterator[CallRow]:
    """Every call, oldest first, as the ledger was when the first was read; a few hundred are in memory at a time."""
    query = _calls(asked).order_by(ledger.c.started_at)
    with (
        store.snapshot() as connection,
        connection.execute(query, execution_options={"yield_per": BATCH_ROWS}) as found,
    ):
        for row in found.mappings():
            yield CallRow(**row)


def each_charge(store: Store, asked: Asked = ALL) -> Iterator[Charge]:
    """Every line of a bill, by day; in memory as `each_call`."""
    is_estimated = ledger.c.estimated_by.is_not(None)
    kinds = (
        _DAY.label("day"),
        ledger.c.tenant_id,
        _TENANT.label("tenant"),
        *(ledger.c[name] for name in ("key_id", "model", "base_model", "priority")),
        is_estimated.label("is_estimated"),
    )
    sums = {
        "requests": func.count(),
        "unpriced_requests": func.count().filter(ledger.c.price_micros.is_(None)),
        **{name: func.coalesce(func.sum(ledger.c[name]), 0) for name in _COUNTS},
    }
    query = select(*kinds, *(summed.label(name) for name, summed in sums.items()))
    query = query.select_from(_with_names(By.TENANT)).where(~_IS_OPEN, *_conditions(asked))
    query = query.group_by(*kinds).order_by(*kinds)
    with (
        store.snapshot() as connection,
        connection.execute(query, execution_options={"yield_per": BATCH_ROWS}) as found,
    ):
        for row in found.mappings():
            # SQLite has no booleans, and PostgreSQL sums 64-bit integers into decimals.
            numbers = {name: int(row[name]) for name in sums}
            yield Charge(**{**row, **numbers, "is_estimated": bool(row["is_estimated"])})


def _calls(asked: Asked) -> Select[*tuple[object, ...]]:
    named = [_TENANT.label("tenant"), *(ledger.c[name] for name in CallRow.__struct_fields__ if name != "tenant")]
    return select(*named).select_from(_with_names(By.TENANT)).where(*_conditions(asked))


def _with_names(by: By) -> FromClause:
    named = ledger.outerjoin(tenants, tenants.c.id == ledger.c.tenant_id)
    return named.outerjoin(end_users, end_users.c.ref == ledger.c.user_ref) if by is By.USER else named


def _conditions(asked: Asked) -> list[ColumnElement[bool]]:
    equal = {ledger.c.key_id: asked.key_id, ledger.c.model: asked.model, ledger.c.user_ref: asked.user_ref}
    conditions = [column == wanted for column, wanted in equal.items() if wanted is not None]
    if asked.tenant is not None:
        # By its id: the index of a tenant's calls is of ids.
        named = select(tenants.c.id).where(tenants.c.name == asked.tenant).scalar_subquery()
        conditions.append(ledger.c.tenant_id == named)
    if asked.since is not None:
        conditions.append(ledger.c.started_at >= asked.since)
    if asked.until is not None:
        conditions.append(ledger.c.started_at < asked.until)
    return conditions


def _sums(counted: ColumnElement[bool]) -> list[ColumnElement[int]]:
    sums = [func.coalesce(func.sum(ledger.c[name]).filter(counted), 0) for name in _COUNTS]
    return [func.count().filter(counted), *sums]


def _tokens(numbers: list[int]) -> Tokens:
    # PostgreSQL sums 64-bit integers into decimals.
    return Tokens(*(int(number) for number in numbers))
