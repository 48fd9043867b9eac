"""Embeddings as OpenAI documents them."""

from __future__ import annotations

import json

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.embedding_answers import EmbeddingShaper
from serving.gateway.nouns import Usage


def test_vectors_pass_as_they_are_and_private_keys_do_not() -> None:
    """Their numbers are not read, so that none is rounded."""
    usage = {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0, "prompt_tokens_details": None}
    head = {"id": "embd-1", "object": "list", "created": 1, "model": "m", "usage": usage}
    body = json.dumps(head)[:-1] + ', "data": [{"index":0,"object":"embedding","embedding":[0.12345678901234567890]}]}'
    out = EmbeddingShaper(Asked(), Usage).whole(body.encode())
    assert b"0.12345678901234567890" in out
    assert json.loads(out).keys() == {"object", "data", "model", "usage"}
    assert json.loads(out)["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_what_is_no_list_passes() -> None:
    """It is not taken for an answer."""
    assert EmbeddingShaper(Asked(), Usage).whole(b'{"oops":1}') == b'{"oops":1}'
