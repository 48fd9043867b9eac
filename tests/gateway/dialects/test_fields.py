"""The table of fields: complete for OpenAI's and Anthropic's own parameters, and honest about each."""

from __future__ import annotations

import json
import typing
from contextlib import suppress

import anthropic.types.beta.message_count_tokens_params as beta_count_params
import anthropic.types.beta.message_create_params as beta_message_params
import anthropic.types.message_count_tokens_params as count_params
import anthropic.types.message_create_params as message_params
import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import openai.types.embedding_create_params as embedding_params
import openai.types.responses.input_token_count_params as input_params
import openai.types.responses.response_create_params as response_params
import pytest

from serving.errors import InvalidRequest, UnknownParameter, UnsupportedParameter
from serving.gateway.dialects import DIALECTS, call, fields
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.checks import typed
from serving.gateway.dialects.completions import COMPLETIONS
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.fields import Disposition, Table, granted, sift
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES
from serving.gateway.dialects.responses import INPUT_TOKENS, RESPONSES
from serving.gateway.dialects.tokenize import TOKENIZE
from serving.gateway.nouns import Right
from tests.gateway.calls import LEAST, draft, sent
from tests.gateway.calls import call as call_of

OFFICIAL = {
    CHAT: chat_params.CompletionCreateParamsStreaming,
    COMPLETIONS: completion_params.CompletionCreateParamsStreaming,
    RESPONSES: response_params.ResponseCreateParamsStreaming,
    INPUT_TOKENS: input_params.InputTokenCountParams,
    EMBEDDINGS: embedding_params.EmbeddingCreateParams,
    MESSAGES: message_params.MessageCreateParamsStreaming,
    COUNT_TOKENS: count_params.MessageCountTokensParams,
}


@pytest.mark.parametrize("dialect", OFFICIAL, ids=[dialect.path for dialect in OFFICIAL])
def test_every_documented_parameter_is_in_the_table(dialect: Dialect) -> None:
    """A parameter the official clients know is honoured, ignored or refused on purpose, never "unknown"."""
    documented = set(typing.get_type_hints(OFFICIAL[dialect]))
    assert documented - dialect.fields.keys() == set()


@pytest.mark.parametrize(
    ("dialect", "base"),
    [
        (MESSAGES, beta_message_params.MessageCreateParamsBase),
        (COUNT_TOKENS, beta_count_params.MessageCountTokensParams),
    ],
)
def test_parameters_of_betas_are_in_the_table_too(dialect: Dialect, base: type) -> None:
    """Agents send them by default, with `?beta=true`."""
    assert base.__annotations__.keys() - dialect.fields.keys() == set()


def test_every_field_has_its_reason_or_bounds() -> None:
    """What is refused or ignored says why in a sentence; what is honoured is checked."""
    for path, dialect in DIALECTS.items():
        for name, field in dialect.fields.items():
            assert field.note, (path, name)
            if field.disposition is Disposition.HONOURED:
                assert field.check is not None, (path, name)
            else:
                assert field.note.endswith("."), (path, name)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_value_that_asks_for_nothing_is_no_fault(dialect: Dialect) -> None:
    """Null, false and what is empty in a refused field; null in any field but those required, known or not."""
    plain = call_of(dialect).body
    for name, field in dialect.fields.items():
        is_sent = field.disposition in (Disposition.HONOURED, Disposition.LEFT_OUT)
        empty: list[object] = [None] if is_sent else [None, False, "", [], {}]
        for value in empty if name not in LEAST[dialect.path] and not field.is_required else []:
            assert call_of(dialect, **{name: value}).body == plain, (name, value)
    assert call_of(dialect, no_such_field=None).body == plain


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_what_asks_for_something_is_refused_with_its_reason(dialect: Dialect) -> None:
    """Zero may ask for something, and so may every value that is not named as neutral."""
    for name, field in dialect.fields.items():
        if field.disposition is Disposition.REFUSED:
            for value in (True, 7, "x", ["x"], {"a": 1}):
                with pytest.raises(UnsupportedParameter) as refused:
                    draft(dialect, **{name: value})
                assert refused.value.param == name and field.note in refused.value.message


def test_an_empty_value_of_an_optional_field_counts_as_absent() -> None:
    """Clients fill forms: an empty list of stops, an empty format."""
    empty: dict[str, object] = {
        "stop": "",
        "tools": [],
        "response_format": {},
        "tool_choice": "",
        "reasoning_effort": "",
    }
    assert not sent(call_of(CHAT, **empty)).keys() & empty.keys()
    assert sent(call_of(TOKENIZE, prompt=""))["prompt"] == ""


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


def test_a_granted_field_is_honoured_for_keys_with_its_right_alone() -> None:
    """Others read who can grant it; what asks for nothing is absent for everyone, and what is kept is checked."""
    table: Table = {"ignore_eos": granted(Right.IGNORE_EOS, "It goes on.", typed(bool))}
    for empty in (None, False):
        for rights in (frozenset[Right](), frozenset({Right.IGNORE_EOS})):
            assert sift(table, {"ignore_eos": empty}, rights).kept == {}
    assert sift(table, {"ignore_eos": True}, {Right.IGNORE_EOS}).kept == {"ignore_eos": True}
    with pytest.raises(UnsupportedParameter, match="an operator made with `--allow ignore_eos`"):
        sift(table, {"ignore_eos": True})
    with pytest.raises(InvalidRequest):
        sift(table, {"ignore_eos": "yes"}, {Right.IGNORE_EOS})


def test_an_unknown_field_that_holds_nothing_is_no_fault() -> None:
    """Wrappers pass their own options on, empty ones too; false and 0 may ask for something."""
    empty: list[object] = ["", [], {}]
    for value in empty:
        assert sent(call_of(CHAT, extra_body=value)) == sent(call_of(CHAT))
    for unknown in (False, 0, " "):
        with pytest.raises(UnknownParameter):
            draft(CHAT, extra_body=unknown)


def test_a_neutral_number_may_be_written_with_a_point() -> None:
    """JSON has one kind of number; true is none."""
    assert sent(call_of(CHAT, priority=0.0, length_penalty=1.0)) == sent(call_of(CHAT, priority=0, length_penalty=1))
    with pytest.raises(UnsupportedParameter):
        draft(CHAT, length_penalty=True)


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, TOKENIZE], ids=lambda it: it.path)
def test_a_hint_is_none_the_less_one_on_a_neighbouring_api(dialect: Dialect) -> None:
    """Wrappers add their labels to every call."""
    hints = {"prompt_cache_key": "k", "safety_identifier": "u", "service_tier": "auto", "metadata": {"a": "b"}}
    plain = sent(call_of(dialect))
    assert {name: it for name, it in sent(call_of(dialect, **hints)).items() if name != "metadata"} == plain
