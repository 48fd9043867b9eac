"""Reports: usage, calls and audit over HTTP. To read them is an act that the audit has too."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from serving.errors import InvalidRequest
from serving.gateway.api.admin import shapes
from serving.gateway.api.admin.desks import Limit, TenantDesk, own_tenant
from serving.gateway.api.admin.office import Desk
from serving.gateway.audit import reading
from serving.gateway.identity import records
from serving.gateway.identity.acts import Act, ActKind
from serving.gateway.ledger import exports, usage
from serving.gateway.ledger.grouping import By
from serving.gateway.nouns import Role

#: Of a model, a key or a reference in a question.
_NAME_CHARS_MAX = 255
#: The last moment that a database takes, in seconds since the epoch.
_LAST_S = 253_370_764_800.0
# A call's place, as a database can look for it: PostgreSQL takes no text with NUL in it.
_StartedAt = Annotated[float, msgspec.Meta(ge=0, le=_LAST_S)]
_RequestId = Annotated[str, msgspec.Meta(pattern=r"^[!-~]*\Z")]
#: What an entry says of an operator's machine: the platform's business.
_OPERATORS = ("os_user", "login", "host")

#: Routes that read much: they have a thread of their own.
TAG = "reports"
router = APIRouter(tags=[TAG])

Tenant = Annotated[str | None, Query(pattern=shapes.TENANT_NAME, description="One tenant alone.")]
Name = Annotated[str | None, Query(min_length=1, max_length=_NAME_CHARS_MAX, pattern=r"^[!-~]*$")]
_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?", re.IGNORECASE)
_MOMENT_SCHEMA = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}


def _iso(text: object) -> object:
    """Pydantic takes numbers for moments too."""
    if isinstance(text, str) and not _ISO.fullmatch(text):
        raise ValueError("a date or a time in ISO 8601 is wanted")
    return text


Iso = Annotated[datetime, BeforeValidator(_iso), WithJsonSchema(_MOMENT_SCHEMA)]
Moment = Annotated[
    Iso | None, Query(description="ISO 8601, such as 2026-11-22 or 2026-11-22T10:00:00Z; UTC unless it says.")
]
After = Annotated[
    str | None, Query(min_length=1, max_length=1024, pattern=r"^[!-~]*$", description="The `next` of the page before.")
]
# One that there is not would be answered with nothing, as if nothing of the kind had been done.
_KIND = f"^({'|'.join(re.escape(it) for it in sorted({*ActKind, *reading.GATHERED, *reading.OF_CHAINS}))})$"
Kinds = Annotated[
    list[Annotated[str, Field(pattern=_KIND)]] | None,
    Query(max_length=32, description="Such as `key.create`, `call`, `sign_in`; else all."),
]


class As(StrEnum):
    """How a report is written."""

    JSON = "json"
    CSV = "csv"


class TokensShown(BaseModel):
    """Calls and their tokens, and what those cost that have a price, in millionths of the currency."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int
    price_micros: int


class SumShown(BaseModel):
    """One group's total: what engines said, and what was estimated."""

    group: str
    label: str | None
    exact: TokensShown
    estimated: TokensShown
    open_requests: int


class UsagePage(BaseModel):
    """Sums by group; `next` is the `after` of the next page."""

    data: list[SumShown]
    currency: str
    next: str | None


class CallShown(BaseModel):
    """One call as the ledger has it."""

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


class CallPage(BaseModel):
    """Calls, the newest first; `next` is the `after` of the next page."""

    data: list[CallShown]
    next: str | None


class EventShown(BaseModel):
    """What was done, when and by whom."""

    at: float
    kind: str
    writer: str
    number: int
    by: dict[str, Any]
    subject: str
    tenant_id: str
    details: dict[str, Any]


class EventPage(BaseModel):
    """Events, oldest first; `next` is the `after` of the next page."""

    data: list[EventShown]
    next: str | None


_CSV: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/csv": {"schema": {"type": "string"}}},
        "headers": {
            "X-Next": {
                "description": "With CSV, the `after` of the next page, percent-encoded; without it there is none.",
                "schema": {"type": "string"},
            }
        },
    }
}


