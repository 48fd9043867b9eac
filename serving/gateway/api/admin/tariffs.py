"""Tariffs: prices over HTTP, in millionths of the currency for a million tokens. Calls that have ended keep theirs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from serving.errors import ResourceNotFound, StaleRevision
from serving.gateway.api.admin import shapes
from serving.gateway.api.admin.desks import Limit, PlatformDesk, TenantDesk
from serving.gateway.ledger import price_list
from serving.gateway.ledger.prices import PRICE_MICROS_MAX, Price
from serving.gateway.ledger.rows import TEXT_MAX

router = APIRouter()

_MODEL = r"^[!-~]+$"
Model = Annotated[str, Path(pattern=_MODEL, max_length=TEXT_MAX)]
AfterModel = Annotated[
    str | None, Query(pattern=_MODEL, max_length=TEXT_MAX, description="The `next` of the page before.")
]
IfMatch = Annotated[
    str,
    Header(
        max_length=64,
        pattern=r'^(\*|"[0-9]{1,11}-[0-9]{1,11}-[0-9]{1,11}")$',
        description="The `ETag` of the price that is there, or `*` whatever is.",
    ),
]
Micros = Annotated[
    int,
    Strict(),
    Field(ge=0, le=PRICE_MICROS_MAX, description="Millionths of the currency, a million tokens."),
    BeforeValidator(shapes.whole),
]


class PriceNew(BaseModel):
    """What tokens are to cost."""

    model_config = ConfigDict(extra="forbid")

    prompt_micros: Micros
    cached_prompt_micros: Annotated[Micros | None, Field(description="Left out, as other prompt tokens.")] = None
    completion_micros: Micros


class PriceShown(BaseModel):
    """What tokens of a model or an adapter cost."""

    model: str
    prompt_micros: int
    cached_prompt_micros: int
    completion_micros: int


class PricePage(BaseModel):
    """Prices by model; `next` is the `after` of the next page."""

    data: list[PriceShown]
    currency: str
    next: str | None


@router.get("/prices")
async def list_prices(desk: TenantDesk, after: AfterModel = None, limit: Limit = shapes.PAGE) -> PricePage:
    """What tokens cost."""
    by_model = price_list.read(desk.office.store).by_model
    models = [model for model in sorted(by_model) if after is None or model > after][:limit]
    return PricePage(
        data=[_shown(model, by_model[model]) for model in models],
        currency=desk.office.currency,
        next=models[-1] if len(models) == limit else None,
    )


@router.put("/prices/{model:path}")
async def set_price(
    desk: PlatformDesk, model: Model, new: PriceNew, response: Response, if_match: IfMatch
) -> PriceShown:
    """Set a model's or an adapter's price, in place of the one it has."""
    cached = new.prompt_micros if new.cached_prompt_micros is None else new.cached_prompt_micros
    price = Price(new.prompt_micros, cached, new.completion_micros)
    with desk.registry.together() as (acts, connection):
        _require_match(price_list.read_in(connection).by_model.get(model), if_match)
        price_list.put_in(connection, model, price, acts.witness)
    response.headers["etag"] = _tag(price)
    return _shown(model, price)


@router.delete("/prices/{model:path}")
async def remove_price(desk: PlatformDesk, model: Model, if_match: IfMatch) -> PriceShown:
    """Remove a price: calls of this model cost nothing then, and no budget counts them."""
    with desk.registry.together() as (acts, connection):
        there = price_list.read_in(connection).by_model.get(model)
        if there is None:
            raise ResourceNotFound
        _require_match(there, if_match)
        price_list.remove_in(connection, model, acts.witness)
    return _shown(model, there)


@router.get("/prices/{model:path}")
async def show_price(desk: TenantDesk, model: Model, response: Response) -> PriceShown:
    """What tokens of one model cost."""
    price = price_list.read(desk.office.store).by_model.get(model)
    if price is None:
        raise ResourceNotFound
    response.headers["etag"] = _tag(price)
    return _shown(model, price)


def _require_match(there: Price | None, if_match: str) -> None:
    if if_match != "*" and (there is None or _tag(there) != if_match):
        raise StaleRevision("It was changed meanwhile: read it again.")


def _tag(price: Price) -> str:
    return f'"{price.prompt_micros}-{price.cached_prompt_micros}-{price.completion_micros}"'


def _shown(model: str, price: Price) -> PriceShown:
    return PriceShown(
        model=model,
        prompt_micros=price.prompt_micros,
        cached_prompt_micros=price.cached_prompt_micros,
        completion_micros=price.completion_micros,
    )
