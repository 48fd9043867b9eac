"""Constraints: a schema or pattern that would stall an engine for all of its clients is refused before it reaches one."""

from typing import Any

import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects.constraints import require_cheap, require_cheap_pattern


def of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    "pattern",
    ["(((a{0,100}){0,100}){0,100}){0,100}", "(a{1,5}){1,9999}", "a{1001}", "a{2,}{999999999}", "a\\", "((a{40}){40})"],
)
def test_costly_or_broken_patterns_are_refused(pattern: str) -> None:
    """Counted repetitions multiply inside one another; a pattern of 40 bytes held every client up for a minute."""
    with pytest.raises(InvalidRequest):
        require_cheap_pattern("regex", pattern)
    schemas: tuple[dict[str, Any], ...] = ({"pattern": pattern}, {"patternProperties": {pattern: {}}})
    for schema in schemas:
        with pytest.raises(InvalidRequest):
            require_cheap("response_format", of({"type": "object", "properties": {"a": schema}}))


@pytest.mark.parametrize(
    "pattern", [r"^\d{3}-\d{4}$", r"([a-z]{1,20},){0,50}", r"(\w+\s*)*", r"[{}]{3}", r"\{9999\}", r"a\\"]
)
def test_usual_patterns_pass(pattern: str) -> None:
    """Phone numbers, lists and words are what patterns are for."""
    require_cheap_pattern("regex", pattern)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://example.com/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"type": "null"}, {"oneOf": [{"$ref": "#/$defs/a"}]}], "$defs": {"a": {"anyOf": [{"$ref": "#"}]}}},
        {
            "properties": {"a": {"$ref": "#/$defs/a"}},
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        },
        {"type": "string", "minLength": -5},
        {"enum": list(range(1001))},
        {"properties": {str(index): {} for index in range(1001)}},
        {"anyOf": [{"const": index} for index in range(201)]},
        {"description": "x" * 130_000},
    ],
)
def test_schemas_that_cannot_be_meant_are_refused(schema: dict[str, Any]) -> None:
    """References that leave or loop, negative lengths, and sizes that no real schema has."""
    with pytest.raises(InvalidRequest):
        require_cheap("response_format", of(schema))


def test_recursive_schemas_pass() -> None:
    """A tree of nodes refers to itself through its properties, and that is fine (OpenAI's guide shows both ways)."""
    require_cheap("response_format", of({"properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}))
    node = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
    require_cheap("response_format", of({"$ref": "#/$defs/node", "$defs": {"node": node}}))


def test_a_property_may_be_called_like_a_keyword() -> None:
    """Only strings under `pattern` and `$ref` are patterns and references."""
    require_cheap(
        "tools", [{"parameters": {"properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}}}}]
    )
