"""Answers in choices, without what the API does not document."""

from __future__ import annotations

import json

import pytest

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chat_answers import ChatShaper
from serving.gateway.answers.chunk_answers import ChunkShaper, without_private_keys
from serving.gateway.answers.shaper import Shaper
from serving.gateway.nouns import Usage
from tests.gateway.answers.recorded_answers import body, data, stream


def test_private_keys_go_by_their_bytes() -> None:
    """Whatever text says the same is not touched."""
    text = b'{"content":"\\",\\"token_ids\\":null,\\"stop_reason\\":7","logprobs":null'
    chunk = b'data: {"choices":[{"delta":' + text + b'},"finish_reason":"stop","stop_reason":%s,"token_ids":null}]}\n\n'
    plain = b'data: {"choices":[{"delta":' + text + b'},"finish_reason":"stop"}]}\n\n'
    for said in (b"null", b"200012", b'"a\\"b"'):
        assert without_private_keys(chunk % said) == plain


def test_a_recorded_stream_loses_nothing_else() -> None:
    """What is left is what the engine said."""
    for event in stream("tiny-chat-reasoned"):
        left = without_private_keys(event)
        for before, after in zip(data(event), data(left), strict=True):
            before.pop("prompt_token_ids", None), before.pop("prompt_text", None)
            for choice in before["choices"]:
                choice.pop("token_ids", None), choice.pop("stop_reason", None)
            assert before == after


def test_events_that_came_together_lose_the_same() -> None:
    """However a stream was read, it comes out the same."""
    events = stream("tiny-chat-reasoned")
    one_by_one = b"".join(map(ChatShaper(Asked(), Usage).events, events))
    for size in range(2, len(events) + 1):
        shaper = ChatShaper(Asked(), Usage)
        blocks = [b"".join(events[at : at + size]) for at in range(0, len(events), size)]
        assert b"".join(map(shaper.events, blocks)) == one_by_one


@pytest.mark.parametrize("kind", [ChunkShaper, ChatShaper])
def test_the_last_chunks_usage_has_the_documented_keys(kind: type[Shaper]) -> None:
    """vLLM counts cache tokens that it created under a name of its own."""
    *_, last, done = stream("tiny-chat-reasoned")
    shaper = kind(Asked(), Usage)
    (chunk,) = data(shaper.events(last + done))
    assert b"created_cache_tokens" in last
    assert chunk["usage"]["prompt_tokens_details"] == {"cached_tokens": 0} and chunk["choices"] == []
    assert chunk.keys() == data(last)[0].keys() and shaper.events(done) == done


def test_a_whole_completion_has_the_documented_keys() -> None:
    """As recorded, without vLLM's own."""
    answer = json.loads(ChunkShaper(Asked(), Usage).whole(body("tiny-completions-plain")))
    assert answer.keys() == {"id", "object", "created", "model", "choices", "system_fingerprint", "usage"}
    assert answer["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}
