"""Schemas: what cannot be compiled, what nothing can fit, and what takes long, each found where it stands."""

import copy
import itertools
from typing import Any

import pytest

from serving.gateway.dialects.schemas import read

STRING = {"type": "string"}
#: A value of every JSON type, the containers with and without others in them.
ANYTHING: list[Any] = [None, True, 0, -1.5, 1e300, 10**60, "", "a", [], {}, [[]], [{}], ["string", ["a"]], {"a": [1]}]
#: Each keyword with a value that it may have.
SOUND: dict[str, Any] = {
    "$ref": "#", "const": 1, "enum": ["a"], "anyOf": [{}], "oneOf": [{}], "allOf": [{}], "type": "string", "not": {},
    "format": "date", "pattern": "a", "minLength": 1, "maxLength": 2, "minimum": 1, "exclusiveMaximum": 3.5, "multipleOf": 2,
    "items": {}, "prefixItems": [{}], "additionalItems": {}, "unevaluatedItems": True, "minItems": 1, "maxItems": 2,
    "contains": {}, "minContains": 1, "uniqueItems": True, "properties": {"a": {}}, "required": ["a"],
    "patternProperties": {"a": {}}, "propertyNames": {}, "additionalProperties": {}, "unevaluatedProperties": True,
    "minProperties": 1, "maxProperties": 2,
}  # fmt: skip


def under(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "keyword", "reason"),
    [
        ({"type": "bogus"}, "type", "no type"),
        ({"type": ["string", 5]}, "type", "not a string"),
        ({"type": "array", "minItems": 3, "maxItems": 1, "items": {}}, "minItems", "greater"),
        ({"type": "array", "contains": STRING, "minContains": 1}, "minContains", "describe"),
        ({"type": "array", "items": 5}, "items", "neither"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "minLength", "nothing fits"),
        ({"type": "string", "minLength": -1}, "minLength", "negative"),
        ({"type": "string", "minLength": "1"}, "minLength", "whole number"),
        ({"type": "string", "pattern": "^[a-z]{1,129}$"}, "pattern", "more than 128"),
        ({"type": "string", "pattern": "("}, "pattern", "not closed"),
        ({"type": "object", "patternProperties": {"(": {}}}, "patternProperties", "not closed"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum", "nothing fits"),
        ({"type": "integer", "minimum": 4, "maximum": 5, "multipleOf": 3}, "minimum", "nothing fits"),
        ({"type": "integer", "maximum": 2**63}, "maximum", "64 bits"),
        ({"type": "number", "minimum": 1.5, "exclusiveMaximum": 1.5}, "minimum", "nothing fits"),
        ({"type": "object", "required": ["q"], "additionalProperties": False}, "required", "nothing fits"),
        ({"type": "object", "properties": {"b": {}}, "minProperties": 2}, "minProperties", "no others"),
        ({"type": "object", "properties": {"b": False}}, "b", "allows nothing"),
        ({"enum": []}, "enum", "nothing fits"),
        ({"anyOf": []}, "anyOf", "nothing fits"),
        ({"oneOf": []}, "oneOf", "nothing fits"),
        ({"$ref": "#/$defs/none"}, "$ref", "not in the schema"),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {}}}, "$ref", "as it is spelled"),
    ],
)
def test_a_fault_is_found_at_its_place(schema: dict[str, Any], keyword: str, reason: str) -> None:
    """The keyword at fault is named, wherever it is nested."""
    (fault,) = read(schema).faults
    assert fault.keyword == keyword and reason in fault.reason
    (nested,) = (
        read(under({"type": "array", "items": {"anyOf": [STRING, schema]}})).faults
        if "$ref" not in schema
        else (fault,)
    )
    assert nested.keyword == keyword and ("$ref" in schema or nested.place.startswith("properties.a.items.anyOf.1"))


def test_any_value_may_stand_under_any_keyword() -> None:
    """Clients send what they like: beside any other keyword it is read or found at fault, and reading it raises nothing."""
    kinds = ["string", "integer", "number", "array", "object"]
    for (keyword, other), value in itertools.product(itertools.permutations(SOUND, 2), ANYTHING):
        read(copy.deepcopy({"type": kinds, other: SOUND[other], keyword: value}))


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {}}, "not"),
        ({"type": "integer", "enum": ["a", True, 1.5]}, "enum"),
        ({"type": "string", "const": 1}, "const"),
    ],
)
def test_an_alternative_may_be_impossible(schema: dict[str, Any], keyword: str) -> None:
    """Nothing fits the schema alone; beside another it is merely never chosen, as zod's optional values are."""
    (fault,) = read(schema).faults
    assert fault.keyword == keyword and "nothing fits" in fault.reason
    assert not read(under({"anyOf": [STRING, schema]})).faults


def test_tuples_of_older_schemas_are_rewritten() -> None:
    """An array of schemas under `items` is what is called `prefixItems` since 2020, and xgrammar knows that alone."""
    schema = {"type": "array", "items": [STRING, {"type": "integer"}], "additionalItems": False, "minItems": 2}
    assert not read(schema).faults
    assert schema == {"type": "array", "prefixItems": [STRING, {"type": "integer"}], "items": False, "minItems": 2}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "default": {"type": "bogus"}, "examples": ["("]},
        {"$defs": {"unused": {"type": "bogus"}}, **STRING},
        {"const": 1, "enum": []},
        {"enum": [{"pattern": "("}]},
        {"type": "integer", "minLength": 3, "maxLength": 1},
        {"type": "array", "items": {}, "minItems": 1, "maxItems": 1},
        {"properties": {"pattern": STRING, "$ref": STRING, "enum": STRING, "type": STRING}},
        {"type": "integer", "const": 2.0},
        {"type": ["integer", "null"], "enum": [None]},
    ],
)
def test_only_what_is_read_can_be_at_fault(schema: dict[str, Any]) -> None:
    """A keyword that the engine does not come to is not looked at, and a property may be called like a keyword."""
    assert not read(schema).faults


def test_a_chain_of_references_is_followed() -> None:
    """Without recursion: a thousand schemas may refer to one another."""
    chain: dict[str, Any] = {f"d{at}": {"properties": {"n": {"$ref": f"#/$defs/d{at + 1}"}}} for at in range(5000)}
    chain["d5000"] = {"type": "bogus"}
    (fault,) = read({"$ref": "#/$defs/d0", "$defs": chain}).faults
    assert (fault.place, fault.keyword) == ("$defs.d5000", "type")


def test_whole_numbers_are_written_as_such() -> None:
    """JSON has one kind of number, and clients in languages that have one too send 2.0; xgrammar refuses it."""
    schema = {"type": "string", "minLength": 2.0, "maxLength": 3}
    assert not read(schema).faults and repr(schema["minLength"]) == "2"


def test_equal_demands_are_compiled_once() -> None:
    """The same length ten times costs as much as once, another one costs its own time."""
    same = read({"type": "object", "properties": {f"p{at}": {"type": "string", "maxLength": 20} for at in range(10)}})
    assert len({limit.demand for limit in same.limits}) == 1
    mixed = read({"type": "object", "properties": {f"p{at}": {"type": "string", "maxLength": at} for at in (5, 6)}})
    assert len({limit.demand for limit in mixed.limits}) == 2


def test_optional_properties_cost_by_their_square() -> None:
    """Each may be followed by any later one."""

    def cost(count: int) -> float:
        return read({"type": "object", "properties": {f"p{at}": STRING for at in range(count)}}).cost_ms

    assert cost(200) > 2 * 2 * cost(80) > 2 * 2 * 2 * cost(40)
