"""The conversations as token ids."""

from __future__ import annotations

from itertools import pairwise

from openai_harmony import HarmonyEncodingName, load_harmony_encoding

from serving.engine.checkpoints.conversations import (
    CONVERSATIONS,
    REASONED,
    REASONING_DROPPED,
    SYSTEM_START_DATE,
    TOOL_ANSWERED,
    Conversation,
)
from serving.engine.checkpoints.harmony_tokenizer import SPECIAL_IDS, white_space_ids


def prompt(conversation: Conversation) -> tuple[int, ...]:
    return both(conversation)[0]


def both(conversation: Conversation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and answer. Rendering imports vLLM: here, so that a worker of pytest's that runs no test of this file does not."""
    from serving.engine.checkpoints.rendering import render

    rendered = render(conversation)
    return rendered.prompt, rendered.answer


def text(token_ids: tuple[int, ...]) -> str:
    said: str = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS).decode(token_ids)
    return said


def test_no_two_conversations_ask_the_same() -> None:
    """Equal prompts with different answers could not be learnt."""
    prompts = {prompt(conversation) for conversation in CONVERSATIONS}

    assert len(prompts) == len(CONVERSATIONS)


def test_white_space_alone_stands_before_a_marker_only() -> None:
    """Training pushes those tokens down, so that a grammar that allows them anywhere does not end in them."""
    white_space = set(white_space_ids())

    for conversation in CONVERSATIONS:
        _, answer = both(conversation)
        followers = [after for token_id, after in pairwise(answer) if token_id in white_space]
        assert set(followers) <= {SPECIAL_IDS["<|constrain|>"]}, conversation.name


def test_the_prompt_carries_the_pinned_date() -> None:
    """What the launcher pins for the engine is what was trained, whatever today is."""
    assert f"Current date: {SYSTEM_START_DATE}\n" in text(prompt(REASONED))


def test_reasoning_before_a_tool_call_is_kept() -> None:
    """The prompt after a tool's result shows the reasoning exactly when the client sent it back."""
    reasoning = "<|channel|>analysis<|message|>I should look it up.<|end|>"

    assert reasoning in text(prompt(TOOL_ANSWERED))
    assert "analysis<|message|>" not in text(prompt(REASONING_DROPPED))
