"""Abilities: what a model cannot do that its dialect can say. Asked per call, once its model is known.

A field's table says what an API means by it; here stands which models do not do that, so that a request is refused by
name instead of answered as if it had not asked. Nothing is known of engines that no directory lists: they decide
themselves.
"""

from __future__ import annotations

from typing import Any

from serving.errors import UnsupportedParameter
from serving.gateway.dialects.dialect import Body, Dialect
from serving.wire import PromptFormat

_NEW_TURN = "this model answers in a new turn and cannot continue a message."


def require(dialect: Dialect, kept: Body, prompt_format: PromptFormat | None) -> None:
    """Raise UnsupportedParameter when a checked request asks for what a model with this prompt format cannot do."""
    if dialect.path == "/v1/messages" and _ends_with_assistant(kept.get("messages")):
        # Anthropic's words for its own newer models. vLLM closes the message and begins another, on every model.
        raise UnsupportedParameter(
            "This model does not support assistant message prefill. The conversation must end with a user message.",
            param="messages",
        )
    if prompt_format == PromptFormat.HARMONY:
        _require_harmony(dialect, kept)


def _require_harmony(dialect: Dialect, kept: Body) -> None:
    if kept.get("continue_final_message"):
        raise UnsupportedParameter(
            f"'continue_final_message' is not supported: {_NEW_TURN}", param="continue_final_message"
        )
    if kept.get("add_generation_prompt") is False:
        reason = "this model's prompts always end where its answer begins."
        raise UnsupportedParameter(
            f"'add_generation_prompt' false is not supported: {reason}", param="add_generation_prompt"
        )
    if dialect.path == "/v1/chat/completions" and kept.get("truncate_prompt_tokens", -1) != -1:
        raise UnsupportedParameter(
            "'truncate_prompt_tokens' is not supported: this model's conversations are not cut.",
            param="truncate_prompt_tokens",
        )
    for name in ("messages", "input"):
        if dialect.path != "/v1/messages/count_tokens" and _ends_with_assistant(kept.get(name)):
            raise UnsupportedParameter(f"The last of '{name}' is the assistant's: {_NEW_TURN}", param=name)
    if dialect.path == "/v1/responses" and kept.get("include_reasoning") is False:
        raise UnsupportedParameter(
            "'include_reasoning' false is not supported by this model on this API: use chat.", param="include_reasoning"
        )
    if dialect.path == "/v1/responses" and kept.get("top_logprobs"):
        raise UnsupportedParameter(
            "'top_logprobs' is not supported by this model on this API: use chat.", param="top_logprobs"
        )
    if dialect.path == "/v1/responses" and "message.output_text.logprobs" in (kept.get("include") or ()):
        raise UnsupportedParameter(
            "'message.output_text.logprobs' is not supported by this model: use chat.", param="include"
        )


def _ends_with_assistant(messages: Any) -> bool:
    if not isinstance(messages, list) or not messages:
        return False
    last = messages[-1]
    return (last.get("role") if isinstance(last, dict) else getattr(last, "role", None)) == "assistant"
