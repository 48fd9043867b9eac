"""Chat's answers, as recorded from vLLM: stop strings, log probabilities, cut answers, calls that nobody offered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chat_answers import ChatAssembly, ChatShaper
from serving.gateway.nouns import Usage
from tests.gateway.answers.recorded_answers import body, data, shaped, stream, whole


def streamed(name: str, **asked: Any) -> bytes:
    return shaped(ChatShaper(Asked(**asked), Usage), stream(name))


def chosen(name: str, **asked: Any) -> dict[str, Any]:
    """The choice of a whole answer put together from a recorded stream."""
    choice: dict[str, Any] = whole(ChatAssembly(), streamed(name, **asked))["choices"][0]
    return choice


def test_an_ordinary_chunk_passes_byte_for_byte() -> None:
    """Nothing is decoded; only keys that the API lacks are gone."""
    *chunks, _, done = stream("tiny-chat-reasoned")
    for event in (*chunks, done):
        out = ChatShaper(Asked(), Usage).events(event)
        assert out == event or b"token_ids" in event


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("42", "The sum is forty-two."),
        ("assistant", "The sum is forty-two."),
        ("final", "The sum is forty-two."),
        ("analysis", "The sum is forty-two."),
        ("forty", "The sum is "),
        ("is for", "The sum "),
        ("two.", "The sum is forty-"),
        ("The", ""),
    ],
)
def test_a_stop_string_acts_on_content_only(stop: str, content: str) -> None:
    """Reasoning and headers never stop an answer; the reasoning comes whole, and the finish says stop."""
    choice = chosen("tiny-chat-reasoned", stops=(stop,))
    assert (choice["message"]["content"] or "") == content
    assert choice["message"]["reasoning"] == "17+25=42." and choice["finish_reason"] == "stop"


def test_a_stop_string_leaves_a_call_alone() -> None:
    """Neither its name nor its arguments stop it."""
    choice = chosen("tiny-chat-tool", stops=("Paris", "get_weather"), offers_tools=True)
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["arguments"], choice["finish_reason"]) == ('{"city": "Paris"}', "tool_calls")


def test_a_stream_that_a_stop_string_ends_says_what_it_cost() -> None:
    """The client's part is over: a finish, the usage as of the last chunk, and the end."""
    shaper = ChatShaper(Asked(stops=("forty",)), Usage)
    out = shaped(shaper, stream("tiny-chat-reasoned"))
    *_, finish, last = data(out)
    assert shaper.is_over and out.endswith(b"data: [DONE]\n\n")
    assert finish["choices"][0]["finish_reason"] == "stop" and last["choices"] == []
    assert last["usage"]["completion_tokens"] == 19 and last["usage"]["prompt_tokens"] == 75
    assert shaper.events(stream("tiny-chat-reasoned")[-2]) == b""


def test_the_match_stays_where_the_client_wants_it() -> None:
    """`include_stop_str_in_output`."""
    assert chosen("tiny-chat-reasoned", stops=("forty",), keeps_stop=True)["message"]["content"] == "The sum is forty"


def test_no_stop_string_counts_before_the_least_number_of_tokens() -> None:
    """`min_tokens`, as the engine has it."""
    assert (
        chosen("tiny-chat-reasoned", stops=("forty",), min_tokens=20)["message"]["content"] == "The sum is forty-two."
    )


def test_choices_stop_each_for_itself() -> None:
    """One that is over says nothing more; the stream ends with the last."""

    def chunk(index: int, text: str, tokens: int, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
        usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
        return b"data: " + json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode() + b"\n\n"

    shaper = ChatShaper(Asked(stops=("x",), choices=2), Usage)
    blocks = [chunk(0, "ax", 1), chunk(0, "b", 2), chunk(1, "c", 1), chunk(1, "d", 2, "stop"), chunk(0, "e", 3)]
    out = shaped(shaper, blocks)
    answer = whole(ChatAssembly(), out)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["a", "cd"]
    assert answer["usage"]["completion_tokens"] == 4 and shaper.is_over


def test_a_cut_call_says_length() -> None:
    """Whole as streamed, with what there is of its arguments."""
    choice = chosen("tiny-chat-toolcut26", offers_tools=True)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city'}


def test_a_parsers_syntax_is_no_content() -> None:
    """A forced call that was cut before its name, of a model whose calls are text."""
    choice = chosen("smol-chat-required-cut", offers_tools=True)
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")


def test_a_cut_header_is_no_content() -> None:
    """`assistant`, of a message that did not come any further."""
    for asked in ({}, {"stops": ("x",)}):
        choice = chosen("tiny-chat-cut12", **asked)
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")


@pytest.mark.parametrize("name", ["tiny-chat-logprobs", "tiny-chat-logprobs-reasoned"])
def test_log_probabilities_are_those_of_the_content(name: str) -> None:
    """Their bytes joined are the content: no header, no marker, no reasoning."""
    choice = chosen(name, wants_logprobs=True)
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"]
    assert all(entry["token"] for entry in entries)


def test_log_probabilities_are_cut_with_their_text() -> None:
    """What a stop string cuts off has none."""
    choice = chosen("tiny-chat-logprobs", stops=(" help",), wants_logprobs=True)
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == choice["message"]["content"]
    assert choice["message"]["content"] == "Hello! How can I"


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_call_that_nobody_offered_is_not_handed_out(is_whole: bool) -> None:
    """An answer of nothing else says that something was left out."""
    if is_whole:
        choice = json.loads(ChatShaper(Asked(), Usage).whole(body("tiny-chat-tool")))["choices"][0]
    else:
        choice = chosen("tiny-chat-tool")
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "content_filter"
    assert choice["message"]["reasoning"] == "I should look it up."


def test_beside_a_text_such_a_call_is_only_left_out() -> None:
    """The answer is the text."""
    text = {"index": 0, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": None}
    event = b"data: " + json.dumps({"choices": [text]}, separators=(",", ":")).encode() + b"\n\n"
    out = shaped(ChatShaper(Asked(), Usage), [event, *stream("tiny-chat-tool")])
    choice = whole(ChatAssembly(), out)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hi", "stop")


def test_what_is_put_together_is_what_the_engine_gives_whole() -> None:
    """The same keys and the same values."""
    answer = whole(ChatAssembly(), streamed("tiny-chat-reasoned"))
    said = json.loads(ChatShaper(Asked(), Usage).whole(body("tiny-chat-reasoned")))
    for one in (answer, said):
        one.pop("id"), one.pop("created"), one["usage"].pop("prompt_tokens_details")
        for name in ("annotations", "audio", "function_call"):
            one["choices"][0]["message"].pop(name, None)
    assert answer == said
