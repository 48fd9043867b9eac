"""Responses: stateless, each item checked, usage and errors in its own form."""

from __future__ import annotations

import json

import msgspec
import pytest

from serving.errors import EngineFailed, InvalidRequest, UnsupportedParameter
from serving.gateway.dialects.responses import RESPONSES, ResponsesCounts
from serving.gateway.nouns import Usage
from tests.gateway.calls import call, draft, sent
from tests.scripted_engine import RESPONSES_USAGE, responses_stream

STATEFUL: list[dict[str, object]] = [
    {"previous_response_id": "resp_1"},
    {"conversation": "c"},
    {"background": True},
    {"prompt": {"id": "p"}},
    {"input": [{"type": "item_reference", "id": "msg_1"}]},
    {"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://10.0.0.1"}]},
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
]


@pytest.mark.parametrize("fields", STATEFUL, ids=[str(fields)[:60] for fields in STATEFUL])
def test_responses_refuses_what_needs_a_memory_or_a_hosted_tool(fields: dict[str, object]) -> None:
    """The stateless Responses API says in one sentence what it does not do."""
    with pytest.raises(UnsupportedParameter) as refused:
        draft(RESPONSES, **fields)
    assert (refused.value.status, refused.value.code) == (400, "unsupported_parameter")
    assert refused.value.message.count("\n") == 0


def test_nothing_is_stored_whatever_the_client_says() -> None:
    """The engine's own store is per process and never emptied."""
    assert sent(call(RESPONSES, store=True))["store"] is sent(call(RESPONSES))["store"] is False


def test_a_tool_has_what_the_engine_requires() -> None:
    """Its parameters and its strictness, if only as null; a function has a name."""
    (tool,) = sent(call(RESPONSES, tools=[{"type": "function", "name": "f"}]))["tools"]
    assert tool == {"type": "function", "name": "f", "parameters": None, "strict": None}
    with pytest.raises(InvalidRequest, match=r"tools\[0\]\.name"):
        draft(RESPONSES, tools=[{"type": "function"}])


FUNCTIONS = [{"type": "function", "name": name} for name in ("f", "g")]


def test_none_sends_no_tools_and_allowed_tools_narrow_them() -> None:
    """What a model is not told of it does not call."""
    body = sent(call(RESPONSES, tools=FUNCTIONS, tool_choice="none"))
    assert "tools" not in body and "tool_choice" not in body
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [FUNCTIONS[1], {"type": "web_search"}]}
    body = sent(call(RESPONSES, tools=[*FUNCTIONS, {"type": "web_search"}], tool_choice=allowed))
    assert [tool["name"] for tool in body["tools"]] == ["g"] and body["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("reasoning", "sent_on"),
    [
        ({"effort": "minimal", "summary": "none"}, {"effort": "low"}),
        ({"effort": "xhigh", "summary": "auto"}, {"effort": "high", "summary": "auto"}),
        ({"effort": None, "context": "all_turns"}, {}),
    ],
)
def test_reasoning_is_an_effort_that_the_model_knows(reasoning: dict[str, object], sent_on: dict[str, object]) -> None:
    """Other keys are hints; a summary of a kind that no engine knows is none."""
    assert sent(call(RESPONSES, reasoning=reasoning))["reasoning"] == sent_on


def test_what_more_to_include_is_taken_where_it_is_known() -> None:
    """Sources of searches that did not run are not missed."""
    asked = ["web_search_call.action.sources", "message.output_text.logprobs"]
    assert sent(call(RESPONSES, include=asked))["include"] == ["message.output_text.logprobs"]


def test_usage_is_read_in_its_own_words() -> None:
    """Input and output, what of them was cached and what was reasoning; absent details count nothing."""
    assert msgspec.convert(RESPONSES_USAGE, ResponsesCounts).usage() == Usage(11, 2, 4, 1)
    assert ResponsesCounts(3, 4).usage() == Usage(3, 4)


def test_a_stream_that_fails_ends_in_an_event_that_clients_raise_on() -> None:
    """Numbered after those before it; flat as documented, and nested as openai-python reads it."""
    assert RESPONSES.stream is not None
    said = RESPONSES.stream.error_event(EngineFailed("It broke."), "r", 3)
    head, _, data = said.partition(b"\ndata: ")
    event = json.loads(data)
    assert head == b"event: error" and said.endswith(b"\n\n")
    assert (event["type"], event["sequence_number"], event["message"]) == ("error", 3, "It broke.")
    assert event["error"] == {"message": "It broke.", "type": "server_error", "param": None, "code": "engine_failed"}


def test_a_stream_is_whole_with_its_last_event() -> None:
    """Completed, incomplete or failed: each is an end of its own."""
    assert RESPONSES.stream is not None
    assert any(ending in responses_stream(["a"])[-1] for ending in RESPONSES.stream.endings)
    assert not any(ending in b"".join(responses_stream(["a"])[:-1]) for ending in RESPONSES.stream.endings)


@pytest.mark.parametrize("missing", ["name", "schema"])
def test_a_schema_has_a_name_and_is_there(missing: str) -> None:
    """As at OpenAI; the engine's own refusal names its classes."""
    whole = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    with pytest.raises(InvalidRequest) as refused:
        draft(RESPONSES, text={"format": whole | {missing: None}})
    assert refused.value.param == f"text.format.{missing}"


def test_a_format_that_asks_for_nothing_is_none() -> None:
    """Typed clients fill in every member."""
    assert sent(call(RESPONSES, text={"format": {"type": "text", "name": None, "schema": None}}))["text"] == {
        "format": {"type": "text"}
    }
    assert sent(call(RESPONSES, text={"format": {}}))["text"] == {}
