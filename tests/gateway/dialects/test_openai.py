"""OpenAI: usage, streams and their errors, as chat, completions and embeddings share them."""

from __future__ import annotations

import json

import msgspec
import pytest

from serving.errors import EngineFailed, InvalidRequest
from serving.gateway.dialects.openai import CHUNKS, DONE, ChatCounts, check_streaming
from serving.gateway.nouns import Usage


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}, Usage(7, 2)),
        ({"prompt_tokens": 7, "completion_tokens": None}, Usage(7)),
        ({"prompt_tokens": 7, "prompt_tokens_details": None, "completion_tokens_details": None}, Usage(7)),
        (
            {
                "prompt_tokens": 7,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
            Usage(7, 2, 3, 1),
        ),
        ({"prompt_tokens_details": {"cached_tokens": None}}, Usage()),
    ],
)
def test_usage_is_read_as_engines_write_it(said: dict[str, object], usage: Usage) -> None:
    """Null and absent count nothing; what is unknown is passed over."""
    assert msgspec.json.decode(json.dumps(said), type=ChatCounts).usage() == usage


def test_a_stream_that_fails_ends_in_an_error_and_done() -> None:
    """A client that only waits for [DONE] ends too."""
    said = CHUNKS.error_event(EngineFailed("It broke."), "r", 5)
    assert said.startswith(b'event: error\ndata: {"error":{"message":"It broke."') and said.endswith(DONE)


@pytest.mark.parametrize("stream", [None, False])
def test_options_of_a_stream_need_a_stream(stream: bool | None) -> None:
    """As OpenAI says it."""
    kept: dict[str, object] = {"stream_options": {}, "stream": stream}
    with pytest.raises(InvalidRequest) as refused:
        check_streaming(kept, kept)
    assert refused.value.param == "stream_options"
    check_streaming({}, {"stream_options": {}, "stream": True})
