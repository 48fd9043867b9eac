"""Visit: one request on its way through, answered in JSON."""

from __future__ import annotations

import time

import msgspec
import pytest

from serving.gateway.api.visit import Visit
from serving.gateway.http.asgi import Header, Request, Responder
from serving.gateway.nouns import CallRecord
from serving.gateway.observe.tracing import Trace
from tests.gateway.asgi import Wire


class Said(msgspec.Struct):
    text: str


async def test_an_answer_is_one_complete_json_document() -> None:
    """With its length, its type and the request's id; nothing follows it."""
    wire = Wire()
    responder = Responder(wire.send, "req-00000001")
    record = CallRecord(request_id="req-00000001", started_at=0.0)
    visit = Visit(Request(wire.scope(), wire.receive), responder, record, Trace(), time.monotonic)
    assert (visit.argument, visit.error_event) == ("", None)
    await visit.answer(201, Said("é"))
    assert (wire.status, wire.body, responder.is_complete) == (201, '{"text":"é"}'.encode(), True)
    assert wire.headers == {
        b"x-request-id": b"req-00000001",
        b"content-type": b"application/json",
        b"content-length": b"13",
    }


@pytest.mark.parametrize(
    ("path", "headers", "is_anthropic"),
    [
        ("/v1/messages", (), True),
        ("/v1/messages/count_tokens", (), True),
        ("/v1/models", ((b"anthropic-version", b"2023-06-01"),), True),
        ("/v1/models", (), False),
        ("/v1/chat/completions", ((b"anthropic-version", b"2023-06-01"),), False),
    ],
)
async def test_anthropics_clients_find_the_request_id_under_their_name(
    path: str, headers: tuple[Header, ...], is_anthropic: bool
) -> None:
    """By the path, or by their header where both APIs have the path."""
    wire = Wire()
    responder = Responder(wire.send, "req-00000001")
    record = CallRecord(request_id="req-00000001", started_at=0.0)
    request = Request(wire.scope(path=path, headers=headers), wire.receive)
    visit = Visit(request, responder, record, Trace(), time.monotonic)
    await visit.answer(200, Said(""))
    assert visit.is_anthropic is is_anthropic
    assert wire.headers.get(b"request-id") == (b"req-00000001" if is_anthropic else None)
