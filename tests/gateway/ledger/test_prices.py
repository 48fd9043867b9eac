"""Prices: integers alone, rounded once a call, and what is reserved is never less than what is charged."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.ledger.prices import PRICE_MICROS_MAX, Price, Prices, in_currency, to_micros
from serving.gateway.nouns import Usage

micros = st.integers(0, PRICE_MICROS_MAX)
tokens = st.integers(0, 10**9)
prices = st.builds(Price, micros, micros, micros)


@given(prices, tokens, tokens, tokens)
def test_a_call_costs_the_nearest_micro(price: Price, prompt: int, cached: int, completion: int) -> None:
    """Never more than half a micro from the exact sum, however large; cached tokens are a part of the prompt."""
    usage = Usage(prompt, completion, cached_prompt_tokens=cached)
    cached = min(cached, prompt)
    parts = (prompt - cached) * price.prompt_micros + cached * price.cached_prompt_micros
    exact = Fraction(parts + completion * price.completion_micros, 1_000_000)
    assert abs(price.micros(usage) - exact) <= Fraction(1, 2)


@given(prices, tokens, tokens, tokens, tokens, tokens)
def test_no_call_costs_more_than_was_reserved(
    price: Price, prompt: int, output: int, used: int, cached: int, made: int
) -> None:
    """Whatever a prefix cache had of it, even where a cached token costs more."""
    usage = Usage(min(used, prompt), min(made, output), cached_prompt_tokens=cached)
    assert price.micros(usage) <= price.at_most(prompt, output)


def test_halves_are_rounded_up() -> None:
    """A token at half a micro costs one; at less, none."""
    assert Price(500_000, 0, 0).micros(Usage(1, 0)) == 1
    assert Price(499_999, 0, 0).micros(Usage(1, 0)) == 0
    assert Price(150_000, 75_000, 600_000).micros(Usage(1000, 500, 200)) == 120 + 15 + 300


def test_an_adapters_own_price_goes_before_its_models() -> None:
    """A model without a price has none, and costs nothing that a budget counts."""
    base, own = Price(1, 1, 1), Price(2, 2, 2)
    table = Prices({"m": base, "tuned": own})
    assert (table.of("tuned", "m"), table.of("other", "m"), table.of("m", None)) == (own, base, base)
    assert table.of("other", None) is None and table.of("other", "unknown") is None


@pytest.mark.parametrize(("text", "amount"), [("0.15", 150_000), ("0", 0), ("12", 12_000_000), ("0.000001", 1)])
def test_money_is_read_and_written_with_all_its_digits(text: str, amount: int) -> None:
    """And with no others."""
    assert to_micros(Decimal(text)) == amount and in_currency(amount) == text


@pytest.mark.parametrize("text", ["-1", "0.0000001", "10000.000001", "Infinity", "1e40"])
def test_what_is_no_price_is_refused(text: str) -> None:
    """Negative, finer than a micro, or more than any price."""
    with pytest.raises(ValueError, match=r".*"):
        to_micros(Decimal(text))
