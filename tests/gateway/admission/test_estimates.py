"""Estimates: what a call will probably cost, learned from exact usages alone."""

from __future__ import annotations

import pytest

from serving.gateway.admission.estimates import (
    BYTES_PER_PROMPT_TOKEN,
    OUTPUT_TOKENS_PER_SEQUENCE,
    TOKENS_PER_S,
    TOKENS_PER_S_MAX,
    Estimates,
    Rates,
    Seen,
)
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
    rates.learn(one, Usage(10, 100), seconds=2.0, seen=Seen(texts=50))
    first = OUTPUT_TOKENS_PER_SEQUENCE + 0.1 * (100 - OUTPUT_TOKENS_PER_SEQUENCE)
    assert rates.output_tokens_per_sequence == pytest.approx(first)
    for _ in range(200):
        rates.learn(one, Usage(10, 100), seconds=2.0, seen=Seen(texts=50))
    learned = (rates.output_tokens_per_sequence, rates.tokens_per_s, rates.tokens_per_event, rates.prompt_tokens(one))
    assert learned == pytest.approx((100, 50, 2, 10))


def test_a_usage_of_nothing_teaches_nothing() -> None:
    """Neither no tokens nor no time is a rate."""
    rates = Rates()
    rates.learn(call(CHAT), Usage(), seconds=0.0)
    assert rates == Rates()


def test_only_models_that_an_engine_was_asked_for_are_kept() -> None:
    """Looking one up remembers nothing: names are a client's, and without number."""
    estimates = Estimates()
    estimates.rates("invented", "/v1").tokens_per_s = 1.0
    assert estimates.rates("invented", "/v1") == Rates()
    estimates.kept("m", "/v1").tokens_per_s = 1.0
    assert estimates.rates("m", "/v1").tokens_per_s == 1.0


def test_a_rate_learned_on_one_route_is_not_used_for_another() -> None:
    """A route's events, its prompts and its answers are its own."""
    estimates = Estimates()
    estimates.kept("m", "/v1/messages").tokens_per_event = 5.0
    assert estimates.rates("m", "/v1/responses") == Rates()


def test_a_short_answer_teaches_no_speed() -> None:
    """Two tokens in a millisecond are no 2,000 a second; nor is a long answer that came in no time."""
    rates, one = Rates(), call(CHAT)
    for usage, seconds in ((Usage(10, 2), 0.001), (Usage(10, 1000), 0.001), (Usage(10, 2), 60.0)):
        for _ in range(100):
            rates.learn(one, usage, seconds)
    assert rates.tokens_per_s == TOKENS_PER_S


def test_no_rate_leaves_its_bounds() -> None:
    """Whatever an engine says of its answers, or a client does to them."""
    rates, one = Rates(), call(CHAT)
    for _ in range(500):
        rates.learn(one, Usage(1, 10**9), 0.6, Seen(texts=40))
        rates.learn(one, Usage(1, 10**9), 0.6, Seen(texts=1, parts=1))
    assert rates.tokens_per_s <= TOKENS_PER_S_MAX and rates.bytes_per_prompt_token <= 16
    assert rates.tokens_per_event <= 16 and rates.first_part.value <= 64


def test_what_opens_the_parts_of_a_stream_is_learned_apart() -> None:
    """Tokens that no event shows: before the first part, between two, before a call of a tool; one ends the answer."""
    rates, one = Rates(), call(CHAT)
    for _ in range(3):
        rates.learn(one, Usage(10, 2 + 8 + 1), 1.0, Seen(texts=8, parts=1))
        rates.learn(one, Usage(10, 2 + 5 + 12 + 1), 1.0, Seen(texts=12, parts=2))
        rates.learn(one, Usage(10, 2 + 20 + 12 + 1), 1.0, Seen(texts=12, parts=2, tool_parts=1))
    said = (rates.first_part.value, rates.next_part.value, rates.tool_part.value)
    assert said == pytest.approx((2, 5, 20))
    assert rates.streamed_tokens(Seen(texts=4, parts=3, tool_parts=1)) == 2 + 5 + 20 + 4
