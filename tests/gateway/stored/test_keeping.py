"""Keeping: an answer is kept before its client has the end of it, or the client has an error instead."""

from __future__ import annotations

import json

import pytest

from serving.errors import InvalidRequest, StoreUnavailable
from serving.gateway.http.asgi import Message, Responder
from serving.gateway.stored import keeping
from serving.gateway.stored.keeping import KeepingSink
from tests.gateway.stored.speaking import message, stream

HEADERS = [(b"content-type", b"application/json")]


class Client:
    """What has been sent to it, and what was kept when."""

    def __init__(self) -> None:
        self.sent = b""
        self.kept: list[tuple[bytes, bytes]] = []
        self.responder = Responder(self._send, "req_1")
        self.fails = False

    async def _send(self, sent: Message) -> None:
        self.sent += sent.get("body", b"")

    async def keep(self, response: bytes) -> None:
        if self.fails:
            raise StoreUnavailable("away")
        self.kept.append((response, self.sent))

    def sink(self, *, is_streamed: bool) -> KeepingSink:
        return KeepingSink(self.responder, self.keep, is_streamed=is_streamed)


async def test_a_whole_answer_waits_until_it_is_kept() -> None:
    """Not a byte goes out before, so that what cannot be kept is an error with its status."""
    client = Client()
    sink = client.sink(is_streamed=False)
    await sink.start(200, HEADERS)
    await sink.write(b'{"id":')
    await sink.write(b'"r"}')
    assert client.sent == b"" and sink.is_started and not client.responder.is_started
    await sink.finish()
    assert client.kept == [(b'{"id":"r"}', b"")] and client.sent == b'{"id":"r"}'

    client = Client()
    client.fails = True
    sink = client.sink(is_streamed=False)
    await sink.start(200, HEADERS)
    with pytest.raises(StoreUnavailable):
        await sink.finish()
    assert not client.responder.is_started


async def test_a_stream_waits_with_its_end() -> None:
    """Everything before goes out as it comes; the event that ends it carries the response that is kept."""
    client = Client()
    sink = client.sink(is_streamed=True)
    *events, last = stream([message("one two")])
    await sink.start(200, HEADERS)
    for event in events:
        await sink.write(event)
    assert client.sent == b"".join(events) and client.kept == []
    sink.is_whole = True
    await sink.write(last)
    await sink.finish()

    ((response, sent_before),) = client.kept
    assert sent_before == b"".join(events) and client.sent.endswith(last)
    assert json.loads(response)["output"][0]["content"][0]["text"] == "one two"
    assert keeping.status_of(response) == "completed" and client.responder.is_complete


async def test_a_response_that_is_too_large_is_refused() -> None:
    """Before it takes memory without end."""
    sink = Client().sink(is_streamed=False)
    await sink.start(200, HEADERS)
    await sink.write(bytes(keeping.RESPONSE_BYTES_MAX))
    with pytest.raises(InvalidRequest, match="cannot be stored"):
        await sink.write(b"x")
