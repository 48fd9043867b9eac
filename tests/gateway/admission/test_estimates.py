"""Estimates: what a call will probably cost, learned from exact usages alone."""

from __future__ import annotations

import pytest

from serving.gateway.admission.estimates import BYTES_PER_PROMPT_TOKEN, OUTPUT_TOKENS_PER_SEQUENCE, Estimates, Rates
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.completions import COMPLETIONS
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.tokenize import TOKENIZE
from serving.gateway.nouns import Usage
from tests.gateway.calls import call


def test_a_prompt_is_estimated_by_its_bytes() -> None:
    """About four bytes a token until something was learned."""
    one = call(CHAT)
    assert Rates().prompt_tokens(one) == round(len(one.body) / BYTES_PER_PROMPT_TOKEN)


def test_output_is_estimated_within_the_calls_own_limit() -> None:
    """For each of its sequences; a call without a limit is like those before it."""
    rates = Rates()
    assert rates.output_tokens(call(CHAT)) == OUTPUT_TOKENS_PER_SEQUENCE
    assert rates.output_tokens(call(CHAT, max_tokens=5)) == 5
    assert rates.output_tokens(call(COMPLETIONS, prompt=["a", "b"], n=2, max_tokens=5)) == 20


def test_what_generates_nothing_has_no_output() -> None:
    """Embeddings and token counts."""
    assert Rates().output_tokens(call(EMBEDDINGS)) == Rates().output_tokens(call(TOKENIZE)) == 0


def test_rates_follow_what_engines_say() -> None:
    """After many like calls the estimate is theirs; one call moves it by a tenth."""
    rates, one = Rates(), call(CHAT)
    rates.learn(one, Usage(10, 100), seconds=2.0, events=50)
    first = OUTPUT_TOKENS_PER_SEQUENCE + 0.1 * (100 - OUTPUT_TOKENS_PER_SEQUENCE)
    assert rates.output_tokens_per_sequence == pytest.approx(first)
    for _ in range(200):
        rates.learn(one, Usage(10, 100), seconds=2.0, events=50)
    learned = (rates.output_tokens_per_sequence, rates.tokens_per_s, rates.tokens_per_event, rates.prompt_tokens(one))
    assert learned == pytest.approx((100, 50, 2, 10))


def test_a_usage_of_nothing_teaches_nothing() -> None:
    """Neither no tokens nor no time is a rate."""
    rates = Rates()
    rates.learn(call(CHAT), Usage(), seconds=0.0, events=0)
    assert rates == Rates()


def test_only_models_that_an_engine_was_asked_for_are_kept() -> None:
    """Looking one up remembers nothing: names are a client's, and without number."""
    estimates = Estimates()
    estimates.rates("invented").tokens_per_s = 1.0
    assert estimates.rates("invented") == Rates()
    estimates.kept("m").tokens_per_s = 1.0
    assert estimates.rates("m").tokens_per_s == 1.0
