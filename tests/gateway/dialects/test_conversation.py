"""Conversation: a later turn's blocks begin as the earlier one's, in every dialect; another tenant's never do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects import call as calls
from serving.gateway.dialects.conversation import BLOCK_BYTES

LONG = "It was a bright cold day in April, and the clocks were striking thirteen. " * 60
TOOL: dict[str, Any] = {"name": "look", "description": LONG, "parameters": {"type": "object", "properties": {}}}
USER = {"role": "user", "content": LONG}
ANSWER = {"role": "assistant", "content": "Yes."}


def prefix(path: str, body: dict[str, Any], *, salt: str = "tenant", model: str = "m") -> tuple[int, ...]:
    draft = calls.read(DIALECTS[path], msgspec.json.encode({"model": "alias", **body}))
    return draft.finish(model, salt).prefix


CHAT, RESPONSES, MESSAGES, COMPLETIONS = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/completions",
)
MARK = {"cache_control": {"type": "ephemeral"}}
#: A turn, and a later one of the same conversation.
TURNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "chat": (CHAT, {"messages": [USER]}, {"messages": [USER, ANSWER, {"role": "user", "content": "Why?"}]}),
    "chat, keys and settings in another order": (
        CHAT,
        {"messages": [USER], "temperature": 0.5},
        {"max_tokens": 9, "messages": [{"content": LONG, "role": "user"}, ANSWER]},
    ),
    "chat with tools": (
        CHAT,
        {"tools": [{"type": "function", "function": TOOL}], "messages": [{"role": "user", "content": "a"}]},
        {"tools": [{"function": TOOL, "type": "function"}], "messages": [{"role": "user", "content": "a"}, ANSWER]},
    ),
    "responses, a text and then items": (
        RESPONSES,
        {"instructions": LONG, "input": LONG},
        {"instructions": LONG, "input": [USER, ANSWER, USER]},
    ),
    "messages, whose marks move": (
        MESSAGES,
        {
            "max_tokens": 9,
            "system": [{"type": "text", "text": LONG, **MARK}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": LONG, **MARK}]}],
        },
        {
            "max_tokens": 9,
            "system": [{"type": "text", "text": LONG}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": LONG}]},
                ANSWER,
                {"role": "user", "content": [{"type": "text", "text": "Why?", **MARK}]},
            ],
        },
    ),
    "completions": (COMPLETIONS, {"prompt": LONG}, {"prompt": [LONG + "Yes. Why?"]}),
    "completions of tokens": (COMPLETIONS, {"prompt": [*range(2_000)]}, {"prompt": [[*range(2_500)]]}),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_later_turn_begins_as_the_earlier_one(name: str) -> None:
    """With all of its blocks, of which a long turn has several."""
    path, earlier, later = TURNS[name]
    first, second = prefix(path, earlier), prefix(path, later)
    assert len(first) > 3 and second[: len(first)] == first


@pytest.mark.parametrize("name", TURNS)
def test_no_other_tenant_or_model_has_it(name: str) -> None:
    """Engines keep tenants and adapters apart, and so does what is known of their caches."""
    path, body, _ = TURNS[name]
    assert not set(prefix(path, body)) & set(prefix(path, body, salt="another"))
    assert not set(prefix(path, body)) & set(prefix(path, body, model="adapter"))


@pytest.mark.parametrize(
    "change", [{"reasoning_effort": "high"}, {"tools": [{"type": "function", "function": {**TOOL, "name": "go"}}]}]
)
def test_what_opens_a_prompt_comes_first(change: dict[str, Any]) -> None:
    """Another effort or another tool stands in the system message: nothing behind it is the same."""
    assert not set(prefix(CHAT, {"messages": [USER]})) & set(prefix(CHAT, {"messages": [USER], **change}))


def test_a_conversation_that_differs_shares_what_is_before() -> None:
    """Up to the block with the first difference."""
    system = {"role": "system", "content": LONG}
    one, two = (prefix(CHAT, {"messages": [system, {"role": "user", "content": it * 3_000}]}) for it in "ab")
    shared = sum(a == b for a, b in zip(one, two, strict=True))
    assert len(LONG) // BLOCK_BYTES <= shared < len(one)


def test_a_short_conversation_has_no_blocks() -> None:
    """Nor has what generates nothing: engines keep no prefix of it."""
    assert prefix(CHAT, {"messages": [{"role": "user", "content": "Hi"}]}) == ()
    assert prefix("/v1/embeddings", {"input": LONG}) == () and prefix("/tokenize", {"prompt": LONG}) == ()
