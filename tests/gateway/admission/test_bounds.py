"""Bounds: which model, how much output and how long a call may be."""

from __future__ import annotations

import pytest

from serving.errors import ContextExceeded, InvalidRequest, ModelNotFound
from serving.gateway.admission import bounds
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.completions import COMPLETIONS
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.nouns import Caller
from serving.gateway.policies import NO_POLICY, Limits, Policy
from tests.gateway.calls import call, draft


def caller(tenant: Policy = NO_POLICY, key: Policy = NO_POLICY) -> Caller:
    return Caller("t1", "acme", "k1", tenant_policy=tenant, key_policy=key)


def test_a_model_must_be_allowed_by_both() -> None:
    """By the name that was asked for or the one that is served; what may not be had is as if it were not there."""
    one = caller(Policy(models=("gpt-4o", "m")), Policy(models=("m",)))
    bounds.require_allowed(one, "gpt-4o", "m")
    with pytest.raises(ModelNotFound):
        bounds.require_allowed(one, "gpt-4o", "other")
    bounds.require_allowed(caller(), "anything", "anything")


@pytest.mark.parametrize(
    ("tenant", "key"),
    [(Policy(output_tokens=10), NO_POLICY), (NO_POLICY, Policy(per_model={"m": Limits(output_tokens=10)}))],
    ids=["tenant", "key and model"],
)
def test_more_output_than_is_allowed_is_refused(tenant: Policy, key: Policy) -> None:
    """The field that says it is named; as much as is allowed is not too much."""
    bounds.of(caller(tenant, key), "m").require_fitting(call(CHAT, max_tokens=10), 5)
    with pytest.raises(InvalidRequest) as refused:
        bounds.of(caller(tenant, key), "m").require_fitting(call(CHAT, max_completion_tokens=11), 5)
    assert refused.value.param == "max_completion_tokens" and "at most 10" in refused.value.message


def test_a_call_without_a_limit_gets_the_smallest() -> None:
    """Of the model's default, the tenant's and the key's."""
    one = caller(Policy(output_tokens=10), Policy(per_model={"m": Limits(output_tokens=7)}))
    assert bounds.of(one, "m").default_output_tokens(100) == 7
    assert bounds.of(one, "other").default_output_tokens(100) == 10
    assert bounds.of(one, "other").default_output_tokens(5) == 5
    assert bounds.of(caller(), "m").default_output_tokens(0) is None


def test_a_call_without_a_limit_gets_what_its_prompt_leaves_of_the_context() -> None:
    """To leave the limit out is no way to a longer one; and a default is no reason to refuse a call that says nothing."""
    one = caller(Policy(context_tokens=100))
    assert bounds.of(one, "m").default_output_tokens(4096, 60) == 40
    assert bounds.of(one, "m").default_output_tokens(None, 60) == 40
    assert bounds.of(one, "m").default_output_tokens(None, 200) == 1
    bounds.of(one, "m").require_fitting(draft(CHAT).finish("m", "salt", 40), 90)
    with pytest.raises(ContextExceeded):
        bounds.of(one, "m").require_fitting(draft(CHAT).finish("m", "salt", 1), 200)


def test_a_call_that_wants_more_at_least_than_is_allowed_is_refused() -> None:
    """By the name of the field that says so."""
    one = caller(Policy(output_tokens=10))
    with pytest.raises(InvalidRequest) as refused:
        bounds.of(one, "m").require_fitting(draft(CHAT, min_tokens=50).finish("m", "salt", 10), 5)
    assert refused.value.param == "min_tokens" and refused.value.message.startswith("min_tokens is too large: 50")


def test_no_output_is_none() -> None:
    """Neither for a call that says how much it wants nor for one that does not; what has no output is as before."""
    one = caller(Policy(output_tokens=0))
    for wanting in (call(CHAT), call(CHAT, max_tokens=1), call(RESPONSES)):
        with pytest.raises(InvalidRequest):
            bounds.of(one, "m").require_fitting(wanting, 5)
    bounds.of(one, "m").require_fitting(call(EMBEDDINGS), 5)
    bounds.of(one, "m").require_fitting(call(COMPLETIONS, max_tokens=0), 5)


def test_prompt_and_output_together_are_bounded() -> None:
    """As the model's own context is."""
    one = caller(Policy(context_tokens=20))
    bounds.of(one, "m").require_fitting(call(CHAT, max_tokens=15), 5)
    with pytest.raises(ContextExceeded):
        bounds.of(one, "m").require_fitting(call(CHAT, max_tokens=15), 6)
    with pytest.raises(ContextExceeded):
        bounds.of(one, "m").require_fitting(call(CHAT), 21)
