"""Answers in choices, without what the API does not document."""

from __future__ import annotations

import json

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chunk_answers import ChunkShaper, without_private_keys
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


def test_a_whole_completion_has_the_documented_keys() -> None:
    """As recorded, without vLLM's own."""
    answer = json.loads(ChunkShaper(Asked(), Usage).whole(body("tiny-completions-plain")))
    assert answer.keys() == {"id", "object", "created", "model", "choices", "system_fingerprint", "usage"}
    assert answer["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}
