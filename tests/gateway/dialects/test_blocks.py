"""Blocks: old turns never stop a session, and what is said now is read or refused by its place."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects.messages import MESSAGES
from tests.gateway.calls import call, draft, sent

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
SENTENCE = "[Image left out: the models served here read text.]"


def read(role: str, *blocks: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks as the engine gets them, in a message of this role after another."""
    messages = [{"role": "user", "content": "Hi"}, {"role": role, "content": list(blocks)}]
    kept = sent(call(MESSAGES, messages=messages))["messages"]
    return kept[1]["content"] if len(kept) == 2 else []


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a"}]},
        {"type": "tool_result", "tool_use_id": "1"},
        {"type": "thinking", "thinking": "a", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
    ],
)
def test_blocks_of_text_and_tools_are_sent_on(block: dict[str, object]) -> None:
    """In a conversation as they are; in a system prompt too."""
    assert read("user", block) == read("assistant", block) == [block]
    assert sent(call(MESSAGES, system=[block]))["system"] == [block]


@pytest.mark.parametrize(
    ("block", "place"),
    [
        (IMAGE, "messages[0].content[0]"),
        ({"type": "document"}, "messages[0].content[0]"),
        ({"type": "document", "source": {"type": "base64", "data": "AAAA"}}, "messages[0].content[0]"),
        ({"type": "container_upload", "file_id": "x"}, "messages[0].content[0]"),
        ({"type": "new"}, "messages[0].content[0]"),
        ({"type": "text", "text": 7}, "messages[0].content[0]"),
        ({"text": "a"}, "messages[0].content[0]"),
        ({"type": "tool_use", "id": "1", "name": "f", "input": "x"}, "messages[0].content[0].input"),
        ({"type": "tool_result", "content": [7]}, "messages[0].content[0].content[0]"),
    ],
    ids=str,
)
def test_a_block_that_is_no_text_is_refused_by_its_place(block: dict[str, object], place: str) -> None:
    """In the sentence: Anthropic's errors have no field for it."""
    with pytest.raises(InvalidRequest) as refused:
        draft(MESSAGES, messages=[{"role": "user", "content": [block]}])
    assert refused.value.param == place and place in refused.value.message


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (IMAGE, SENTENCE),
        ({"type": "document", "source": {"type": "base64", "data": "AAAA"}}, SENTENCE.replace("Image", "File")),
        ({"type": "document", "source": {"type": "text", "data": "a"}}, "a"),
        ({"type": "tool_reference", "tool_name": "get_weather"}, "[The tool get_weather is available.]"),
        ({"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "a"}]}, "t\ns\na"),
        ({"type": "new", "value": 1}, '{"type":"new","value":1}'),
    ],
    ids=str,
)
def test_a_tools_result_is_text(part: dict[str, object], text: str) -> None:
    """A picture in it becomes a sentence: it would be refused again on every later turn."""
    result = {"type": "tool_result", "tool_use_id": "1", "is_error": False, "content": [part]}
    assert read("user", result) == [result | {"content": [{"type": "text", "text": text}]}]


def test_blocks_of_hosted_tools_keep_their_text_or_are_left_out() -> None:
    """Searches, summaries of compacted turns, kinds of a newer API."""
    found = {"type": "web_search_result", "title": "t", "url": "https://example.org", "encrypted_content": "x"}
    blocks: list[dict[str, Any]] = [
        {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "1", "content": [found]},
        {"type": "compaction", "content": "So far."},
        {"type": "code_execution_tool_result", "tool_use_id": "2", "content": {"stdout": "42", "return_code": 0}},
        {"type": "mcp_tool_use", "id": "3", "name": "ask", "server_name": "s", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "3", "content": [{"type": "text", "text": "said"}]},
        {"type": "new"},
    ]
    assert [it["text"] for it in read("assistant", *blocks)] == [
        "t\nhttps://example.org",
        "So far.",
        "42",
        "said",
    ]
    assert read("assistant", blocks[0]) == []


def test_a_text_document_is_text() -> None:
    """With its title; a file is refused."""
    block = {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}
    assert read("user", block) == [{"type": "text", "text": "t\na"}]


def test_a_system_message_may_stand_anywhere() -> None:
    """Claude Code sends reminders so."""
    assert read("system", {"type": "text", "text": "a"}) == [{"type": "text", "text": "a"}]


def test_a_call_without_input_has_none() -> None:
    """Null is the empty object that engines want."""
    assert read("assistant", {"type": "tool_use", "id": "1", "name": "f", "input": None})[0]["input"] == {}
