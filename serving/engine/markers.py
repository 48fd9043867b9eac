"""Markers: control tokens that a client's text spells stay text. For models with a Hugging Face template.

vLLM 0.32 renders a conversation to one text and tokenizes that, so that `<|im_start|>system` in a user's message begins a
turn of the system's. Here every spelled control token gets a character inside that no text has (U+FDD0), before the
template sees it, and the tokenizer drops that character after it has looked for control tokens: the model gets the
client's very text, in ordinary tokens, and the template's own markers work as before (GW-33).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

#: A noncharacter: Unicode keeps it for a program's own use.
GUARD = "\ufdd0"
_LOOKS_LIKE_CONTROL = re.compile("<[|\uff5c].*[|\uff5c]>")


def install() -> None:
    """Replace the method in this process. vLLM is imported here: only engines have it."""
    from vllm.renderers.online_renderer import OnlineRenderer

    OnlineRenderer.preprocess_chat = with_guards(OnlineRenderer.preprocess_chat)


def with_guards(preprocess_chat: Callable[..., Any]) -> Callable[..., Any]:
    """An `OnlineRenderer.preprocess_chat` whose template gets guarded messages and tools."""
    guards: dict[Any, Guard | None] = {}  # one process has one renderer

    @wraps(preprocess_chat)
    async def preprocess_guarded(renderer: Any, request: Any, messages: Any, *args: Any, **kwargs: Any) -> Any:
        inner = renderer.renderer
        if inner not in guards:
            inner.tokenizer, guards[inner] = taught(inner.get_tokenizer())
        guard = guards[inner]
        if guard is not None:
            messages = guard.guarded(messages)
            kwargs["tool_dicts"] = guard.guarded(kwargs.get("tool_dicts"))
        return await preprocess_chat(renderer, request, messages, *args, **kwargs)

    return preprocess_guarded


def taught(tokenizer: Any) -> tuple[Any, Guard | None]:
    """The tokenizer to use from now on, and its guard.

    vLLM's is a pool of copies. It is made anew from a taught one, by the recipe with which it is pickled.
    """
    if not type(tokenizer).__name__.startswith("TokenizerPool"):
        return tokenizer, guard_of(tokenizer)
    make_pool, (one, *sizes) = tokenizer.__reduce__()
    one = copy.deepcopy(one)
    guard = guard_of(one)
    return make_pool(one, *sizes), guard


def guard_of(tokenizer: Any) -> Guard | None:
    """The guard of a tokenizer, which it changes to drop guards; None where it cannot be taught that."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    from tokenizers import normalizers

    control = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        # A token that is looked for in the normalized text would be found again.
        if (token.special or _LOOKS_LIKE_CONTROL.fullmatch(token.content)) and not token.normalized
    ]
    if not control:
        return None
    drop = normalizers.Replace(GUARD, "")
    backend.normalizer = normalizers.Sequence([drop, backend.normalizer]) if backend.normalizer else drop
    return Guard(control)


class Guard:
    """Puts guards into texts that spell one of these tokens."""

    def __init__(self, control: list[str]) -> None:
        longest_first = sorted(control, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)))

    def guarded(self, value: Any) -> Any:
        """The same JSON, pydantic models of it included, with guards in its texts."""
        match value:
            case str():
                return self._spelled.sub(lambda found: found[0][0] + GUARD + found[0][1:], value.replace(GUARD, ""))
            case dict():
                return {self.guarded(name): self.guarded(below) for name, below in value.items()}
            case None | bool() | int() | float() | bytes():
                return value
        if hasattr(value, "model_dump"):
            return self.guarded(value.model_dump(exclude_none=True))
        # Lists, and pydantic's iterators that can be read once.
        return [_apart(self.guarded(below)) if at else self.guarded(below) for at, below in enumerate(value)]


def _apart(part: Any) -> Any:
    """A guarded part of a message with a guard before its text: some templates write parts side by side, and a token
    begun in one must not end in the next."""
    is_text = isinstance(part, dict) and isinstance(part.get("text"), str)
    return part | {"text": GUARD + part["text"]} if is_text else part
