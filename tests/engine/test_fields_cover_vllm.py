"""The gateway's table and byte patterns, held against the engine's own classes: a new version that differs fails loudly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.answers import documented
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chat_answers import ChatShaper
from serving.gateway.answers.chunk_answers import ChunkShaper
from serving.gateway.dialects import DIALECTS
from serving.gateway.nouns import Usage
from serving.gateway.relay.events import without_usage


@pytest.fixture(scope="module")
def vllm() -> Any:
    """Imported here, not above: a worker of pytest's that runs no test of this file is spared the seconds it takes."""
    from tests.engine import vllm_classes

    return vllm_classes


@pytest.mark.parametrize("path", DIALECTS)
def test_every_field_of_the_engine_is_in_the_table(path: str, vllm: Any) -> None:
    """Nothing the engine would read can come in unexamined, and nothing new is "unknown" by accident."""
    known = {name for model in vllm.REQUESTS[path] for name in model.model_fields}
    assert known - DIALECTS[path].fields.keys() == set()


#: Keys of vLLM's answers that no API documents.
PRIVATE = {
    *("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"),
    *("input_messages", "output_messages", "presence_penalty", "frequency_penalty"),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_every_key_of_an_answer_is_handed_out_or_known_to_be_private(path: str, vllm: Any) -> None:
    """A key that a new version adds is looked at before clients get it, or miss it."""
    shape = DIALECTS[path].shaper.shape  # type: ignore[attr-defined] # the class of this API's shaper
    # OpenAI's older API has no tiers.
    private = PRIVATE | {"service_tier"} if path == "/v1/completions" else PRIVATE
    assert vllm.ANSWERS[path].model_fields.keys() - shape.keys() <= private


def test_chunks_lose_every_key_that_the_api_lacks(vllm: Any) -> None:
    """As the engine's own classes write them: in the middle of a stream, and where a choice ends."""
    for shaper, delta, kind, whole in (
        (
            ChatShaper,
            {"delta": vllm.DeltaMessage(content="Hi")},
            vllm.ChatCompletionResponseStreamChoice,
            documented.CHAT,
        ),
        (ChunkShaper, {"text": "Hi"}, vllm.CompletionResponseStreamChoice, documented.COMPLETION),
    ):
        for ending in ({"finish_reason": None}, {"finish_reason": "stop", "stop_reason": 200012}):
            choice = kind(index=0, logprobs=None, token_ids=None, **delta, **ending)
            model = vllm.ChatCompletionStreamResponse if shaper is ChatShaper else vllm.CompletionStreamResponse
            event = (
                f"data: {model(id='x', created=1, model='m', choices=[choice]).model_dump_json(exclude_unset=True)}\n\n"
            )
            left = json.loads(shaper(Asked(), Usage).events(event.encode())[6:])
            assert documented.pruned(left, whole) == left


def test_chat_chunks_lose_their_usage_and_nothing_else(vllm: Any) -> None:
    """As the engine's own classes write them, first chunks and later ones come out as if usage had never been set."""
    for extra in ({"prompt_token_ids": None, "prompt_text": None}, {}):
        choice = vllm.ChatCompletionResponseStreamChoice(index=0, delta=vllm.DeltaMessage(content='","usage":{"x":1}'))
        head = {"id": "x", "created": 1, "model": "m", "choices": [choice], **extra}
        plain = vllm.ChatCompletionStreamResponse(**head).model_dump_json(exclude_unset=True)
        billed = vllm.ChatCompletionStreamResponse(**head, usage=vllm.USAGE).model_dump_json(exclude_unset=True)
        assert plain != billed
        assert without_usage(f"data: {billed}\n\n".encode(), keeps_final=False) == f"data: {plain}\n\n".encode()


def test_completion_chunks_lose_their_usage_and_nothing_else(vllm: Any) -> None:
    """The same for the older route."""
    choice = vllm.CompletionResponseStreamChoice(index=0, text='"choices":[]')
    head = {"id": "x", "created": 1, "model": "m", "choices": [choice]}
    plain = vllm.CompletionStreamResponse(**head).model_dump_json(exclude_unset=True)
    billed = vllm.CompletionStreamResponse(**head, usage=vllm.USAGE).model_dump_json(exclude_unset=True)
    assert without_usage(f"data: {billed}\n\n".encode(), keeps_final=False) == f"data: {plain}\n\n".encode()


def test_final_chunks_are_recognised(vllm: Any) -> None:
    """Both routes' last chunk is dropped whole, or kept as it is."""
    for model in (vllm.ChatCompletionStreamResponse, vllm.CompletionStreamResponse):
        last = model(id="x", created=1, model="m", choices=[], usage=vllm.USAGE, system_fingerprint="f")
        data = f"data: {last.model_dump_json(exclude_none=True)}\n\n".encode()
        assert without_usage(data, keeps_final=False) == b"" and without_usage(data, keeps_final=True) == data
