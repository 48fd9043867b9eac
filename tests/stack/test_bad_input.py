"""Bad input gets a clear 4xx in OpenAI's shape, never a 5xx, and never anything inner."""

import json
import re
import socket
from urllib.parse import urlsplit

import pytest

from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import Stack

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"model": SMOLLM2, "messages": MESSAGES, "max_tokens": 2}
#: What must never reach a client: addresses, paths, tracebacks, our own parts' names.
INNER = re.compile(rb"127\.0\.0\.1|/[a-z]+/[a-z]+/[a-z.]+py|Traceback|site-packages|File \"|sqlite|aiohttp|plane", re.I)


def deep(depth: int) -> bytes:
    return b'{"model":"m","messages":' + b"[" * depth + b"]" * depth + b"}"


BAD: dict[str, tuple[object, int]] = {
    "empty body": (b"", 400),
    "not JSON": (b"{", 400),
    "not an object": ([1, 2], 400),
    "invalid UTF-8": (b'{"model": "\xff\xfe"}', 400),
    "nesting bomb": (deep(100_000), 400),
    "no model": ({"messages": MESSAGES}, 400),
    "model is a number": (CHAT | {"model": 7}, 400),
    "model is unknown": (CHAT | {"model": "gpt-99"}, 404),
    "model is a path": (CHAT | {"model": "../../etc/passwd"}, 404),
    "no messages": ({"model": SMOLLM2}, 400),
    "messages is a string": (CHAT | {"messages": "Hi"}, 400),
    "messages is empty": (CHAT | {"messages": []}, 400),
    "message is a string": (CHAT | {"messages": ["Hi"]}, 400),
    "role is unknown": (CHAT | {"messages": [{"role": "wizard", "content": "Hi"}]}, 400),
    "content is a number": (CHAT | {"messages": [{"role": "user", "content": 7}]}, 400),
    "content part is unknown": (CHAT | {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, 400),
    "image for a text model": (
        CHAT
        | {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        400,
    ),
    "max_tokens is negative": (CHAT | {"max_tokens": -1}, 400),
    "max_tokens is huge": (CHAT | {"max_tokens": 10**30}, 400),
    "max_tokens is text": (CHAT | {"max_tokens": "many"}, 400),
    "temperature is text": (CHAT | {"temperature": "warm"}, 400),
    "temperature is too high": (CHAT | {"temperature": 3}, 400),
    "n is zero": (CHAT | {"n": 0}, 400),
    "n is huge": (CHAT | {"n": 100_000}, 400),
    "stop has too many": (CHAT | {"stop": ["a"] * 100}, 400),
    "stream is text": (CHAT | {"stream": "yes"}, 400),
    "tools is a string": (CHAT | {"tools": "all"}, 400),
    "tool has no name": (CHAT | {"tools": [{"type": "function", "function": {}}]}, 400),
    "tool choice names no tool": (CHAT | {"tool_choice": {"type": "function", "function": {"name": "x"}}}, 400),
    "schema is broken": (
        CHAT
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        400,
    ),
    "unknown field": (CHAT | {"no_such_field": 1}, 400),
    "operator's field": (CHAT | {"priority": -100}, 400),
    "reasoning effort is unknown": (CHAT | {"reasoning_effort": "extreme"}, 400),
    "lone surrogate": (b'{"model":"smollm2-135m-instruct","messages":[{"role":"user","content":"\\ud800"}]}', 400),
    "prompt over the context": (CHAT | {"messages": [{"role": "user", "content": "word " * 20_000}]}, 400),
    "body over the limit": (CHAT | {"messages": [{"role": "user", "content": "x" * 2_000_000}]}, 413),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", BAD)
def test_bad_chat_input_is_a_clear_refusal(stack: Stack, case: str, stream: bool) -> None:
    """Status, shape and silence about the inside, streaming or not."""
    body, expected = BAD[case]
    if isinstance(body, dict) and stream and "stream" not in body:
        body = body | {"stream": True}
    status, headers, answer = call(stack.url, "POST", "/v1/chat/completions", body, bearer(stack.key))
    assert status == expected, answer
    error = json.loads(answer)["error"]
    assert error["type"] == "invalid_request_error" and error["message"] and {"param", "code"} <= error.keys()
    assert not INNER.search(answer), answer
    assert headers["content-type"].startswith("application/json") and headers["x-request-id"]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/tokenize"])
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": 7}', b'{"model": "smollm2-135m-instruct"}'])
def test_every_route_refuses_what_it_cannot_read(stack: Stack, route: str, body: bytes) -> None:
    """The other routes are as strict, each in its own shape."""
    status, _, answer = call(stack.url, "POST", route, body, bearer(stack.key))
    document = json.loads(answer)
    assert status == 400 and document["error"]["message"] and not INNER.search(answer)
    assert (document.get("type") == "error") == (route == "/v1/messages")


@pytest.mark.parametrize("headers", [{}, bearer("sk-wrong"), {"Authorization": "Basic x"}, {"x-api-key": "wrong"}])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/x", "/v1/chat/completions", "/v1/messages", "/tokenize"])
def test_no_key_opens_nothing(stack: Stack, path: str, headers: dict[str, str]) -> None:
    """Without a good key the answer is 401, before the body is looked at."""
    method = "GET" if path.startswith("/v1/models") else "POST"
    status, answer_headers, answer = call(stack.url, method, path, b"{" if method == "POST" else None, headers)
    assert status == 401 and "www-authenticate" in answer_headers
    assert json.loads(answer)["error"]["message"]


def test_an_unknown_path_and_a_wrong_method_are_said(stack: Stack) -> None:
    """404 and 405 in OpenAI's shape; vLLM's other routes are simply not there."""
    for path in ("/nothing", "/v1/chat/completions/", "/sleep", "/v1/load_lora_adapter", "/%2e%2e/etc/passwd"):
        status, _, answer = call(stack.url, "POST", path, CHAT, bearer(stack.key))
        assert status == 404 and json.loads(answer)["error"]["code"] == "unknown_url"
    status, headers, _ = call(stack.url, "GET", "/v1/chat/completions", headers=bearer(stack.key))
    assert status == 405 and headers["allow"] == "POST"


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"a" * 200_000,
    ],
    ids=["not HTTP", "bad length", "bad chunk", "huge header", "endless header"],
)
def test_broken_http_is_refused_and_the_gateway_lives(stack: Stack, raw: bytes) -> None:
    """Bytes that are not a request get a 4xx or a closed connection; the next client is served."""
    parts = urlsplit(stack.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(raw)
        answer = connection.recv(65536)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert call(stack.url, "GET", "/health/live")[0] == 200
