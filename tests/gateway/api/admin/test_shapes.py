"""Shapes: a policy is the same wherever it is spoken of."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from serving.gateway.api.admin.shapes import KeyNew, KeyPatch, Policy, Rotation, TenantChange, TenantNew
from serving.gateway.api.admin.tariffs import PriceNew
from serving.gateway.policies import Budget, Limits, PriorityClass
from serving.gateway.policies import Policy as Plain
from tests.gateway.whole import WHOLE

ADAPTER: TypeAdapter[Plain] = TypeAdapter(Policy)


def test_every_field_of_a_policy_passes() -> None:
    """Read and written as the database has it, with nothing lost."""
    assert ADAPTER.validate_python(msgspec.to_builtins(WHOLE)) == WHOLE
    assert msgspec.json.decode(ADAPTER.dump_json(WHOLE), type=Plain) == WHOLE
    assert all(getattr(WHOLE, name) not in (None, {}) for name in Plain.__struct_fields__)


def test_the_schema_says_every_field_and_no_other() -> None:
    """From the struct itself, nested ones included, and without references that a document would have to follow."""
    schema = ADAPTER.json_schema()
    assert set(schema["properties"]) == set(Plain.__struct_fields__) and schema["additionalProperties"] is False
    nested = schema["properties"]["per_model"]["additionalProperties"]
    assert set(nested["properties"]) == set(Limits.__struct_fields__) and nested["additionalProperties"] is False
    assert set(schema["properties"]["monthly_budget"]["anyOf"][0]["properties"]) == set(Budget.__struct_fields__)
    assert set(schema["properties"]["priority"]["anyOf"][0]["enum"]) == set(PriorityClass)


@pytest.mark.parametrize("shape", [TenantChange, KeyPatch])
def test_a_change_says_something(shape: type[TenantChange | KeyPatch]) -> None:
    """An empty one is a mistake."""
    with pytest.raises(ValidationError, match="say what to change"):
        shape.model_validate({})


def test_what_is_left_out_is_nothing() -> None:
    """A tenant without a policy has no bounds."""
    assert TenantNew(name="acme").policy == Plain()


@pytest.mark.parametrize(
    ("shape", "field", "values"),
    [
        (PriceNew, "cached_prompt_micros", [True, "5", 1.5]),
        (TenantChange, "disabled", [1, "true", 0.0]),
        (KeyNew, "lifetime_s", [True, "60"]),
        (Rotation, "grace_s", [False, "60"]),
    ],
)
def test_a_value_is_of_the_kind_that_the_document_says(
    shape: type[BaseModel], field: str, values: Sequence[object]
) -> None:
    """No text that looks like a number, no number for a truth value, and no truth value for a number."""
    others = {"prompt_micros": 1, "completion_micros": 1} if shape is PriceNew else {}
    for value in values:
        with pytest.raises(ValidationError):
            shape.model_validate({**others, field: value})


def test_a_whole_number_may_have_a_point() -> None:
    """JSON has one kind of number."""
    assert PriceNew.model_validate({"prompt_micros": 5.0, "completion_micros": 1}).prompt_micros == 5
