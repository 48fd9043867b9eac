"""The table of fields: complete for OpenAI's and Anthropic's own parameters, and honest about each."""

from __future__ import annotations

import json
import typing
from contextlib import suppress

import anthropic.types.message_count_tokens_params as count_params
import anthropic.types.message_create_params as message_params
import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import openai.types.embedding_create_params as embedding_params
import openai.types.responses.response_create_params as response_params
import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects import DIALECTS, call, fields
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.completions import COMPLETIONS
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.fields import Disposition
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES
from serving.gateway.dialects.responses import RESPONSES

OFFICIAL = {
    CHAT: chat_params.CompletionCreateParamsStreaming,
    COMPLETIONS: completion_params.CompletionCreateParamsStreaming,
    RESPONSES: response_params.ResponseCreateParamsStreaming,
    EMBEDDINGS: embedding_params.EmbeddingCreateParams,
    MESSAGES: message_params.MessageCreateParamsStreaming,
    COUNT_TOKENS: count_params.MessageCountTokensParams,
}


@pytest.mark.parametrize("dialect", OFFICIAL, ids=[dialect.path for dialect in OFFICIAL])
def test_every_documented_parameter_is_in_the_table(dialect: Dialect) -> None:
    """A parameter the official clients know is honoured, ignored or refused on purpose, never "unknown"."""
    documented = set(typing.get_type_hints(OFFICIAL[dialect]))
    assert documented - dialect.fields.keys() == set()


def test_every_field_has_its_reason_or_bounds() -> None:
    """What is refused or ignored says why in a sentence; what is honoured is checked."""
    for path, dialect in DIALECTS.items():
        for name, field in dialect.fields.items():
            assert field.note, (path, name)
            if field.disposition is Disposition.HONOURED:
                assert field.check is not None, (path, name)
            else:
                assert field.note.endswith("."), (path, name)


#: A value of every JSON kind, some of them hostile.
VALUES: list[object] = [
    None, True, 0, -1, 10**30, 1.5, "", "x", [], ["x"], [1], [[]], {}, {"a": 1}, [{}], [{"type": 1}], [None],
    {"type": "function"}, {"type": {}}, [{"role": "user", "content": [{}]}], [{"role": [], "content": {}}],
    [{"type": "message", "role": "user", "content": [[]]}], [{"type": "function_call", "name": []}],
]  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_any_value_in_any_field_is_taken_or_refused_cleanly(dialect: Dialect) -> None:
    """Whatever JSON a field holds, the answer is a 4xx of ours or a call that encodes; nothing else is raised."""
    good: dict[str, object] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    good |= {"prompt": "Hi", "input": "Hi"}
    base = {name: value for name, value in good.items() if dialect.fields.get(name, _NONE).is_required}
    for name in dialect.fields:
        for value in VALUES:
            body = json.dumps(base | {name: value}).encode()
            with suppress(InvalidRequest):
                assert b'"served"' in call.read(dialect, body).finish("served", "salt").body


_NONE = fields.refused("")
