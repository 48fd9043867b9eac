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
    ({"reasoning_effort": "very"}, "reasoning_effort", None),
    ({"max_tokens": 100.5}, "max_tokens", None),
    ({"max_tokens": 1e300}, "max_tokens", None),
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


def test_log_probabilities_of_a_prompt_are_refused() -> None:
    """They bypass the prefix cache: of a message that is repeated the engine would compute them, whether they are wanted or not."""
    with pytest.raises(UnsupportedParameter) as refused:
        draft(CHAT, echo=True, logprobs=True)
    assert refused.value.param == "logprobs"
    for more in ({}, {"top_logprobs": 0}, {"logprobs": False}):
        body = sent(call(CHAT, echo=True, **more))
        assert (body["echo"], body["top_logprobs"]) == (True, None)


def test_an_empty_list_of_tool_calls_is_left_out() -> None:
    """Clients that echo an answer send one, and the engine refuses it."""
    echoed = {"role": "assistant", "content": "a", "tool_calls": []}
    (kept,) = sent(call(CHAT, messages=[echoed]))["messages"]
    assert kept == {"role": "assistant", "content": "a"}


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


def test_a_tool_choice_needs_tools() -> None:
    """`none` and `auto` choose nothing and may stand alone."""
    for choice in ("none", "auto"):
        assert "tool_choice" not in sent(call(CHAT, tool_choice=choice, tools=[]))
    assert sent(call(CHAT, tool_choice="required", tools=TOOLS))["tool_choice"] == "required"
    named = {"type": "function", "function": {"name": "f"}}
    assert sent(call(CHAT, tool_choice=named, tools=TOOLS))["tool_choice"] == named


def test_none_sends_no_tools() -> None:
    """What a model is not told of it does not call."""
    body = sent(call(CHAT, tool_choice="none", tools=TOOLS))
    assert "tools" not in body and "tool_choice" not in body


def test_allowed_tools_narrow_the_list() -> None:
    """The engine is offered those alone; the mode is the choice among them."""
    allowed = {"mode": "required", "tools": [TOOLS[1]]}
    body = sent(call(CHAT, tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}))
    assert (body["tools"], body["tool_choice"]) == ([TOOLS[1]], "required")


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({"reasoning_effort": "none"}, "low"),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "medium"}, "medium"),
        ({"reasoning_effort": "xhigh"}, "high"),
        ({"reasoning_effort": "max"}, "high"),
        ({"thinking_token_budget": 2000}, "low"),
        ({"thinking_token_budget": 0}, "low"),
        ({"thinking_token_budget": -1}, None),
        ({"thinking_token_budget": 30_000, "reasoning_effort": "low"}, "low"),
        ({"reasoning": {"effort": "high", "exclude": True}}, "high"),
        ({"reasoning": {"max_tokens": 10_000}}, "medium"),
        ({"thinking": {"type": "disabled"}}, "low"),
        ({"enable_thinking": False}, "low"),
        ({"enable_thinking": True}, None),
    ],
    ids=str,
)
def test_how_much_to_think_is_one_word_to_the_engine(fields: dict[str, object], level: str | None) -> None:
    """Whatever clients call it; a budget is a hint and never reaches an engine."""
    body = sent(call(CHAT, **fields))
    assert body.get("reasoning_effort") == level
    assert not body.keys() & {"thinking_token_budget", "reasoning", "thinking", "enable_thinking"}


def test_media_in_a_tools_result_become_a_sentence() -> None:
    """So that one picture does not stop a session; a user's own is refused."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "a"}, part]}
    (kept,) = sent(call(CHAT, messages=[result]))["messages"]
    assert [it["text"] for it in kept["content"]] == ["a", "[Image left out: the models served here read text.]"]


def test_a_part_of_another_apis_name_keeps_its_text() -> None:
    """Clients that speak several APIs mix them up."""
    (kept,) = sent(call(CHAT, messages=[{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]))[
        "messages"
    ]
    assert kept["content"] == [{"type": "text", "text": "a"}]


def test_a_custom_tools_call_comes_back_as_a_functions() -> None:
    """Its text as `input`; a call that is neither is named."""
    old = {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "p", "input": "x"}}]}
    (kept,) = sent(call(CHAT, messages=[old]))["messages"]
    assert kept["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "p", "arguments": '{"input":"x"}'}}
    ]
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.tool_calls\[0\]\.function"):
        draft(CHAT, messages=[{"role": "assistant", "tool_calls": [{"id": "1"}]}])


def test_a_search_that_runs_nowhere_is_left_out_and_said() -> None:
    """Its empty object asks for it all the same."""
    for options in ({}, {"search_context_size": "low"}):
        one = draft(CHAT, web_search_options=options)
        assert one.headers() == [(b"x-left-out", b"web_search_options")]


def test_the_error_of_a_prompt_names_the_messages() -> None:
    """Where its length is at fault."""
    assert CHAT.prompt_field == "messages" and CHAT.is_billed


EARLIER: list[tuple[dict[str, object], object]] = [
    ({"role": "assistant", "content": None, "refusal": "No."}, "No."),
    ({"role": "assistant", "content": "a", "refusal": None}, "a"),
    ({"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}, None),
    ({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "AAAA"}, {"type": "text", "text": "a"}]},
     [{"type": "text", "text": "a"}]),
    ({"role": "assistant", "content": [{"type": "reasoning", "text": "b"}]}, [{"type": "thinking", "thinking": "b"}]),
    ({"role": "tool", "tool_call_id": "1", "content": [{"type": "tool_reference", "tool_name": "f"}]},
     [{"type": "text", "text": "[The tool f is available.]"}]),
    ({"role": "tool", "tool_call_id": "1", "content": [{"type": "json", "json": {"a": 1}}]},
     [{"type": "text", "text": '{"type":"json","json":{"a":1}}'}]),
    ({"role": "tool", "tool_call_id": "1", "content": [{"type": "search_result", "title": "T", "content": [{"text": "b"}]}]},
     [{"type": "text", "text": "T\nb"}]),
]  # fmt: skip


@pytest.mark.parametrize(("message", "content"), EARLIER, ids=str)
def test_a_part_of_an_earlier_turn_never_stops_a_session(message: dict[str, object], content: object) -> None:
    """It keeps its text, whatever API its kind comes from; what has none is left out, as in the other APIs."""
    kept, _ = sent(call(CHAT, messages=[message, {"role": "user", "content": "b"}]))["messages"]
    assert kept["content"] == content and "refusal" not in kept
