"""Constraints: what an engine cannot compile, or not soon, is refused or relaxed before it reaches one."""

from typing import Any

import msgspec
import pytest

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects.checks import structured_outputs
from serving.gateway.dialects.constraints import fit, require_cheap_pattern

LONG = {"type": "string", "maxLength": 5000}


def of(schema: dict[str, Any], strict: bool | None = None) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
    }


def tool(name: str, schema: dict[str, Any], strict: bool | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, "strict": strict}}


def with_property(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


def refusal(fields: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        fit(fields)
    return refused.value


@pytest.mark.parametrize(
    "pattern",
    ["(((a{0,100}){0,100}){0,100}){0,100}", "(a{1,5}){1,9999}", "a{1001}", "a{2,}{999999999}", "a\\", "((a{40}){40})"],
)
def test_costly_or_broken_patterns_are_refused(pattern: str) -> None:
    """Counted repetitions multiply inside one another; a pattern of 40 bytes held every client up for a minute."""
    with pytest.raises(InvalidRequest):
        require_cheap_pattern("regex", pattern)
    schemas: tuple[dict[str, Any], ...] = (
        {"type": "string", "pattern": pattern},
        {"type": "object", "patternProperties": {pattern: {}}},
    )
    for schema in schemas:
        refusal(of(with_property(schema)))


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{3}-\d{4}$",
        r"([a-z]{1,5},){0,9}",
        r"(\w+\s*)*",
        r"[{}]{3}",
        r"\{9999\}",
        r"a\\",
        "a{1000}",
        "(a){40}(b){40}",
    ],
)
def test_usual_patterns_pass(pattern: str) -> None:
    """Phone numbers, lists and words are what patterns are for."""
    require_cheap_pattern("regex", pattern)


@pytest.mark.parametrize("pattern", ["[^,]{1,200}", ".{0,1000}", "", "(?=a)b"])
def test_a_pattern_alone_is_always_strict(pattern: str) -> None:
    """The engine holds every answer to it, so what is too costly for that is refused."""
    with pytest.raises(InvalidRequest, match="regex"):
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
        {"enum": ["x" * 100 + str(index) for index in range(900)]},
        {"properties": {str(index): {} for index in range(400)}},
        {"properties": {str(index): {"type": "string", "pattern": "a" * 100} for index in range(90)}},
    ],
)
def test_schemas_that_cannot_be_meant_are_refused(schema: dict[str, Any]) -> None:
    """References that leave or loop, negative lengths, and sizes that no real schema has."""
    refusal(of(schema))


def test_the_length_of_schemas_is_in_characters() -> None:
    """A description in Chinese may be as long as one in English, though its bytes are three times as many."""
    fit(of({"description": "\u4e2d" * 100_000}))
    assert "longer than 120000 characters" in str(refusal(of({"description": "\u4e2d" * 120_000})))


def test_recursive_schemas_pass() -> None:
    """A tree of nodes refers to itself through its properties, and that is fine (OpenAI's guide shows both ways)."""
    fit(of({"properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}))
    node = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
    fit(of({"$ref": "#/$defs/node", "$defs": {"node": node}}))


def test_a_tool_is_named_with_the_keyword_at_fault() -> None:
    """One tool among many stops a session: its user has to know which, and why."""
    bad = with_property({"type": "array", "contains": {"type": "string"}, "minContains": 1})
    error = refusal({"tools": [tool("good", with_property(LONG)), tool("find", bad)]})
    assert error.param == "tools[1].function.parameters"
    assert all(word in str(error) for word in ("'find'", "'minContains'", "'properties.a'"))


@pytest.mark.parametrize("key", ["parameters", "input_schema"])
def test_every_api_spells_a_tool_its_own_way(key: str) -> None:
    """Responses has a tool's members flat, Messages calls its schema `input_schema`."""
    error = refusal({"tools": [{"name": "find", key: {"type": "bogus"}}]})
    assert error.param == f"tools[0].{key}" and "'find'" in str(error)


def test_a_long_bound_is_left_out_where_strictness_was_not_asked() -> None:
    """A bound of thousands of characters is common in tools, and costs an engine seconds: the call is worth more."""
    cheap = {"type": "string", "maxLength": 10}
    schema = {"type": "object", "properties": {"a": dict(LONG), "b": dict(cheap)}}
    assert fit({"tools": [tool("write", schema)]}) == ["maxLength:write"]
    assert schema["properties"] == {"a": {"type": "string"}, "b": cheap}
    formatted = with_property(dict(LONG))
    assert fit(of(formatted)) == ["maxLength"] and formatted == with_property({"type": "string"})


def test_a_long_bound_is_refused_where_strictness_was_asked() -> None:
    """A promise that cannot be kept in time is not made."""
    for fields in (
        of(with_property(LONG), strict=True),
        {"tools": [tool("write", with_property(LONG), strict=True)]},
        {"structured_outputs": {"json": with_property(LONG)}},
        {"output_config": {"format": {"type": "json_schema", "schema": with_property(LONG)}}},
    ):
        error = refusal(fields)
        assert "'maxLength' of 'properties.a' is too costly" in str(error) and "the limit is 1 s" in str(error)


def test_the_limit_is_for_all_constraints_of_a_request() -> None:
    """An engine compiles them together; equal ones are paid once, strict ones first."""

    def tools(*lengths: int) -> dict[str, Any]:
        return {
            "tools": [tool(f"t{at}", with_property({"type": "string", "maxLength": n})) for at, n in enumerate(lengths)]
        }

    assert fit(tools(20, 20, 20)) == []
    assert fit(tools(20, 21)) == ["maxLength:t1"]
    strict = tool("strict", with_property({"type": "string", "maxLength": 21}), strict=True)
    assert fit({"tools": [*tools(20)["tools"], strict]}) == ["maxLength:t0"]


def test_what_is_not_enforced_is_refused_or_left_out_of_formats() -> None:
    """Engines of some models refuse such formats, others ignore the keyword; tools may have them, for models read them."""
    unique = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    assert "'uniqueItems'" in str(refusal(of(with_property(dict(unique)), strict=True)))
    assert fit(of(with_property(dict(unique)))) == ["uniqueItems"]
    offered = tool("find", with_property(dict(unique)))
    assert fit({"tools": [offered]}) == [] and offered["function"]["parameters"]["properties"]["a"] == unique


def test_structs_are_changed_in_place() -> None:
    """What checks made of a body is what goes to the engine."""
    outputs = structured_outputs("structured_outputs", {"json": with_property({"type": "string", "minLength": 2.0})})
    fit({"structured_outputs": outputs})
    assert b'"minLength":2}' in msgspec.json.encode(outputs)


@pytest.mark.parametrize("key", ["whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"])
def test_options_of_other_compilers_are_refused(key: str) -> None:
    """vLLM accepts and forgets them with xgrammar; null and false ask for nothing."""
    with pytest.raises(UnsupportedParameter, match=key):
        structured_outputs("structured_outputs", {"regex": "a", key: "(" if key == "whitespace_pattern" else True})
    outputs = structured_outputs("structured_outputs", {"regex": "a", key: None})
    assert msgspec.json.encode(outputs) == b'{"regex":"a"}'
