"""vLLM's own classes of what goes in and out; importing them takes seconds, so `test_fields_cover_vllm` does it late."""

from __future__ import annotations

import warnings

__all__ = [
    "ANSWERS",
    "REQUESTS",
    "USAGE",
    "ChatCompletionResponseStreamChoice",
    "ChatCompletionStreamResponse",
    "CompletionResponseStreamChoice",
    "CompletionStreamResponse",
    "DeltaMessage",
]

with warnings.catch_warnings():
    # torch warns of its own deprecated parts while it is imported; tests treat warnings as errors.
    warnings.simplefilter("ignore")
    from vllm.entrypoints.anthropic.protocol import (
        AnthropicCountTokensRequest,
        AnthropicCountTokensResponse,
        AnthropicMessagesRequest,
        AnthropicMessagesResponse,
    )
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionRequest,
        ChatCompletionResponse,
        ChatCompletionResponseStreamChoice,
        ChatCompletionStreamResponse,
    )
    from vllm.entrypoints.openai.completion.protocol import (
        CompletionRequest,
        CompletionResponse,
        CompletionResponseStreamChoice,
        CompletionStreamResponse,
    )
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingBatchChatInputRequest, EmbeddingCompletionRequest
    from vllm.entrypoints.serve.engine.protocol import CompletionTokenUsageInfo, PromptTokenUsageInfo, UsageInfo
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest

REQUESTS = {
    "/v1/chat/completions": (ChatCompletionRequest,),
    "/v1/completions": (CompletionRequest,),
    "/v1/responses": (ResponsesRequest,),
    "/v1/responses/input_tokens": (ResponsesRequest,),
    "/v1/embeddings": (EmbeddingCompletionRequest, EmbeddingBatchChatInputRequest),
    "/v1/messages": (AnthropicMessagesRequest,),
    "/v1/messages/count_tokens": (AnthropicCountTokensRequest,),
    "/tokenize": (TokenizeCompletionRequest, TokenizeChatRequest),
}

ANSWERS = {
    "/v1/chat/completions": ChatCompletionResponse,
    "/v1/completions": CompletionResponse,
    "/v1/responses": ResponsesResponse,
    "/v1/messages": AnthropicMessagesResponse,
    "/v1/messages/count_tokens": AnthropicCountTokensResponse,
}

USAGE = UsageInfo(
    prompt_tokens=5,
    completion_tokens=1,
    total_tokens=6,
    prompt_tokens_details=PromptTokenUsageInfo(cached_tokens=4, multimodal_tokens={"image": 3}),
    completion_tokens_details=CompletionTokenUsageInfo(reasoning_tokens=3),
)
