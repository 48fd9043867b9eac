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
    {"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://10.0.0.1"}]},
    {"input": [{"type": "item_reference", "id": "i"}]},
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


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "a"},
    ],
)
def test_items_of_text_are_sent_on_as_they_are(item: dict[str, object]) -> None:
    """Messages, reasoning, function calls and their outputs."""
    assert sent(call(RESPONSES, input=[item]))["input"] == [item]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "robot", "content": "a"}, "input[0].role"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": 7}, "input[0].content"),
        ({"role": "user", "content": [7]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"type": "function_call", "arguments": "{}", "call_id": "c"}, "input[0].name"),
        ({"type": "web_search_call"}, "input[0].type"),
    ],
)
def test_half_an_item_is_refused_by_its_place(item: dict[str, object], param: str) -> None:
    """What the engine would fail on is the client's 400."""
    with pytest.raises(InvalidRequest) as refused:
        draft(RESPONSES, input=[item])
    assert refused.value.param == param


def test_a_tool_has_what_the_engine_requires() -> None:
    """Its parameters and its strictness, if only as null; a function has a name."""
    (tool,) = sent(call(RESPONSES, tools=[{"type": "function", "name": "f"}]))["tools"]
    assert tool == {"type": "function", "name": "f", "parameters": None, "strict": None}
    with pytest.raises(InvalidRequest, match=r"tools\[0\]\.name"):
        draft(RESPONSES, tools=[{"type": "function"}])


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
