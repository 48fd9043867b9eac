"""Chat: fields at fault are named, and only text is read."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects.chat import CHAT
from tests.gateway.calls import call, draft, sent

BAD_FIELDS: list[tuple[dict[str, object], str, str | None]] = [
    ({"no_such_field": 1}, "no_such_field", "unknown_parameter"),
    ({"priority": 1}, "priority", "unsupported_parameter"),
    ({"cache_salt": "x"}, "cache_salt", "unsupported_parameter"),
    ({"temperature": 3}, "temperature", None),
    ({"temperature": "hot"}, "temperature", None),
    ({"n": 100}, "n", None),
    ({"seed": 2**64}, "seed", None),
    ({"stop": ["a"] * 5}, "stop", None),
    ({"stream": "yes"}, "stream", None),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"top_logprobs": 2}, "top_logprobs", None),
    ({"reasoning_effort": "xhigh"}, "reasoning_effort", None),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name", None),
    ({"tool_choice": "required"}, "tool_choice", None),
    ({"messages": []}, "messages", None),
    ({"messages": [{"role": "user"}]}, "messages[0].content", None),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", None),
    ({"messages": None}, "messages", None),
    ({"model": None}, "model", None),
    ({"chat_template_kwargs": {"builtin_tools": ["python"]}}, "chat_template_kwargs", None),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", None),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD_FIELDS, ids=[str(fields)[:60] for fields, *_ in BAD_FIELDS])
def test_bad_fields_are_named(fields: dict[str, object], param: str, code: str | None) -> None:
    """A 400 says which field it is about, so that the caller can fix it."""
    with pytest.raises(InvalidRequest) as refused:
        draft(CHAT, **fields)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)


MEDIA: list[tuple[dict[str, object], str]] = [
    ({"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}, "Image input"),
    ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "Audio input"),
    ({"type": "file", "file": {"file_id": "f"}}, "File input"),
    ({"type": "video_url", "video_url": {"url": "x"}}, "Video input"),
]


@pytest.mark.parametrize(("part", "word"), MEDIA, ids=[word for _, word in MEDIA])
def test_media_is_refused_by_name(part: dict[str, object], word: str) -> None:
    """A text model says what it cannot read; no engine fetches a URL for a client."""
    with pytest.raises(UnsupportedParameter, match=f"^{word}") as refused:
        draft(CHAT, messages=[{"role": "user", "content": [part]}])
    assert refused.value.param == "messages[0].content[0]"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "developer", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}, {"type": "refusal", "refusal": "b"}]},
        {"role": "tool", "tool_call_id": "1", "content": "a"},
        {"role": "assistant", "content": "a", "reasoning_content": "b"},
    ],
)
def test_a_conversation_of_text_is_sent_on(message: dict[str, object]) -> None:
    """Every role and part that OpenAI documents for text."""
    (kept,) = sent(call(CHAT, messages=[message]))["messages"]
    assert message["content"] == kept["content"] and kept["role"] == message["role"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "a"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "robot", "content": "a"}, "messages[0].role"),
    ],
)
def test_half_a_message_is_refused_by_its_place(message: dict[str, object], param: str) -> None:
    """What the engine would fail on is the client's 400."""
    with pytest.raises(InvalidRequest) as refused:
        draft(CHAT, messages=[message])
    assert refused.value.param == param


def test_an_empty_list_of_tool_calls_is_left_out() -> None:
    """Clients that echo an answer send one, and the engine refuses it."""
    echoed = {"role": "assistant", "content": "a", "tool_calls": []}
    (kept,) = sent(call(CHAT, messages=[echoed]))["messages"]
    assert kept == {"role": "assistant", "content": "a"}


def test_a_tool_choice_needs_tools() -> None:
    """`none` chooses nothing and may stand alone."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert sent(call(CHAT, tool_choice="none"))["tool_choice"] == "none"
    assert sent(call(CHAT, tool_choice="required", tools=tools))["tool_choice"] == "required"


def test_the_error_of_a_prompt_names_the_messages() -> None:
    """Where its length is at fault."""
    assert CHAT.prompt_field == "messages" and CHAT.is_billed
