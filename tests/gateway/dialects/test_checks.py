"""Checks: a wrong type is our 400 that names its place, never an engine's 500."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects import checks


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (checks.Tokens, [1, checks.TOKENS_MAX], [0, checks.TOKENS_MAX + 1, 1.5, "1", True]),
        (checks.Seed, [-(2**63), 2**63 - 1], [2**63, 10**30]),
        (checks.Temperature, [0, 2, 0.5], [-0.1, 2.1, "hot", True]),
        (checks.Stops, ["a", ["a"] * 4, []], ["", [""], ["a"] * 5, [1]]),
        (checks.Name, ["a-b_1"], ["no spaces", "", "a" * 129, "a\n"]),
        (checks.LogitBias, [{"50256": -100}], [{"x": 1}, {"1": 101}, {"-1": 0}]),
        (checks.Metadata, [{"a": "b"}], [{"a": 1}, {str(n): "" for n in range(17)}]),
    ],
)
def test_a_value_is_taken_within_its_documented_bounds(kind: object, good: list[object], bad: list[object]) -> None:
    """Exact types: no number in quotes, no boolean as a number."""
    check = checks.typed(kind)
    for value in good:
        assert check("field", value) == value
    for value in bad:
        with pytest.raises(InvalidRequest, match=r"^Invalid value for 'field"):
            check("field", value)


@pytest.mark.parametrize("kind", [checks.Tokens, checks.Seed, checks.TopK, checks.Choices, checks.TokenIds])
def test_a_whole_number_may_be_written_with_a_point(kind: object) -> None:
    """JSON has one kind of number; a fraction is none, and a number past all bounds neither."""
    is_list = kind is checks.TokenIds
    assert repr(checks.typed(kind)("field", [5.0] if is_list else 5.0)) == ("[5]" if is_list else "5")
    for value in (5.5, 1e300, float("nan"), float("inf"), "5.0", True):
        with pytest.raises(InvalidRequest):
            checks.typed(kind)("field", [value] if is_list else value)


def test_a_wrong_value_is_named_by_its_place() -> None:
    """As deep as it is: the caller finds it without counting brackets."""
    check = checks.typed(Annotated[list[checks.FunctionTool], Meta(min_length=1)])
    with pytest.raises(InvalidRequest) as refused:
        check("tools", [{"type": "function", "function": {"name": "no spaces"}}])
    assert refused.value.param == "tools[0].function.name" and "`" not in refused.value.message


def test_unknown_keys_are_left_out_or_refused_as_each_object_says() -> None:
    """A tool may carry keys of a newer API; of options only those known are taken."""
    tool = checks.typed(checks.FunctionTool)("tool", {"type": "function", "function": {"name": "f"}, "new": 1})
    assert msgspec.to_builtins(tool) == {"type": "function", "function": {"name": "f"}}
    with pytest.raises(InvalidRequest):
        checks.typed(checks.StreamOptions)("stream_options", {"new": 1})


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"regex": "a", "choice": ["a"]}, "structured_outputs"),
        ({}, "structured_outputs"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"json": "[]"}, "structured_outputs.json"),
        ({"regex": "(a{1,5}){1,9999}"}, "structured_outputs.regex"),
    ],
)
def test_structured_outputs_need_exactly_one_cheap_constraint(value: object, param: str) -> None:
    """Two would contradict one another, and a costly one holds the engine up."""
    with pytest.raises(InvalidRequest) as refused:
        checks.structured_outputs("structured_outputs", value)
    assert str(refused.value.param).startswith("structured_outputs") and param.startswith(str(refused.value.param))


def test_a_schema_may_come_as_text() -> None:
    """vLLM takes it so; what is sent on is the object."""
    assert checks.structured_outputs("s", {"json": '{"type":"object"}'}).json == {"type": "object"}


@pytest.mark.parametrize("schema", [{}, {"json_schema": {"name": "x"}}, {"json_schema": {"name": "x", "schema": None}}])
def test_a_json_schema_format_has_its_schema(schema: dict[str, object]) -> None:
    """The engine's own error for its absence is a 500."""
    with pytest.raises(InvalidRequest, match=r"Missing required parameter: 'f\.json_schema\.schema'"):
        checks.response_format("f", {"type": "json_schema"} | schema)
    assert checks.response_format("f", {"type": "text"}).type == "text"


@pytest.mark.parametrize(
    ("kind", "words"),
    [("image_url", "Image input"), ("input_file", "File input"), ("document", "File input"), ("new", "type 'new'")],
)
def test_a_part_that_is_no_text_is_refused_by_its_medium(kind: str, words: str) -> None:
    """In the client's words, with its place."""
    refused = checks.unsupported_part(kind, "messages[0].content[1]")
    assert isinstance(refused, UnsupportedParameter) and words in refused.message
    assert refused.param == "messages[0].content[1]"


def test_a_null_or_empty_member_is_absent_and_a_schema_stays_as_it_is() -> None:
    """Clients fill in every member of an object; in JSON of their own null means what it says."""
    assert checks.response_format("f", {"type": "json_object", "json_schema": None}) == checks.ResponseFormat(
        "json_object"
    )
    assert checks.typed(checks.TemplateSwitches)("f", {"thinking": None}) == checks.TemplateSwitches()
    schema: dict[str, object] = {"properties": {"a": {"const": None, "default": {}, "minimum": 1.0}}}
    function = {"name": "f", "parameters": schema, "strict": {}}
    tool = checks.typed(checks.FunctionTool)("tool", {"type": None, "function": function})
    assert tool.function.parameters == schema and repr(tool.function.parameters) == repr(schema)


def test_an_empty_stop_string_stops_nothing() -> None:
    """Forms have an empty line; others in the list still stop."""
    check = checks.stops(checks.Stops)
    assert check("stop", ["", "a"]) == ["a"] and check("stop", [""]) == []
    with pytest.raises(InvalidRequest):
        check("stop", ["a"] * 5)
