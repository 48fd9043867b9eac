"""Translation: an engine's errors in our words."""

from __future__ import annotations

import re

import pytest

from serving.errors import ContextExceeded, EngineFailed, InvalidRequest, ModelNotFound, RequestTooLarge
from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.relay.translation import MESSAGE_CHARS_MAX, Blame, blame, in_stream, refusal, scrubbed
from tests.gateway.calls import call
from tests.scripted_engine import error_body

CALL = call(CHAT)


@pytest.mark.parametrize(
    ("status", "said", "kind", "code", "words"),
    [
        (
            400,
            "This model's maximum context length is 4096 tokens.",
            ContextExceeded,
            "context_length_exceeded",
            "4096",
        ),
        (400, "Bad value in /usr/lib/x/y.py at http://10.1.2.3:8000/v1", InvalidRequest, None, "Bad value"),
        (404, "Not Found", InvalidRequest, None, "does not support"),
        (404, "The model `m` does not exist.", ModelNotFound, "model_not_found", "'m'"),
        (501, "The model does not support Chat Completions API", InvalidRequest, None, "support"),
        (413, "Too large", RequestTooLarge, "request_too_large", "too large"),
        (
            422,
            "1 validation error:\n {'loc': ('body',), 'msg': 'Input should be 1', 'input': 2}",
            InvalidRequest,
            None,
            "be 1",
        ),
        (400, "", InvalidRequest, None, "cannot serve this request"),
    ],
)
def test_refusals_of_the_engine_are_said_in_our_words(
    status: int, said: str, kind: type[Exception], code: str | None, words: str
) -> None:
    """What an engine says about the request is passed on, scrubbed; its own trouble never looks like the client's."""
    error = refusal(status, error_body(status, said), CALL)
    assert type(error) is kind and error.code == code and words in error.message
    assert not re.search(r"/usr/|10\.1\.2\.3|http://|'loc'", error.message)


@pytest.mark.parametrize("body", [b"", b"Unauthorized", b"\xff", b"[]", b'{"error":"text"}', b'{"error":{}}'])
def test_a_refusal_in_no_known_shape_is_still_a_sentence(body: bytes) -> None:
    """Nothing of it is passed on."""
    assert refusal(400, body, CALL).message == "The model cannot serve this request."


@pytest.mark.parametrize("dialect", [it for it in DIALECTS.values() if it.is_billed], ids=lambda it: it.path)
def test_a_prompt_that_is_too_long_is_named(dialect: Dialect) -> None:
    """The 400 names the field that holds the prompt on that route."""
    error = refusal(400, error_body(400, "This model's maximum context length is 4096 tokens."), call(dialect))
    assert (error.code, error.param) == ("context_length_exceeded", dialect.prompt_field)


@pytest.mark.parametrize(
    ("status", "whose"),
    [
        *((status, Blame.REQUEST) for status in (400, 404, 413, 422, 501)),
        *((status, Blame.BUSY) for status in (429, 503)),
        *((status, Blame.REPLICA) for status in (401, 403, 418, 500, 502)),
    ],
)
def test_each_status_has_its_blame(status: int, whose: Blame) -> None:
    """401 and 403 are about our secret: never the client's, and another replica may know it."""
    assert blame(status) is whose


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("see https://h.example/x?y=1 now", "see <address> now"),
        ("at 10.0.0.1:8000 or localhost:8000", "at <address> or <address>"),
        ("in /opt/vllm/engine.py: bad", "in <path>: bad"),
        ("<object X at 0x7f00aa>", "<object X>"),
        ('bad\n  File "/a/b.py", line 3, in f', "bad"),
        ("bad\nTraceback (most recent call last):\n  secrets", "bad"),
        ("1/2 of a/b stays", "1/2 of a/b stays"),
        ("'loc': x, 'msg': \"It's long\", validation error", "It's long"),
        ("validation error of no known form", "A field has a value the model cannot take"),
        ("x" * 1000, "x" * MESSAGE_CHARS_MAX),
    ],
)
def test_a_sentence_is_passed_on_without_what_is_the_operators(said: str, left: str) -> None:
    """Addresses, paths, object addresses, tracebacks and the engine's own form of validation errors."""
    assert scrubbed(said) == left


def test_a_field_is_named_as_the_client_sent_it() -> None:
    """Without the engine's prefix, scrubbed and bounded."""
    for said, param in (("body.messages.0", "messages.0"), ("", None), ("x" * 500, "x" * 128)):
        assert refusal(400, error_body(400, "Bad.", param=said), CALL).param == param


@pytest.mark.parametrize(
    ("status", "kind", "is_clients"),
    [(400, "BadRequestError", True), (422, "ValueError", True), (400, "InternalServerError", False), (500, "x", False)],
)
def test_an_error_in_a_stream_is_the_clients_only_with_its_status(status: int, kind: str, is_clients: bool) -> None:
    """Everything else is the engine's failure, in one sentence of ours."""
    error = in_stream(error_body(status, "Bad grammar", kind), CALL)
    assert isinstance(error, InvalidRequest if is_clients else EngineFailed)
    assert ("Bad grammar" in error.message) is is_clients
