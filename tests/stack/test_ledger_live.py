"""Every request leaves one row, and what the rows say is what vLLM counted."""

import json
import socket
from collections.abc import Callable
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import Stack
from tests.waiting import until

CHAT = {"model": SMOLLM2, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 12}
BODIES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": SMOLLM2, "prompt": "Once upon a time", "max_tokens": 12},
    "/v1/responses": {"model": SMOLLM2, "input": "Tell me a story.", "max_output_tokens": 12},
    "/v1/messages": CHAT,
}
#: Routes that generate nothing leave a row of zeros.
FREE: dict[str, dict[str, object]] = {
    "/v1/messages/count_tokens": {"model": SMOLLM2, "messages": [{"role": "user", "content": "Hello"}]},
    "/tokenize": {"model": SMOLLM2, "prompt": "Hello"},
}


def counted(stack: Stack) -> tuple[float, float]:
    metrics = stack.engine_metrics()
    return metrics["vllm:prompt_tokens_total"], metrics["vllm:generation_tokens_total"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", BODIES)
def test_a_row_holds_what_the_engine_counted(stack: Stack, route: str, stream: bool) -> None:
    """Exact prompt and completion tokens, for every generating route, whole and streamed."""
    before = counted(stack)
    status, headers, body = call(stack.url, "POST", route, BODIES[route] | {"stream": stream}, bearer(stack.key))
    assert status == 200, body
    row = stack.row(headers["x-request-id"])
    until(lambda: counted(stack) != before)
    after = counted(stack)
    assert (row.prompt_tokens, row.completion_tokens) == (after[0] - before[0], after[1] - before[1])
    assert (row.route, row.model, row.outcome, row.status) == (route, SMOLLM2, "ok", 200)
    assert row.estimated_by is None


@pytest.mark.parametrize("route", FREE)
def test_routes_that_generate_nothing_cost_nothing(stack: Stack, route: str) -> None:
    """Counting tokens is recorded, and free."""
    status, headers, _ = call(stack.url, "POST", route, FREE[route], bearer(stack.key))
    assert status == 200
    row = stack.row(headers["x-request-id"])
    assert (row.route, row.prompt_tokens, row.completion_tokens) == (route, 0, 0)


def test_a_refused_request_is_recorded_without_tokens(stack: Stack) -> None:
    """The security officer sees failures too."""
    status, headers, _ = call(stack.url, "POST", "/v1/chat/completions", CHAT | {"model": "gpt-99"}, bearer(stack.key))
    assert status == 404
    row = stack.row(headers["x-request-id"])
    assert (row.status, row.prompt_tokens, row.completion_tokens) == (404, 0, 0)


def hang_up(stack: Stack, request_id: str, body: dict[str, object], is_time: Callable[[bytes], bool]) -> None:
    """Send a request on a bare socket and close it as soon as `is_time` says so of what has come."""
    parts = urlsplit(stack.url)
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.key}\r\n"
        f"X-Request-Id: {request_id}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(head.encode() + payload)
        connection.settimeout(0.2)
        seen = b""
        while not is_time(seen):
            try:
                seen += connection.recv(65536)
            except TimeoutError:
                continue


LONG = CHAT | {"max_tokens": 3500, "min_tokens": 3400, "temperature": 0}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_leaves_stops_the_work_and_is_billed(stack: Stack, stream: bool) -> None:
    """Within a second of a disconnect vLLM runs nothing any more; what was generated is billed, marked as estimated."""
    request_id, generated_before = f"leaves-{uuid4().hex}", counted(stack)[1]
    hang_up(
        stack,
        request_id,
        LONG | {"stream": stream},
        (lambda seen: seen.count(b"data: ") > 20) if stream else lambda _: counted(stack)[1] > generated_before + 20,
    )
    # On a quiet machine this takes a quarter of a second; the bound leaves room for a busy one.
    until(lambda: stack.engine_metrics()["vllm:num_requests_running"] == 0, 5)
    row = stack.row(request_id)
    generated = counted(stack)[1] - generated_before
    assert row.outcome == "client_disconnected" and row.estimated_by
    assert 0 < row.completion_tokens < 3400
    if stream:  # the last chunk carried the engine's own count; it may be a few tokens ahead of what was sent
        assert abs(generated - row.completion_tokens) <= 8
