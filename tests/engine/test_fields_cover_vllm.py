"""The gateway's table and byte patterns, held against the engine's own classes: a new version that differs fails loudly."""

from __future__ import annotations

import warnings

import pytest

from serving.gateway.dialects import DIALECTS
from serving.gateway.relay.events import without_usage

with warnings.catch_warnings():
    # torch warns of its own deprecated parts while it is imported; tests treat warnings as errors.
    warnings.simplefilter("ignore")
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChoice,
        ChatCompletionStreamResponse,
    )
    from vllm.entrypoints.openai.completion.protocol import (
        CompletionRequest,
        CompletionResponseStreamChoice,
        CompletionStreamResponse,
    )
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingBatchChatInputRequest, EmbeddingCompletionRequest
    from vllm.entrypoints.serve.engine.protocol import CompletionTokenUsageInfo, PromptTokenUsageInfo, UsageInfo
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest

REQUESTS = {
    "/v1/chat/completions": (ChatCompletionRequest,),
    "/v1/completions": (CompletionRequest,),
    "/v1/responses": (ResponsesRequest,),
    "/v1/embeddings": (EmbeddingCompletionRequest, EmbeddingBatchChatInputRequest),
    "/v1/messages": (AnthropicMessagesRequest,),
    "/v1/messages/count_tokens": (AnthropicCountTokensRequest,),
    "/tokenize": (TokenizeCompletionRequest, TokenizeChatRequest),
}


@pytest.mark.parametrize("path", REQUESTS)
def test_every_field_of_the_engine_is_in_the_table(path: str) -> None:
    """Nothing the engine would read can come in unexamined, and nothing new is "unknown" by accident."""
    known = {name for model in REQUESTS[path] for name in model.model_fields}
    assert known - DIALECTS[path].fields.keys() == set()


USAGE = UsageInfo(
    prompt_tokens=5,
    completion_tokens=1,
    total_tokens=6,
    prompt_tokens_details=PromptTokenUsageInfo(cached_tokens=4, multimodal_tokens={"image": 3}),
    completion_tokens_details=CompletionTokenUsageInfo(reasoning_tokens=3),
)


def test_chat_chunks_lose_their_usage_and_nothing_else() -> None:
    """As the engine's own classes write them, first chunks and later ones come out as if usage had never been set."""
    for extra in ({"prompt_token_ids": None, "prompt_text": None}, {}):
        choice = ChatCompletionResponseStreamChoice(index=0, delta=DeltaMessage(content='","usage":{"x":1}'))
        head = {"id": "x", "created": 1, "model": "m", "choices": [choice], **extra}
        plain = ChatCompletionStreamResponse(**head).model_dump_json(exclude_unset=True)
        billed = ChatCompletionStreamResponse(**head, usage=USAGE).model_dump_json(exclude_unset=True)
        assert plain != billed
        assert without_usage(f"data: {billed}\n\n".encode(), keeps_final=False) == f"data: {plain}\n\n".encode()


def test_completion_chunks_lose_their_usage_and_nothing_else() -> None:
    """The same for the older route."""
    choice = CompletionResponseStreamChoice(index=0, text='"choices":[]')
    head = {"id": "x", "created": 1, "model": "m", "choices": [choice]}
    plain = CompletionStreamResponse(**head).model_dump_json(exclude_unset=True)
    billed = CompletionStreamResponse(**head, usage=USAGE).model_dump_json(exclude_unset=True)
    assert without_usage(f"data: {billed}\n\n".encode(), keeps_final=False) == f"data: {plain}\n\n".encode()


def test_final_chunks_are_recognised() -> None:
    """Both routes' last chunk is dropped whole, or kept as it is."""
    for model in (ChatCompletionStreamResponse, CompletionStreamResponse):
        last = model(id="x", created=1, model="m", choices=[], usage=USAGE, system_fingerprint="f")
        data = f"data: {last.model_dump_json(exclude_none=True)}\n\n".encode()
        assert without_usage(data, keeps_final=False) == b"" and without_usage(data, keeps_final=True) == data
