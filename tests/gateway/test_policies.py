"""Policies: what they allow, how the database keeps them, and which of two decides."""

from __future__ import annotations

import msgspec
import pytest

from serving.gateway import policies
from serving.gateway.policies import (
    COUNT_MAX,
    MONEY_MAX,
    NO_POLICY,
    WEIGHT_MAX,
    WEIGHT_MIN,
    Budget,
    Limits,
    Policy,
    PriorityClass,
)

WHOLE = Policy(
    models=("gpt-oss-120b", "gpt-4o"),
    requests_per_minute=1,
    tokens_per_minute=2,
    tokens_per_day=3,
    tokens_per_month=4,
    open_requests=0,
    context_tokens=5,
    output_tokens=6,
    priority=PriorityClass.BATCH,
    weight=2.5,
    monthly_budget=Budget(soft=1.5, hard=2),
    per_model={"gpt-oss-120b": Limits(tokens_per_day=7)},
)


@pytest.mark.parametrize("policy", [NO_POLICY, WHOLE, Policy(models=())], ids=["none", "whole", "no model"])
def test_the_database_keeps_a_policy_whole(policy: Policy) -> None:
    """Every field of it, and what is 0 or empty is not what is not there."""
    assert policies.read(policies.written(policy)) == policy


def test_a_policy_without_bounds_takes_no_room() -> None:
    """Tenants from before there were policies have it."""
    assert policies.written(Policy()) is None
    assert policies.read(None) == NO_POLICY


def test_a_newer_versions_fields_are_left_out() -> None:
    """A release that is taken back enforces what it knows."""
    text = '{"tokens_per_day":3,"later":1,"monthly_budget":{"hard":2,"later":1},"per_model":{"m":{"later":1}}}'
    assert policies.read(text) == Policy(tokens_per_day=3, monthly_budget=Budget(hard=2), per_model={"m": Limits()})


def test_a_newer_versions_class_is_the_standard_one() -> None:
    """While gateways are updated one after another, no call fails for a policy that the newer ones have written."""
    assert policies.read('{"tokens_per_day": 3, "priority": "tomorrow"}') == Policy(tokens_per_day=3)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"tokens_per_day": 1e18, "open_requests": -1}', Policy(tokens_per_day=COUNT_MAX, open_requests=0)),
        ('{"requests_per_minute": 0.5, "output_tokens": 7.5}', Policy(requests_per_minute=0, output_tokens=7)),
        ('{"weight": 5000}', Policy(weight=WEIGHT_MAX)),
        ('{"weight": 0}', Policy(weight=WEIGHT_MIN)),
        ('{"monthly_budget": {"hard": 1e12}}', Policy(monthly_budget=Budget(hard=MONEY_MAX))),
        (
            '{"per_model": {"m": {"tokens_per_day": 1e18, "weight": 2}}}',
            Policy(per_model={"m": Limits(tokens_per_day=COUNT_MAX)}),
        ),
    ],
)
def test_a_newer_versions_number_is_cut_to_what_this_one_counts(text: str, kept: Policy) -> None:
    """No call fails for it, and none goes by without a limit."""
    assert policies.read(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        '{"tokens_per_day": "5M"}',
        '{"tokens_per_day": {"hard": 5}}',
        '{"open_requests": true}',
        '{"models": "gpt-oss-*"}',
        '{"models": [{"pattern": "gpt-oss-*"}]}',
        '{"models": 5}',
        '{"weight": [1, 2]}',
        '{"monthly_budget": 5}',
        '{"per_model": []}',
        '{"per_model": {"m": 5}}',
        "[]",
        "{",
    ],
)
def test_a_policy_that_cannot_be_read_allows_no_model(text: str) -> None:
    """What else it might bound is not known: neither an internal error, nor a call without bounds."""
    assert not policies.read(text).allows(("m",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"later": 1},
        {"tokens_per_day": -1},
        {"weight": 0},
        {"weight": 5e-324},
        {"priority": "first"},
        {"monthly_budget": {"hard": -0.5}},
    ],
    ids=str,
)
def test_a_wrong_policy_is_refused(wrong: dict[str, object]) -> None:
    """Unknown fields, negative limits, a weight of nothing or of next to nothing."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Policy)


def test_a_model_may_be_allowed_by_any_of_its_names() -> None:
    """Its own, an alias, an adapter's."""
    policy = Policy(models=("gpt-4o",))
    assert policy.allows(("gpt-4o", "gpt-oss-120b"))
    assert not policy.allows(("gpt-oss-120b",))
    assert not Policy(models=()).allows(("gpt-oss-120b",))
    assert NO_POLICY.allows(("gpt-oss-120b",))


def test_a_models_own_limits_come_besides_those_for_all() -> None:
    """A call keeps both."""
    assert list(WHOLE.limits_for("gpt-oss-120b")) == [(None, WHOLE), ("gpt-oss-120b", Limits(tokens_per_day=7))]
    assert list(WHOLE.limits_for("other")) == [(None, WHOLE)]


@pytest.mark.parametrize(
    ("tenant", "key", "expected"),
    [
        (None, None, "standard"),
        (None, "interactive", "standard"),
        (None, "batch", "batch"),
        ("batch", "interactive", "batch"),
        ("interactive", "batch", "batch"),
        ("interactive", None, "interactive"),
    ],
)
def test_a_key_is_not_ahead_of_its_tenant(tenant: str | None, key: str | None, expected: str) -> None:
    """A tenant's administrator cannot raise it."""
    ours, its = (Policy(priority=None if it is None else PriorityClass(it)) for it in (tenant, key))
    assert policies.priority_of(ours, its) == expected
