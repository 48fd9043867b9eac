"""FOCUS: lines of a bill in the columns of the FinOps Open Cost and Usage Specification 1.2 (TEN-21), for charge-back.

https://focus.finops.org/focus-specification/v1-2/. A line is one day of one tenant's key and model, in one class, with exact or
with estimated tokens. Columns that begin with `x_` are ours.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from serving.gateway.ledger.prices import TOKENS, in_currency
from serving.gateway.ledger.usage import Charge

VERSION = "1.2"


class Line(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A line's columns, in the order of the file; None is FOCUS's null.

    All 21 columns that 1.2 makes mandatory, and of the conditional ones those that a line has something to say in.
    """

    billed_cost: str
    billing_account_id: str
    billing_account_name: str
    billing_currency: str
    billing_period_end: str
    billing_period_start: str
    charge_category: str = "Usage"
    #: Nothing is corrected: a call keeps what it was charged.
    charge_class: None = None
    charge_description: str
    charge_frequency: str = "Usage-Based"
    charge_period_end: str
    charge_period_start: str
    consumed_quantity: int
    consumed_unit: str = "Tokens"
    contracted_cost: str
    effective_cost: str
    invoice_issuer_name: str
    list_cost: str
    pricing_quantity: str
    pricing_unit: str = f"{TOKENS} Tokens"
    provider_name: str
    publisher_name: str
    resource_id: str
    resource_name: str
    resource_type: str
    service_category: str = "AI and Machine Learning"
    service_name: str = "Model inference"
    service_subcategory: str = "Generative AI"
    sku_id: str
    sku_meter: str = "Prompt and completion tokens"
    sku_price_id: str
    sub_account_id: str
    sub_account_name: str
    #: Tenants and keys have none.
    tags: None = None
    x_base_model: str | None = msgspec.field(name="x_BaseModel")
    x_cached_prompt_tokens: int = msgspec.field(name="x_CachedPromptTokens")
    x_completion_tokens: int = msgspec.field(name="x_CompletionTokens")
    x_key_id: str = msgspec.field(name="x_KeyId")
    x_priority: str | None = msgspec.field(name="x_Priority")
    x_prompt_tokens: int = msgspec.field(name="x_PromptTokens")
    x_reasoning_tokens: int = msgspec.field(name="x_ReasoningTokens")
    x_requests: int = msgspec.field(name="x_Requests")
    x_tokens_are: str = msgspec.field(name="x_TokensAre")
    x_unpriced_requests: int = msgspec.field(name="x_UnpricedRequests")


#: The columns' names, in the order of the file.
HEADER = tuple(field.encode_name for field in msgspec.structs.fields(Line))


def line(charge: Charge, currency: str, provider: str) -> Line:
    """A line of the bill that `provider`, the company's own platform team, writes to its tenants."""
    begins = datetime.strptime(charge.day, "%Y-%m-%d").replace(tzinfo=UTC)
    month = begins.replace(day=1)
    cost, tokens = in_currency(charge.price_micros), charge.prompt_tokens + charge.completion_tokens
    return Line(
        billed_cost=cost,
        contracted_cost=cost,
        effective_cost=cost,
        list_cost=cost,
        billing_account_id=provider,
        billing_account_name=provider,
        invoice_issuer_name=provider,
        provider_name=provider,
        publisher_name=provider,
        billing_currency=currency,
        billing_period_start=_moment(month),
        billing_period_end=_moment((month + timedelta(days=31)).replace(day=1)),
        charge_period_start=_moment(begins),
        charge_period_end=_moment(begins + timedelta(days=1)),
        charge_description=_description(charge),
        consumed_quantity=tokens,
        pricing_quantity=in_currency(tokens),
        resource_id=charge.model,
        resource_name=charge.model,
        resource_type="Model" if charge.base_model is None else "Adapter",
        sku_id=charge.model,
        sku_price_id=charge.model,
        sub_account_id=charge.tenant_id,
        sub_account_name=charge.tenant,
        x_base_model=charge.base_model,
        x_key_id=charge.key_id,
        x_priority=charge.priority,
        x_prompt_tokens=charge.prompt_tokens,
        x_cached_prompt_tokens=charge.cached_prompt_tokens,
        x_completion_tokens=charge.completion_tokens,
        x_reasoning_tokens=charge.reasoning_tokens,
        x_requests=charge.requests,
        x_unpriced_requests=charge.unpriced_requests,
        x_tokens_are="estimated" if charge.is_estimated else "exact",
    )


def _description(charge: Charge) -> str:
    kind = "estimated" if charge.is_estimated else "as the engine counted them"
    return f"{charge.requests} requests to {charge.model or 'no model'}, tokens {kind}"


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
