"""Prompts: what completions and embeddings take as their text: strings, token ids, or lists of them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from serving.errors import InvalidRequest
from serving.gateway.dialects import checks
from serving.gateway.dialects.checks import typed

#: Texts or token ids, or lists of those; which of them go together is for `prompt` to say.
PROMPT = str | list[str | checks.TokenId | list[checks.TokenId]]

_token_prompt = typed(Annotated[list[checks.TokenId], Meta(min_length=1)])
_token_prompts = typed(Annotated[list[Annotated[list[checks.TokenId], Meta(min_length=1)]], Meta(min_length=1)])
_text_prompts = typed(Annotated[list[str], Meta(min_length=1)])


def prompt(name: str, value: Any) -> Any:
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        if not value:
            raise InvalidRequest(f"Invalid value for '{name}': it is empty.", param=name)
        return value
    if not isinstance(value, list) or not value:
        raise InvalidRequest(
            f"Invalid value for '{name}': Expected a string, strings, token ids, or lists of them.", param=name
        )
    if isinstance(value[0], str):
        return _text_prompts(name, value)
    if isinstance(value[0], list):
        return _token_prompts(name, value)
    return _token_prompt(name, value)


def count_prompts(value: Any) -> int:
    """Prompts in a checked `prompt` value."""
    return len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1
