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
)
from serving.engine.checkpoints.harmony_tokenizer import SPECIAL_IDS, white_space_ids
from serving.engine.checkpoints.rendering import render

HARMONY = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def test_no_two_conversations_ask_the_same() -> None:
    """Equal prompts with different answers could not be learnt."""
    prompts = {render(conversation).prompt for conversation in CONVERSATIONS}

    assert len(prompts) == len(CONVERSATIONS)


def test_white_space_alone_stands_before_a_marker_only() -> None:
    """Training pushes those tokens down, so that a grammar that allows them anywhere does not end in them."""
    white_space = set(white_space_ids())

    for conversation in CONVERSATIONS:
        answer = render(conversation).answer
        followers = [after for token_id, after in pairwise(answer) if token_id in white_space]
        assert set(followers) <= {SPECIAL_IDS["<|constrain|>"]}, conversation.name


def test_the_prompt_carries_the_pinned_date() -> None:
    """What the launcher pins for the engine is what was trained, whatever today is."""
    assert f"Current date: {SYSTEM_START_DATE}\n" in HARMONY.decode(render(REASONED).prompt)


def test_reasoning_before_a_tool_call_is_kept() -> None:
    """The prompt after a tool's result shows the reasoning exactly when the client sent it back."""
    reasoning = "<|channel|>analysis<|message|>I should look it up.<|end|>"

    assert reasoning in HARMONY.decode(render(TOOL_ANSWERED).prompt)
    assert "analysis<|message|>" not in HARMONY.decode(render(REASONING_DROPPED).prompt)
