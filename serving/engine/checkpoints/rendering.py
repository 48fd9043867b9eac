"""Rendering: a conversation as the token ids vLLM feeds the model, and as those the model should answer with.

Prompts are made by vLLM's own Harmony functions, so they cannot drift from what a server of the same version renders.
For these conversations vLLM 0.32 renders /v1/chat/completions, /v1/responses and /v1/messages alike (all ids compared).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.entrypoints.openai.parser.harmony_utils import (
    build_harmony_preamble,
    extract_instructions_from_messages,
    get_encoding,
    parse_chat_inputs_to_harmony_messages,
    render_for_completion,
)

from serving.engine.checkpoints.bodies import chat_messages, chat_tools
from serving.engine.checkpoints.conversations import (
    SYSTEM_START_DATE,
    SYSTEM_START_DATE_VARIABLE,
    Assistant,
    Conversation,
)


@dataclass(frozen=True)
class Rendered:
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Up to and with the token that ends the turn."""


def render(conversation: Conversation) -> Rendered:
    """Both halves of a conversation, as token ids of Harmony's encoding."""
    return Rendered(_prompt(conversation), encoded(conversation.answer, is_json=conversation.format is not None))


def encoded(answer: Assistant, *, is_json: bool = False) -> tuple[int, ...]:
    """What the model emits for an answer, as token ids."""
    return encoded_text(_text(answer, is_json))


def encoded_text(text: str) -> tuple[int, ...]:
    """Text with markers in it, as token ids."""
    return tuple(get_encoding().encode(text, allowed_special="all"))


def _text(answer: Assistant, is_json: bool) -> str:
    """What the model emits after `<|start|>assistant` (https://cookbook.openai.com/articles/openai-harmony)."""
    reasoning = f"<|channel|>analysis<|message|>{answer.reasoning}<|end|><|start|>assistant" if answer.reasoning else ""
    if call := answer.tool_call:
        header = f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>"
        return f"{reasoning}{header}{call.arguments}<|call|>"
    # A structured answer carries the marker: vLLM's grammar for JSON schemas accepts no final message without it.
    constraint = " <|constrain|>json" if is_json else ""
    return f"{reasoning}<|channel|>final{constraint}<|message|>{answer.content}<|return|>"


def _prompt(conversation: Conversation) -> tuple[int, ...]:
    instructions, messages = extract_instructions_from_messages(chat_messages(conversation))
    with _pinned_date():
        preamble = build_harmony_preamble(
            instructions=instructions,
            tools=[ChatCompletionToolsParam.model_validate(tool) for tool in chat_tools(conversation)] or None,
            reasoning_effort=conversation.effort,
        )
    return tuple(render_for_completion([*preamble, *parse_chat_inputs_to_harmony_messages(messages)]))


@contextmanager
def _pinned_date() -> Iterator[None]:
    """vLLM reads the date from the environment each time it renders a system message."""
    before = os.environ.get(SYSTEM_START_DATE_VARIABLE)
    os.environ[SYSTEM_START_DATE_VARIABLE] = SYSTEM_START_DATE
    try:
        yield
    finally:
        del os.environ[SYSTEM_START_DATE_VARIABLE]
        if before is not None:
            os.environ[SYSTEM_START_DATE_VARIABLE] = before
