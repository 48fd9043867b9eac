"""Pricing: `serving prices`: what tokens of each model cost. Gateways use a new price within a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from serving.errors import Refusal
from serving.gateway.cli.printing import AsJson, print_json, print_table, settings_of

if TYPE_CHECKING:
    from serving.gateway.ledger.prices import Price
    from serving.gateway.store.store import Store

prices = typer.Typer(help="What tokens cost, in `gateway.currency` for a million of them.", no_args_is_help=True)


class PriceRow(msgspec.Struct, frozen=True):
    """A price as `prices list --json` prints it, in the currency for a million tokens."""

    model: str
    currency: str
    prompt: str
    cached_prompt: str
    completion: str


@prices.command("list")
def list_prices(context: typer.Context, as_json: AsJson = False) -> None:
    """List every price, for a million tokens."""
    currency = settings_of(context).gateway.currency
    with _store(context) as store:
        from serving.gateway.ledger import price_list

        rows = [_row(model, currency, price) for model, price in price_list.read(store).by_model.items()]
    if as_json:
        print_json(rows)
    else:
        header = ("MODEL", "CURRENCY", "PROMPT", "CACHED", "COMPLETION")
        print_table(header, [(it.model, it.currency, it.prompt, it.cached_prompt, it.completion) for it in rows])


@prices.command("set")
def set_price(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A model, or an adapter: without a price of its own it has its model's.")
    ],
    prompt: Annotated[str, typer.Option(help="For a million prompt tokens, such as 0.15.")],
    completion: Annotated[str, typer.Option(help="For a million completion tokens, reasoning included.")],
    cached_prompt: Annotated[
        str | None, typer.Option("--cached-prompt", help="For prompt tokens that a prefix cache had; else as others.")
    ] = None,
) -> None:
    """Set a model's price; it holds for calls that end from now on."""
    from serving.gateway.cli.opening import audited
    from serving.gateway.ledger import price_list
    from serving.gateway.ledger.prices import Price

    price = Price(_micros(prompt), _micros(prompt if cached_prompt is None else cached_prompt), _micros(completion))
    with audited(settings_of(context)) as (store, witness):
        price_list.put(store, model, price, witness)
    typer.echo(f"{model} has a price; running gateways use it within a second.")


@prices.command("remove")
def remove_price(context: typer.Context, model: str) -> None:
    """Remove a price: calls of this model cost nothing then, and no budget counts them."""
    from serving.gateway.cli.opening import audited
    from serving.gateway.ledger import price_list

    with audited(settings_of(context)) as (store, witness):
        price_list.remove(store, model, witness)
    typer.echo(f"{model} has no price any more.")


@contextmanager
def _store(context: typer.Context) -> Iterator[Store]:
    from serving.gateway.cli.opening import opened_store

    with opened_store(settings_of(context)) as store:
        yield store


def _micros(text: str) -> int:
    from serving.gateway.ledger.prices import to_micros

    try:
        return to_micros(Decimal(text))
    except (ValueError, InvalidOperation):
        raise Refusal(f"'{text}' is no price, such as 0.15: from 0 to 10,000, with six decimals at most.") from None


def _row(model: str, currency: str, price: Price) -> PriceRow:
    from serving.gateway.ledger.prices import in_currency

    micros = (price.prompt_micros, price.cached_prompt_micros, price.completion_micros)
    return PriceRow(model, currency, *map(in_currency, micros))
