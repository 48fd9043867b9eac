"""Call: a body is read once; what the gateway owns is put in, and nothing malformed gets through."""

from __future__ import annotations

import json

import msgspec
import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects import call as calls
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.completions import COMPLETIONS
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.dialects.tokenize import TOKENIZE
from tests.gateway.calls import call, draft, sent


def nested(depth: int) -> bytes:
    return b'{"model":"m","messages":' + b"[" * depth + b"]" * depth + b"}"


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"model": "m"',
    "a list": b"[]",
    "NaN": b'{"model":"m","temperature":NaN}',
    "infinite": b'{"model":"m","temperature":1e999}',
    "an endless integer": b'{"model":"m","seed":' + b"9" * 6000 + b"}",
    "invalid UTF-8": b'{"model":"\xff"}',
    "a lone surrogate": b'{"model":"a\\ud800b"}',
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "nested a little too deep": nested(70),
    "a nesting bomb": nested(30_000),
    "rest after the end": b'{"model":"m"}{',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_bodies_are_400(body: bytes) -> None:
    """Only one JSON object of sane depth and numbers is read."""
    with pytest.raises(InvalidRequest) as refused:
        calls.read(CHAT, body)
    assert refused.value.status == 400


def test_deep_and_wide_are_told_apart() -> None:
    """Many brackets beside one another are no nesting; as many inside one another are."""
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": {"a": [[]]}}} for n in range(100)]
    assert len(sent(call(CHAT, tools=tools))["tools"]) == 100
    with pytest.raises(InvalidRequest, match="nested deeper than 64 levels"):
        calls.read(CHAT, nested(calls.NESTING_MAX))


def test_an_engine_gets_the_served_name_and_the_tenants_salt() -> None:
    """Whatever the client called its model; the salt only where the engine's request takes one."""
    for dialect, is_salted in ((CHAT, True), (EMBEDDINGS, True), (TOKENIZE, False), (COUNT_TOKENS, False)):
        body = sent(draft(dialect, model="alias").finish("served", "salt"))
        assert (body["model"], body.get("cache_salt")) == ("served", "salt" if is_salted else None)


def test_usage_is_asked_of_every_stream_of_chunks() -> None:
    """So that a stream that is cut is billed; the client gets it only where it asked."""
    plain, asking = call(CHAT, stream=True), call(CHAT, stream=True, stream_options={"include_usage": True})
    continuous = {"include_usage": True, "continuous_usage_stats": True}
    assert sent(plain)["stream_options"] == sent(asking)["stream_options"] == continuous
    assert (plain.wants_usage, asking.wants_usage, asking.wants_continuous_usage) == (False, True, False)
    assert call(CHAT, stream=True, stream_options=continuous).wants_continuous_usage
    lone = call(CHAT, stream=True, stream_options={"continuous_usage_stats": True})
    assert not lone.wants_continuous_usage
    assert "stream_options" not in sent(call(CHAT)) and "stream_options" not in sent(call(RESPONSES, stream=True))


def test_what_never_streams_is_no_stream() -> None:
    """A field `stream` of an API without streams is unknown; of the others it counts when true."""
    assert call(CHAT, stream=True).is_streamed and not call(CHAT, stream=False).is_streamed
    with pytest.raises(InvalidRequest):
        call(TOKENIZE, stream=True)


def test_sequences_are_prompts_times_n() -> None:
    """Each is a place in the engine's batch, and generates up to the limit."""
    one = call(COMPLETIONS, prompt=["a", "b"], n=3, max_tokens=7)
    assert (one.sequences, one.choices, one.output_tokens_max) == (6, 3, 7)
    assert (call(CHAT).sequences, call(CHAT).output_tokens_max) == (1, None)


@pytest.mark.parametrize(
    ("dialect", "field"),
    [
        (CHAT, "max_completion_tokens"),
        (RESPONSES, "max_output_tokens"),
        (COMPLETIONS, None),
        (EMBEDDINGS, None),
        (MESSAGES, None),
        (COUNT_TOKENS, None),
        (TOKENIZE, None),
    ],
    ids=lambda it: it.path if isinstance(it, Dialect) else it,
)
def test_a_call_without_a_limit_gets_its_models_default(dialect: Dialect, field: str | None) -> None:
    """In the field of its API. Completions have OpenAI's 16 tokens, Messages require a limit, the others generate none."""
    without, one = call(dialect), draft(dialect).finish("m", "salt", 64)
    added = {} if field is None else {field: 64}
    assert sent(one) == sent(without) | added
    assert one.output_tokens_max == (64 if field else without.output_tokens_max)


