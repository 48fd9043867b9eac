"""Prices: what a call costs by its tokens. Integers alone, in millionths of the currency ("micros").

A price is for a million tokens, so a token costs millionths of a micro; a call's sum is rounded once, to the nearest micro,
halves up (TEN-20).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal

import msgspec

from serving.gateway.nouns import Usage

#: What a price is for.
TOKENS = 1_000_000
#: Micros of one unit of the currency.
MICROS = 1_000_000
#: No price is higher, in micros: ten thousand of the currency for a million tokens.
PRICE_MICROS_MAX = 10**10


class Price(msgspec.Struct, frozen=True):
    """Micros for a million tokens, of prompts, of what a prefix cache had of them, and of completions."""

    prompt_micros: int
    cached_prompt_micros: int
    completion_micros: int

    def micros(self, usage: Usage) -> int:
        """What these tokens cost. Reasoning is part of the completion."""
        cached = min(usage.cached_prompt_tokens, usage.prompt_tokens)
        return _rounded(
            (usage.prompt_tokens - cached) * self.prompt_micros
            + cached * self.cached_prompt_micros
            + usage.completion_tokens * self.completion_micros
        )

    def at_most(self, prompt_tokens: int, output_tokens: int) -> int:
        """What a call of this size can cost, whatever the cache has of it: what is reserved."""
        dearest = max(self.prompt_micros, self.cached_prompt_micros)
        return _rounded(prompt_tokens * dearest + output_tokens * self.completion_micros)


class Prices(msgspec.Struct, frozen=True):
    """The table of prices at one moment."""

    by_model: Mapping[str, Price] = {}

    def of(self, model: str, base_model: str | None) -> Price | None:
        """An adapter's own price, else its model's; None: none is set."""
        price = self.by_model.get(model)
        if price is None and base_model is not None:
            return self.by_model.get(base_model)
        return price


def in_currency(micros: int) -> str:
    """Money as people write it: all its digits, and no others."""
    return f"{(Decimal(micros) / MICROS).normalize():f}"


def to_micros(amount: Decimal) -> int:
    """Micros of an amount; raises ValueError where it is finer than those, negative or too much."""
    micros = amount * MICROS
    if not (0 <= micros <= PRICE_MICROS_MAX) or micros != micros.to_integral_value(ROUND_HALF_UP):
        raise ValueError(amount)
    return int(micros)


def _rounded(parts: int) -> int:
    return (2 * parts + TOKENS) // (2 * TOKENS)
