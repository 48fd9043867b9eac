"""Calls as the benchmark's clients make them: as little work for each byte as asyncio allows, because they share the cores."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from typing import TypeVar

from loadtest.overhead.upstream import MODEL

#: How a stream that was not cut ends, however its chunks were framed anew.
END = b"[DONE]\n\n\r\n0\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)
CHUNKED_END = b"\r\n0\r\n\r\n"
#: Seconds a call may take before it has failed.
LIMIT_S = 120.0


def request(key: str, body: dict[str, object]) -> bytes:
    """A chat call as it goes over the wire."""
    text = json.dumps({"model": MODEL} | body).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    ).encode() + text


def stream(key: str, chunks: int, step_ms: int, phase: str = "shared") -> bytes:
    """A call that is answered by a stream of so many chunks."""
    prompt = f"chunks={chunks} step_ms={step_ms} phase={phase}"
    return request(key, {"stream": True, "messages": [{"role": "user", "content": prompt}]})


def plain(key: str) -> bytes:
    """A call whose answer comes whole."""
    return request(key, {"messages": [{"role": "user", "content": "Name the capital of France."}]})


class Streamed(asyncio.Protocol):
    """One streamed call on a connection of its own: its events, when the first came, and whether it was whole."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self._tail = b""
        self._status = b""
        self.began_at = time.perf_counter()
        self.first_at: float | None = None
        self.events = self.reads = 0
        self.is_whole = False
        self.ended = asyncio.Event()

    @property
    def ttft_s(self) -> float:
        """Seconds to the first event, from before the connection was opened; infinite if none came."""
        return float("inf") if self.first_at is None else self.first_at - self.began_at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream socket
        self._transport = transport
        transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self._status = self._status or data[9:12]
        self.reads += 1
        self.events += data.count(b"data: ")
        if self.first_at is None and self.events:
            self.first_at = time.perf_counter()
        self._tail = (self._tail + data)[-len(END) :]
        if self._tail == END:
            self.is_whole = self._status == b"200"
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()


class Plain(asyncio.Protocol):
    """Whole answers one after another on a connection that is kept open."""

    def __init__(self, sent: bytes, count: int) -> None:
        self._sent = sent
        self._left = count
        self._received = b""
        self.is_whole = False
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream socket
        self._transport = transport
        transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._has_answer():
            return
        is_ok = self._received[9:12] == b"200"
        self._received = b""
        self._left -= 1
        if is_ok and self._left:
            self._transport.write(self._sent)
        else:
            self.is_whole = is_ok
            self._transport.close()

    def _has_answer(self) -> bool:
        head, mark, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        return bool(mark) and (len(body) >= int(length[1]) if length else body.endswith(CHUNKED_END))

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()


Call = TypeVar("Call", bound="Streamed | Plain")


async def made(port: int, call: Call) -> Call:
    """The call, when it has ended: by itself, by the other side, or by being given up."""
    transport = None
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LIMIT_S):
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: call, "127.0.0.1", port)
            await call.ended.wait()
    if transport:
        transport.close()
    return call
