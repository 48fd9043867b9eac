"""Translation: an engine's errors in our words."""

from __future__ import annotations

import re

import pytest

from serving.errors import ContextExceeded, EngineFailed, InvalidRequest, ModelNotFound, RequestTooLarge
from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.relay.translation import MESSAGE_CHARS_MAX, Blame, blame, in_stream, is_wrapped, refusal, scrubbed
from tests.gateway.answers import recorded_answers
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
        (
            400,
            "Model 'm' does not support Matryoshka embeddings; dimensions must be unset.",
            InvalidRequest,
            None,
            "dimensions",
        ),
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


INPUT = "Input length (9068) exceeds model's maximum context length (4096)."
PROMPT = (
    "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens, which exceeds"
    " this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=4097)"
)
CHARACTERS = (
    "This model's maximum context length is 4096 tokens. However, your prompt contains 99999 characters (more than 9)."
)


@pytest.mark.parametrize(
    ("said", "dialect", "words"),
    [
        (
            INPUT,
            CHAT,
            "This model's maximum context length is 4096 tokens. However, your messages resulted in 9068 tokens.",
        ),
        (
            PROMPT,
            CHAT,
            "This model's maximum context length is 4096 tokens. However, your messages resulted in at least 4097",
        ),
        (INPUT, MESSAGES, "prompt is too long: 9068 tokens > 4096 maximum"),
        (PROMPT, COUNT_TOKENS, "prompt is too long: at least 4097 tokens > 4096 maximum"),
        (CHARACTERS, MESSAGES, "prompt is too long: more than 4096 tokens > 4096 maximum"),
    ],
)
def test_a_prompt_that_is_too_long_is_said_in_the_apis_words(said: str, dialect: Dialect, words: str) -> None:
    """Clients look for these sentences; vLLM has several of its own."""
    error = refusal(400, error_body(400, said), call(dialect))
    assert error.message.startswith(words) and error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("dialect", "fields", "param"),
    [
        (CHAT, {"max_tokens": 90000}, "max_tokens"),
        (MESSAGES, {"max_tokens": 90000}, "max_tokens"),
        (RESPONSES, {"max_output_tokens": 90000}, "max_output_tokens"),
    ],
)
def test_a_limit_above_the_context_is_named_as_the_client_sent_it(
    dialect: Dialect, fields: dict[str, object], param: str
) -> None:
    """The engine knows one name for it."""
    said = "max_completion_tokens=90000 cannot be greater than max_model_len=4096. Please request fewer. (parameter=x, value=1)"
    error = refusal(400, error_body(400, said), call(dialect, **fields))
    assert (error.message, error.param) == (
        f"{param} is too large: 90000. This model supports at most 4096 tokens, prompt included.",
        param,
    )


BUDGET = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/or"
    " --reasoning-config to use thinking_token_budget."
)


@pytest.mark.parametrize(
    ("said", "words", "param"),
    [
        (BUDGET, "The model cannot do what 'thinking_token_budget' asks for.", "thinking_token_budget"),
        ("Start the server with --enable-x", "The model cannot do this request.", None),
        ("Invalid structural tag specification.", "A schema or pattern in 'tools' cannot be compiled.", "tools"),
        ("grammar_functor.cc:3567: Check failed: x", "A schema or pattern in 'tools' cannot be compiled.", "tools"),
        ("No such tool (parameter=tool_choice)", "No such tool", "tool_choice"),
        ("A dash -- in a sentence stays", "A dash -- in a sentence stays", None),
    ],
)
def test_no_flag_and_no_part_of_the_engine_reaches_a_client(said: str, words: str, param: str | None) -> None:
    """The sentence names the field that the client sent instead."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    error = refusal(400, error_body(400, said), call(CHAT, tools=tools))
    assert (error.message, error.param) == (words, param)


def test_a_fault_that_the_engine_wraps_is_the_requests() -> None:
    """vLLM's Messages stream quotes the ends of its own error; which fault it was is not in it."""
    for code, is_clients in ((400, True), (500, False)):
        data = recorded_answers.wrapped(code)
        assert is_wrapped(data) is is_clients
        assert isinstance(in_stream(data, CALL), InvalidRequest if is_clients else EngineFailed)


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
