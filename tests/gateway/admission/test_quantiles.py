"""Quantiles: what nine of ten answers without a limit do not exceed."""

from __future__ import annotations

import random

import pytest

from serving.gateway.admission import quantiles
from serving.gateway.admission.quantiles import Quantiles


@pytest.mark.parametrize("mean_tokens", [10, 300, 8_000])
def test_nine_of_ten_answers_are_not_longer(mean_tokens: int) -> None:
    """Short answers and long ones alike, of exponential lengths."""
    learned, lengths = Quantiles(), random.Random(7)
    drawn = [1 + round(lengths.expovariate(1 / mean_tokens)) for _ in range(4_000)]
    longer = 0
    for place, tokens in enumerate(drawn):
        longer += place >= 2_000 and tokens > learned.tokens("t", "m")
        learned.learn("t", "m", tokens)
    assert 0.05 < longer / 2_000 < 0.2


def test_tenants_and_models_learn_for_themselves() -> None:
    """One tenant's essays do not reserve another's quota."""
    learned = Quantiles()
    for _ in range(400):
        learned.learn("t", "m", 1)
    assert learned.tokens("t", "m") < quantiles.FIRST_TOKENS / 10
    assert learned.tokens("t", "other") == learned.tokens("other", "m") == quantiles.FIRST_TOKENS


def test_those_that_called_longest_ago_are_forgotten() -> None:
    """Names of models are few and tenants many: what is remembered is bounded."""
    learned = Quantiles()
    for number in range(quantiles.PAIRS_MAX + 1):
        learned.learn(f"t{number}", "m", 1)
    assert learned.tokens("t0", "m") == quantiles.FIRST_TOKENS
    assert learned.tokens("t1", "m") < quantiles.FIRST_TOKENS