@router.get("/usage", response_model=UsagePage, responses=_CSV)
async def show_usage(
    desk: TenantDesk,
    by: By = By.TENANT,
    tenant: Tenant = None,
    key: Name = None,
    model: Name = None,
    user: Name = None,
    since: Moment = None,
    until: Moment = None,
    written_as: Annotated[As, Query(alias="format")] = As.JSON,
    after: Annotated[str | None, Query(min_length=1, max_length=_NAME_CHARS_MAX, pattern=r"^[^\x00]*$")] = None,
    limit: Limit = shapes.PAGE,
) -> Any:
    """Requests, tokens and prices, summed up by tenant, model, adapter, key, user, priority, route or day."""
    asked = _asked(desk, tenant, key, model, user, since, until)
    sums = usage.totals(desk.office.store, by, asked, after=after, limit=limit)
    currency = desk.office.currency
    following = sums[-1].group if len(sums) == limit else None
    if written_as is As.CSV:
        return _csv("".join(exports.sums_csv(by.value, sums, currency)), following)
    return UsagePage(data=[SumShown(**msgspec.to_builtins(it)) for it in sums], currency=currency, next=following)


@router.get("/calls", response_model=CallPage, responses=_CSV)
async def show_calls(
    desk: TenantDesk,
    tenant: Tenant = None,
    key: Name = None,
    model: Name = None,
    user: Name = None,
    since: Moment = None,
    until: Moment = None,
    written_as: Annotated[As, Query(alias="format")] = As.JSON,
    after: After = None,
    limit: Limit = shapes.PAGE,
) -> Any:
    """Single calls, the newest first; never what was said in them."""
    asked = _asked(desk, tenant, key, model, user, since, until)
    found = usage.calls(desk.office.store, asked, before=None if after is None else _place(after), limit=limit)
    found.reverse()
    following = _named(found[-1]) if len(found) == limit else None
    if written_as is As.CSV:
        return _csv("".join(exports.calls_csv(found)), following)
    return CallPage(data=[CallShown(**msgspec.structs.asdict(it)) for it in found], next=following)


@router.get("/audit")
async def show_audit(
    desk: TenantDesk,
    tenant: Tenant = None,
    kind: Kinds = None,
    since: Moment = None,
    until: Moment = None,
    after: After = None,
    limit: Limit = shapes.PAGE,
) -> EventPage:
    """Acts of administrators, calls and sign-ins, oldest first; a tenant's administrator sees what concerns its tenant."""
    about = _about(desk, tenant)
    tenant_id = about.id if about else None
    asked = reading.Asked(tenant_id, kind, _epoch(since), _epoch(until))
    told = {"kinds": kind, "since": asked.since, "until": asked.until}
    desk.office.audit.note(desk.caller, Act(ActKind.AUDIT_READ, "audit", tenant_id or "", told))
    page = reading.page(desk.office.store, asked, after=after, limit=limit)
    return EventPage(data=[_shown(desk, it) for it in page.events], next=page.next)


def _asked(
    desk: Desk,
    tenant: str | None,
    key: str | None,
    model: str | None,
    user: str | None,
    since: datetime | None,
    until: datetime | None,
) -> usage.Asked:
    """Which calls; the audit is told of the question."""
    about = _about(desk, tenant)
    asked = usage.Asked(
        tenant=about.name if about else None,
        key_id=key,
        model=model,
        user_ref=user,
        since=_epoch(since),
        until=_epoch(until),
    )
    told = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    desk.office.audit.note(desk.caller, Act(ActKind.USAGE_READ, "usage", about.id if about else "", told))
    return asked


def _about(desk: Desk, tenant: str | None) -> records.Tenant | None:
    """The tenant that a report is about; None for all, which are a platform administrator's to see."""
    if tenant is None and desk.caller.role is Role.PLATFORM_ADMIN:
        return None
    return own_tenant(desk, desk.registry, tenant or desk.caller.tenant)


def _epoch(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    said = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(said.timestamp(), 0.0), _LAST_S)


def _shown(desk: Desk, event: reading.Event) -> EventShown:
    shown = msgspec.structs.asdict(event)
    if desk.caller.role is not Role.PLATFORM_ADMIN:
        shown["by"] = {name: it for name, it in event.by.items() if name not in _OPERATORS}
    return EventShown(**shown)


def _csv(text: str, following: str | None) -> Response:
    """A page has no room for what the next one begins behind: a header says it."""
    headers = {} if following is None else {"x-next": quote(following, safe="")}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


def _named(call: usage.CallRow) -> str:
    """A call's place in the order of calls, as something to send back."""
    return base64.urlsafe_b64encode(msgspec.json.encode((call.started_at, call.request_id))).decode()


def _place(named: str) -> tuple[float, str]:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(named), type=tuple[_StartedAt, _RequestId])
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise InvalidRequest("after: it is the `next` of no page.", param="after") from None
