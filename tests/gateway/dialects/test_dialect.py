"""Dialect: everything this plane knows of an API is in one object, and the engines' doors are open for each."""

from __future__ import annotations

import json

import pytest

from serving.errors import EngineFailed, Unauthenticated
from serving.gateway.dialects import DIALECTS, error_body, speaks_anthropic
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.dialect import ChunkStream, Dialect
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.messages import COUNT_TOKENS
from serving.wire import ENGINE_ROUTES
from tests.gateway.calls import LEAST, call


def test_engines_answer_every_dialect_and_nothing_else() -> None:
    """A dialect outside the engine's allow-list could not be served; a POST beyond the dialects would be an open door."""
    assert {path for method, path in ENGINE_ROUTES if method == "POST"} == set(DIALECTS)


def test_each_dialect_stands_at_its_own_path() -> None:
    """Two at one path would hide one another."""
    assert all(dialect.path == path for path, dialect in DIALECTS.items()) and DIALECTS.keys() == LEAST.keys()


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_the_least_body_of_each_api_is_a_call(dialect: Dialect) -> None:
    """Its required fields and nothing more."""
    one = call(dialect)
    assert one.dialect is dialect and one.model == "m" and one.sequences == 1


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_the_fields_a_dialect_names_are_in_its_table(dialect: Dialect) -> None:
    """A limit that no client can set, or an error about a field that is not there, would be a slip of the pen."""
    named = {*dialect.limit_fields, dialect.default_limit_field} - {None}
    assert named <= dialect.fields.keys()
    assert not dialect.is_billed or dialect.prompt_field in dialect.fields
    assert dialect.default_limit_field is None or dialect.default_limit_field == dialect.limit_fields[0]


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_every_stream_can_end_in_an_error(dialect: Dialect) -> None:
    """In bytes that are a whole event; a stream of chunks ends in [DONE] then too."""
    if dialect.stream is None:
        return
    said = dialect.stream.error_event(EngineFailed("It broke."), "req-00000001", 2)
    assert said.endswith(b"\n\n") and b"It broke." in said
    assert isinstance(dialect.stream, ChunkStream) is said.endswith(b"data: [DONE]\n\n")


def test_what_computes_no_tokens_is_not_billed() -> None:
    """Tokenising and counting are free; everything else has a bill."""
    billed = {path for path, dialect in DIALECTS.items() if dialect.is_billed}
    assert DIALECTS.keys() - billed == {"/tokenize", "/v1/messages/count_tokens", "/v1/responses/input_tokens"}


def test_the_clients_limit_is_the_first_that_is_set() -> None:
    """None where the API has none, or the client set none."""
    assert CHAT.output_limit({"max_tokens": 5, "max_completion_tokens": 3}) == 3
    assert CHAT.output_limit({"max_tokens": 5}) == 5
    assert CHAT.output_limit({}) is EMBEDDINGS.output_limit({"max_tokens": 5}) is None


@pytest.mark.parametrize(
    ("path", "is_anthropic"),
    [
        ("/v1/messages", True),
        (COUNT_TOKENS.path, True),
        ("/v1/messages/batches", True),
        ("/v1/models", False),
        ("/", False),
    ],
)
def test_an_error_has_the_shape_of_the_api_at_its_path(path: str, is_anthropic: bool) -> None:
    """Below Anthropic's path in Anthropic's, everywhere else in OpenAI's."""
    body = json.loads(error_body(Unauthenticated("No."), "req-00000001", is_anthropic=speaks_anthropic(path, None)))
    assert (body.get("type") == "error") is is_anthropic
    assert body["error"]["message"] == "No." and ("code" in body["error"]) is not is_anthropic
