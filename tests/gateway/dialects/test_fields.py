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
from serving.gateway.dialects import calls, fields
from serving.gateway.dialects.fields import FIELDS, Disposition
from serving.gateway.dialects.routes import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    ENGINE_ROUTES,
    MESSAGES,
    RESPONSES,
    EngineRoute,
)

OFFICIAL = {
    CHAT: chat_params.CompletionCreateParamsStreaming,
    COMPLETIONS: completion_params.CompletionCreateParamsStreaming,
    RESPONSES: response_params.ResponseCreateParamsStreaming,
    EMBEDDINGS: embedding_params.EmbeddingCreateParams,
    MESSAGES: message_params.MessageCreateParamsStreaming,
    COUNT_TOKENS: count_params.MessageCountTokensParams,
}


@pytest.mark.parametrize("route", OFFICIAL, ids=[route.path for route in OFFICIAL])
def test_every_documented_parameter_is_in_the_table(route: EngineRoute) -> None:
    """A parameter the official clients know is honoured, ignored or refused on purpose, never "unknown"."""
    documented = set(typing.get_type_hints(OFFICIAL[route]))
    assert documented - FIELDS[route.path].keys() == set()


def test_every_field_has_its_reason_or_bounds() -> None:
    """What is refused or ignored says why in a sentence; what is honoured is checked."""
    for path, table in FIELDS.items():
        for name, field in table.items():
            assert field.note, (path, name)
            if field.disposition is Disposition.HONOURED:
                assert field.check is not None, (path, name)
            else:
                assert field.note.endswith("."), (path, name)


def test_the_table_renders_as_markdown() -> None:
    """Every route and every field is a line of the page that the README shows."""
    page = fields.markdown()
    assert all(f"### `{path}`" in page for path in ENGINE_ROUTES)
    assert page.count("\n| `") == sum(len(table) for table in FIELDS.values())


#: A value of every JSON kind, some of them hostile.
VALUES: list[object] = [
    None, True, 0, -1, 10**30, 1.5, "", "x", [], ["x"], [1], [[]], {}, {"a": 1}, [{}], [{"type": 1}], [None],
    {"type": "function"}, {"type": {}}, [{"role": "user", "content": [{}]}], [{"role": [], "content": {}}],
    [{"type": "message", "role": "user", "content": [[]]}], [{"type": "function_call", "name": []}],
]  # fmt: skip


@pytest.mark.parametrize("route", ENGINE_ROUTES.values(), ids=ENGINE_ROUTES)
def test_any_value_in_any_field_is_taken_or_refused_cleanly(route: EngineRoute) -> None:
    """Whatever JSON a field holds, the answer is a 4xx of ours or a call that encodes; nothing else is raised."""
    good: dict[str, object] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    good |= {"prompt": "Hi", "input": "Hi"}
    base = {name: value for name, value in good.items() if FIELDS[route.path].get(name, _NONE).is_required}
    for name in FIELDS[route.path]:
        for value in VALUES:
            body = json.dumps(base | {name: value}).encode()
            with suppress(InvalidRequest):
                assert b'"served"' in calls.finish(calls.read(route, body), "served", "salt").body


_NONE = fields.refused("")
