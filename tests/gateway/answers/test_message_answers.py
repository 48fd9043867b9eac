"""Anthropic's answers, as recorded from vLLM: stop sequences, cut answers, calls that nobody offered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.message_answers import CountShaper, MessageAssembly, MessageShaper
from serving.gateway.nouns import Usage
from tests.gateway.answers.recorded_answers import body, data, shaped, stream, whole


def streamed(name: str, **asked: Any) -> bytes:
    return shaped(MessageShaper(Asked(**asked), lambda: Usage(75, 19)), stream(name))


def message(name: str, **asked: Any) -> dict[str, Any]:
    """A whole message put together from a recorded stream."""
    return whole(MessageAssembly(), streamed(name, **asked))


def text(answer: dict[str, Any]) -> str:
    return "".join(block["text"] for block in answer["content"] if block["type"] == "text")


@pytest.mark.parametrize("name", ["tiny-messages-reasoned", "tiny-messages-toolcut26", "tiny-messages-tool"])
def test_a_stream_passes_byte_for_byte(name: str) -> None:
    """Anthropic's events carry no private key."""
    assert streamed(name, offers_tools=True) == b"".join(stream(name))


@pytest.mark.parametrize(
    ("stop", "content", "ending"),
    [
        ("42", "The sum is forty-two.", ("end_turn", None)),
        ("assistant", "The sum is forty-two.", ("end_turn", None)),
        ("forty", "The sum is ", ("stop_sequence", "forty")),
        ("y-t", "The sum is fort", ("stop_sequence", "y-t")),
        ("two. ", "The sum is forty-two.", ("end_turn", None)),
    ],
)
def test_a_stop_sequence_acts_on_text_only(stop: str, content: str, ending: tuple[str, str | None]) -> None:
    """The thinking comes whole, and the message says what ended it."""
    answer = message("tiny-messages-reasoned", stops=(stop,))
    assert (text(answer), (answer["stop_reason"], answer["stop_sequence"])) == (content, ending)
    assert answer["content"][0]["thinking"] == "17+25=42."
    assert answer["usage"]["output_tokens"] == (19 if ending[1] else 22)


def test_a_stop_sequence_leaves_a_call_alone() -> None:
    """Neither its name nor its input stops it."""
    answer = message("tiny-messages-tool", stops=("Paris", "get_weather"), offers_tools=True)
    assert answer["content"][-1]["input"] == {"city": "Paris"} and answer["stop_reason"] == "tool_use"


def test_a_cut_call_is_a_message_without_it() -> None:
    """vLLM's whole answer is a 400 there; a client would run half a call."""
    answer = message("tiny-messages-toolcut26", offers_tools=True)
    assert [block["type"] for block in answer["content"]] == ["thinking"]
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 26)


def test_a_call_with_broken_arguments_comes_with_none() -> None:
    """It was not cut: its client may say to the model what is wrong."""
    out = streamed("tiny-messages-toolcut26", offers_tools=True).replace(b'"max_tokens"', b'"tool_use"')
    assert whole(MessageAssembly(), out)["content"][-1]["input"] == {}


def test_a_cut_header_is_no_text() -> None:
    """Streamed it waits until it is more, whole it is left out, and so it is in a whole answer of the engine."""
    assert b"assistant" not in streamed("tiny-messages-cut12").partition(b"message_start")[2].partition(b"\n\n")[2]
    said = json.loads(MessageShaper(Asked(), Usage).whole(body("tiny-messages-cut12")))
    for answer in (message("tiny-messages-cut12"), message("tiny-messages-cut12", stops=("x",)), said):
        assert [block["type"] for block in answer["content"]] == ["thinking"] and answer["stop_reason"] == "max_tokens"


def test_a_word_that_is_all_of_an_answer_is_a_text() -> None:
    """Of one token: a header would have had a marker before it."""
    said = {"content": [{"type": "text", "text": "final"}], "stop_reason": "max_tokens"}
    for tokens, content in ((1, "final"), (2, "")):
        document = json.dumps(said | {"usage": {"output_tokens": tokens}}).encode()
        assert text(json.loads(MessageShaper(Asked(), Usage).whole(document))) == content


def test_a_text_that_begins_like_a_header_comes_whole() -> None:
    """It only waits for its next word."""
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        for word in ("final", " word")
    ]
    blocks = [f"event: {it['type']}\ndata: {json.dumps(it)}\n\n".encode() for it in (start, *deltas)]
    shaper = MessageShaper(Asked(), Usage)
    assert [shaper.events(block) for block in blocks] == [b"", b"", b"".join(blocks)]


def test_a_call_that_nobody_offered_is_not_handed_out() -> None:
    """A message of nothing else is no empty end of a turn."""
    answer = message("tiny-messages-tool")
    assert [block["type"] for block in answer["content"]] == ["thinking"] and answer["stop_reason"] == "refusal"
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    said = {"content": [call], "stop_reason": "tool_use"}
    given = json.loads(MessageShaper(Asked(), Usage).whole(json.dumps(said).encode()))
    assert given == {"content": [{"type": "text", "text": ""}], "stop_reason": "refusal", "stop_sequence": None}


def test_a_whole_message_has_the_documented_keys() -> None:
    """`stop_sequence` is there if only as null, and vLLM's own keys are not."""
    said = json.loads(body("tiny-messages-reasoned")) | {"kv_transfer_params": {"a": 1}}
    answer = json.loads(MessageShaper(Asked(), Usage).whole(json.dumps(said).encode()))
    assert answer.keys() == {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"}


def test_what_is_put_together_is_what_the_engine_gives_whole() -> None:
    """The same keys and the same values, but for ids."""
    answer = message("tiny-messages-reasoned")
    said = json.loads(MessageShaper(Asked(), Usage).whole(body("tiny-messages-reasoned")))
    for one in (answer, said):
        one.pop("id"), one["content"][0].pop("signature")
    assert answer == said


def test_an_empty_message_has_an_empty_text() -> None:
    """Clients read the first block."""
    events = [event for event in stream("tiny-messages-reasoned") if b"content_block" not in event]
    answer = whole(MessageAssembly(), b"".join(events))
    assert answer["content"] == [{"type": "text", "text": ""}] and len(data(b"".join(events))) == 3


def test_a_count_is_a_number_of_tokens() -> None:
    """As Anthropic counts."""
    assert CountShaper(Asked(), Usage).whole(b'{"input_tokens":2,"secret":1}') == b'{"input_tokens":2}'
