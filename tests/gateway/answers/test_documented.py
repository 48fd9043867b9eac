"""The documented keys of answers."""

from __future__ import annotations

from typing import Any, get_args

import anthropic.types
import openai.types
import openai.types.chat
import openai.types.responses
import pytest
from pydantic import BaseModel

from serving.gateway.answers import documented
from serving.gateway.answers.documented import Shape


def test_what_is_not_documented_is_left_out_at_any_depth() -> None:
    """Lists item by item; a value without a shape of its own passes as it is."""
    shape = {"id": None, "choices": {"index": None, "logprobs": None}}
    answer = {"id": 1, "secret": 2, "choices": [{"index": 0, "token_ids": [1], "logprobs": {"any": 1}}, None]}
    assert documented.pruned(answer, shape) == {"id": 1, "choices": [{"index": 0, "logprobs": {"any": 1}}, None]}
    assert documented.pruned(None, shape) is None


def test_only_an_object_is_an_answer() -> None:
    """What is none passes untouched, so it is not taken for one."""
    assert documented.read(b'{"id":1,"x":2}', {"id": None}) == {"id": 1}
    assert [documented.read(body, {}) for body in (b"[]", b"{", b"\xff", b"")] == [None] * 4


OFFICIAL: list[tuple[Shape, tuple[type[BaseModel], ...]]] = [
    (documented.CHAT, (openai.types.chat.ChatCompletion, openai.types.chat.ChatCompletionChunk)),
    (documented.COMPLETION, (openai.types.Completion,)),
    (documented.RESPONSE, (openai.types.responses.Response,)),
    (documented.MESSAGES, (anthropic.types.Message,)),
    (documented.COUNT_TOKENS, (anthropic.types.MessageTokensCount, anthropic.types.beta.BetaMessageTokensCount)),
]
#: Of this service, and documented as such.
OWN = {"reasoning", "reasoning_content"}


@pytest.mark.parametrize(("shape", "kinds"), OFFICIAL, ids=lambda it: it[0].__name__ if isinstance(it, tuple) else "")
def test_every_key_is_one_of_the_official_types(shape: Shape, kinds: tuple[type[BaseModel], ...]) -> None:
    """At any depth: openai-python and anthropic declare it, on one of the kinds that may stand there."""
    assert unknown(shape, list(kinds)) == set()


def unknown(shape: Shape, kinds: list[type[BaseModel]]) -> set[str]:
    """Keys of a shape that none of these types declares."""
    found: set[str] = set()
    for name, within in shape.items():
        fields = [
            field for kind in kinds for declared, field in kind.model_fields.items() if name in (declared, field.alias)
        ]
        if not fields and name not in OWN:
            found.add(name)
        elif within is not None:
            found |= unknown(within, [kind for field in fields for kind in models(field.annotation)])
    return found


def models(annotation: Any) -> list[type[BaseModel]]:
    """The types that a declared type may be, unpacked."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in models(inner)]
