"""Messages: Anthropic's blocks, tools, thinking, usage and errors."""

from __future__ import annotations

import json

import pytest

from serving.errors import EngineFailed, InvalidRequest, UnsupportedParameter
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES, MessagesCounts
from serving.gateway.nouns import Usage
from tests.gateway.calls import call, draft, sent
from tests.scripted_engine import messages_stream


def test_a_limit_is_required_as_at_anthropic() -> None:
    """So no default is ever put in; counting tokens needs none."""
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'max_tokens'"):
        draft(MESSAGES, max_tokens=None)
    assert call(COUNT_TOKENS).output_tokens_max is None


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a"}]},
        {"type": "thinking", "thinking": "a", "signature": ""},
    ],
)
def test_blocks_of_text_and_tools_are_sent_on(block: dict[str, object]) -> None:
    """In a conversation as they are; in a system prompt too."""
    messages = [{"role": "user", "content": [block]}]
    assert sent(call(MESSAGES, messages=messages, system=[block]))["messages"] == messages


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "image", "source": {}}, "messages[0].content[0]"),
        ({"type": "document"}, "messages[0].content[0]"),
        ({"type": "text", "text": 7}, "messages[0].content[0]"),
        ({"text": "a"}, "messages[0].content[0]"),
        ({"type": "tool_result", "content": [{"type": "image"}]}, "messages[0].content[0].content[0]"),
    ],
)
def test_a_block_that_is_no_text_is_refused_by_its_place(block: dict[str, object], param: str) -> None:
    """Inside a tool's result too."""
    with pytest.raises(InvalidRequest) as refused:
        draft(MESSAGES, messages=[{"role": "user", "content": [block]}])
    assert refused.value.param == param


def test_only_a_clients_own_tools_are_taken() -> None:
    """`custom` means the same as no type; the engine gets none."""
    tool = {"name": "f", "input_schema": {"type": "object"}}
    assert sent(call(MESSAGES, tools=[tool | {"type": "custom"}]))["tools"] == [tool]
    with pytest.raises(UnsupportedParameter, match="web_search_20250305") as refused:
        draft(MESSAGES, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert refused.value.param == "tools[0].type"


@pytest.mark.parametrize(
    ("thinking", "sentence"),
    [
        ({"type": "enabled"}, "Missing required parameter: 'thinking.budget_tokens'"),
        ({"type": "enabled", "budget_tokens": 2048}, "must be less than 'max_tokens'"),
        ({"type": "enabled", "budget_tokens": 10}, "Invalid value for 'thinking.budget_tokens'"),
    ],
)
def test_thinking_has_a_budget_below_the_limit(thinking: dict[str, object], sentence: str) -> None:
    """Anthropic's own rules, in a sentence each."""
    with pytest.raises(InvalidRequest, match=sentence):
        draft(MESSAGES, max_tokens=2048, thinking=thinking)
    assert "thinking" in sent(call(MESSAGES, max_tokens=2049, thinking={"type": "enabled", "budget_tokens": 2048}))


def test_usage_adds_what_the_cache_gave_and_took() -> None:
    """Anthropic's input tokens exclude both; null counts nothing."""
    assert MessagesCounts(10, 2, 3, 4).usage() == Usage(17, 2, 3)
    assert MessagesCounts(10, 2, None, None).usage() == Usage(10, 2)


def test_a_stream_that_fails_ends_in_anthropics_error_event() -> None:
    """Its official client raises on it."""
    assert MESSAGES.stream is not None
    head, _, data = MESSAGES.stream.error_event(EngineFailed("It broke."), "req-1", 3).partition(b"\ndata: ")
    event = json.loads(data)
    assert head == b"event: error" and (event["type"], event["request_id"]) == ("error", "req-1")
    assert event["error"] == {"type": "api_error", "message": "It broke."}


def test_a_stream_is_whole_with_message_stop() -> None:
    """What carries the last usage comes just before it."""
    assert MESSAGES.stream is not None
    *before, last = messages_stream(["a"])
    assert MESSAGES.stream.endings[0] in last and MESSAGES.stream.endings[0] not in b"".join(before)
