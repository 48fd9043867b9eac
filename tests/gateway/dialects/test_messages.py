"""Messages: Anthropic's blocks, tools, thinking, usage and errors."""

from __future__ import annotations

import json

import pytest

from serving.errors import EngineFailed, InvalidRequest, ThreadUnsupported, UnsupportedParameter
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES, MessagesCounts
from serving.gateway.nouns import Usage
from serving.wire import STOP_STRINGS_MAX
from tests.gateway.calls import call, draft, sent
from tests.scripted_engine import messages_stream


def test_a_limit_is_required_as_at_anthropic() -> None:
    """So no default is ever put in; counting tokens needs none."""
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'max_tokens'"):
        draft(MESSAGES, max_tokens=None)
    assert call(COUNT_TOKENS).output_tokens_max is None


def test_only_a_clients_own_tools_are_sent_on() -> None:
    """`custom` means the same as no type; the engine gets none. Hosted ones are left out and named."""
    tool = {"name": "f", "input_schema": {"type": "object"}}
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    one = draft(MESSAGES, tools=[tool | {"type": "custom", "defer_loading": True}, search])
    assert sent(one.finish("m", "salt"))["tools"] == [tool]
    assert one.headers() == [(b"x-left-out", b"web_search_20250305")]
    with pytest.raises(UnsupportedParameter, match="'web_search', a tool that does not run here"):
        draft(MESSAGES, tools=[search], tool_choice={"type": "tool", "name": "web_search"})


@pytest.mark.parametrize(
    ("chosen", "spelt"),
    [
        ({"type": "any"}, {"type": "any"}),
        ({"type": "tool", "name": "f"}, {"type": "tool", "name": "f"}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"type": "auto", "disable_parallel_tool_use": True},
        ),
        ({"type": "none"}, None),
    ],
)
def test_a_choice_among_tools_keeps_anthropics_words(chosen: dict[str, object], spelt: object) -> None:
    """With none, no tool is sent: what a model is not told of it does not call."""
    body = sent(call(MESSAGES, tools=[{"name": "f", "input_schema": {}}], tool_choice=chosen))
    assert body.get("tool_choice") == spelt and ("tools" in body) is (spelt is not None)


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000.0}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, "high"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, None),
        ({"thinking": {"type": "enabled"}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 31_999}, "output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "max", "task_budget": {"type": "tokens"}}}, "high"),
        ({"output_config": {"effort": "none"}}, "low"),
        ({"thinking": {"type": "adaptive", "display": "new"}}, None),
    ],
    ids=str,
)
def test_a_thinking_budget_is_a_hint(fields: dict[str, object], level: str | None) -> None:
    """It becomes an effort where none is given, and never reaches an engine, when tokens are counted too."""
    for dialect, limit in ((MESSAGES, {"max_tokens": 32_000}), (COUNT_TOKENS, {})):
        body = sent(call(dialect, **fields, **limit))
        assert body.get("output_config", {}).get("effort") == level
        assert body.get("thinking") in (None, {"type": "adaptive"})


def test_thinking_has_a_budget_below_the_limit() -> None:
    """Anthropic's own rule."""
    with pytest.raises(InvalidRequest, match="must be less than 'max_tokens'"):
        draft(MESSAGES, max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 2048})


@pytest.mark.parametrize("dialect", [MESSAGES, COUNT_TOKENS], ids=lambda dialect: dialect.path)
def test_a_thread_is_refused_in_words_that_a_client_goes_on_by(dialect: Dialect) -> None:
    """Its official clients then send the whole conversation."""
    with pytest.raises(ThreadUnsupported) as refused:
        draft(dialect, thread={"type": "create"})
    error = json.loads(dialect.error_body(refused.value, "r"))["error"]
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


def test_as_many_stop_sequences_as_engines_take() -> None:
    """Anthropic has no bound of four."""
    stops = [str(n) for n in range(STOP_STRINGS_MAX)]
    assert call(MESSAGES, stop_sequences=stops).asked.stops == tuple(stops)
    with pytest.raises(InvalidRequest, match="stop_sequences"):
        draft(MESSAGES, stop_sequences=[*stops, "x"])


def test_system_messages_add_and_remove_tools() -> None:
    """The engine gets the tools in effect at the end, and no block that it might refuse."""
    tools: list[dict[str, object]] = [{"name": name, "input_schema": {}} for name in ("f", "g")]
    changes = [
        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}},
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "g"}},
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tools[0] | {"name": "h"}}},
    ]
    messages = [{"role": "user", "content": "Hi"}, {"role": "system", "content": changes}]
    body = sent(call(MESSAGES, tools=tools, messages=messages))
    assert [tool["name"] for tool in body["tools"]] == ["g", "h"] and body["messages"][1]["content"] == []


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


@pytest.mark.parametrize("dialect", [MESSAGES, COUNT_TOKENS], ids=["messages", "count_tokens"])
def test_a_format_has_an_older_name(dialect: Dialect) -> None:
    """SDKs of the beta send `output_format`; the newer name goes first."""
    older = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    newer = {"type": "json_schema", "schema": {"type": "object", "properties": {"b": {"type": "string"}}}}
    config = sent(call(dialect, output_format=older, output_config={"effort": "low"}))["output_config"]
    assert config == {"effort": "low", "format": older}
    assert sent(call(dialect, output_format=older, output_config={"format": newer}))["output_config"]["format"] == newer
    assert "output_format" not in sent(call(dialect, output_format=older))


def test_the_body_of_a_message_can_be_counted() -> None:
    """Clients count what they are about to send; the count does not depend on how the answer is made."""
    said = {"max_tokens": 5, "stop_sequences": ["a"], "stream": True, "temperature": 0.5, "top_p": 0.5, "top_k": 5}
    assert sent(call(COUNT_TOKENS, **said)) == sent(call(COUNT_TOKENS))
    with pytest.raises(InvalidRequest):
        draft(COUNT_TOKENS, max_tokens="5")