@pytest.mark.parametrize(
    ("dialect", "field", "tokens"),
    [
        (CHAT, "max_tokens", 5),
        (CHAT, "max_tokens", 5000),
        (CHAT, "max_completion_tokens", 5),
        (RESPONSES, "max_output_tokens", 5000),
        (MESSAGES, "max_tokens", 7),
        (COMPLETIONS, "max_tokens", 0),
    ],
    ids=lambda it: it.path if isinstance(it, Dialect) else str(it),
)
def test_a_clients_own_limit_counts_by_any_of_its_names(dialect: Dialect, field: str, tokens: int) -> None:
    """Below the default or above it; nothing is put beside it."""
    own = draft(dialect, **{field: tokens})
    one = own.finish("m", "salt", 64)
    assert (sent(one), one.output_tokens_max) == (sent(own.finish("m", "salt")), tokens)


def test_the_newer_name_of_a_limit_counts_first() -> None:
    """As at OpenAI, where `max_tokens` is the older one."""
    assert call(CHAT, max_tokens=9, max_completion_tokens=5).output_tokens_max == 5


@pytest.mark.parametrize("default", [0, None])
def test_a_model_without_a_default_limits_nothing(default: int | None) -> None:
    """Then the context is the only limit, as in the engine."""
    one = draft(CHAT).finish("m", "salt", default)
    assert one.output_tokens_max is None and "max_completion_tokens" not in sent(one)


@pytest.mark.parametrize(("min_tokens", "limit"), [(10, 64), (64, 64), (100, 100)])
def test_a_default_is_not_below_what_the_client_wants_at_least(min_tokens: int, limit: int) -> None:
    """The engine refuses a limit below `min_tokens`."""
    one = draft(CHAT, min_tokens=min_tokens).finish("m", "salt", 64)
    assert (sent(one)["max_completion_tokens"], one.output_tokens_max) == (limit, limit)


def test_a_draft_can_be_finished_again() -> None:
    """Finishing changes no draft: nothing of one model's call is left for another's."""
    one = draft(CHAT, stream=True, stream_options={"include_usage": True})
    first, second = one.finish("a", "s", 64), one.finish("b", "t")
    assert first.wants_usage and second.wants_usage
    assert "max_completion_tokens" not in sent(second) and sent(second)["model"] == "b"


def test_a_costly_schema_is_refused_wherever_it_stands() -> None:
    """In a tool as in a response format."""
    costly = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a{1,5}){1,9999}"}}}
    schema = {"name": "x", "schema": costly}
    for dialect, fields in (
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": costly}}]}),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": schema}}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", **schema}}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": costly}}}),
    ):
        with pytest.raises(InvalidRequest):
            draft(dialect, **fields)


def test_the_body_is_json_of_the_fields_kept() -> None:
    """One document, without what is ignored."""
    one = call(CHAT, user="alice@example.org", temperature=0.5)
    assert json.loads(one.body).keys() == {"model", "messages", "temperature", "cache_salt"}


def test_many_names_are_cut_to_a_header_that_proxies_take() -> None:
    """Tools and keywords without end: the first are named and the others counted."""
    ((_, said),) = msgspec.structs.replace(
        draft(CHAT), left_out=tuple(f"maxLength:tool_{n}" for n in range(500))
    ).headers()
    assert said.startswith(b"maxLength:tool_0, maxLength:tool_1, ") and len(said) < 1100
    assert said.count(b"maxLength") + int(said.split(b", ")[-1].removesuffix(b" more")) == 500


def test_what_a_schema_lost_is_told_and_the_echo_keeps_it() -> None:
    """The engine gets a schema without its costly keyword; the header names it, and the client's own words come back."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5000}}}
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    read = calls.read(RESPONSES, json.dumps({"model": "m", "input": "hi", "text": text}).encode())
    assert read.headers() == [(b"x-left-out", b"maxLength")]
    assert read.echoed["text"] == text
    assert b"maxLength" not in read.finish("m", "salt").body


@pytest.mark.parametrize("empty", ["", [], {}, None])
def test_an_empty_field_is_not_repeated(empty: object) -> None:
    """It counts as absent, whatever its type: the answer has what an absent one gives."""
    assert draft(RESPONSES, text=empty, tools=empty, reasoning=empty).echoed == {}
    assert draft(RESPONSES, metadata={"note": "mine"}).echoed == {"metadata": {"note": "mine"}}
