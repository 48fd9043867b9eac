"""Protocol: bounds on headers, and how long writes have waited."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn

from serving.errors import InvalidRequest
from serving.gateway.http.asgi import Receive, Request, Responder, Scope, Send
from serving.gateway.http.protocol import HEADER_BYTES_MAX, REST_BYTES_MAX, BoundedHeaders, TimedFlow
from serving.gateway.nouns import ClientLeft
from tests.clock import Clock
from tests.gateway.world import until

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers what is HTTP, and reads a body only at `/read`."""
    request, responder = Request(scope, receive), Responder(send, "x")
    try:
        request.require_http()
        body = await request.read_body(1000) if request.path == "/read" else b"unread"
    except InvalidRequest as fault:
        await responder.whole(400, fault.message.encode())
    except ClientLeft:
        return
    else:
        await responder.whole(200, body)


@asynccontextmanager
async def served(protocol: type[BoundedHeaders], app: App = _app) -> AsyncIterator[tuple[str, int]]:
    """Where a server of this application with this protocol listens."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[bound]))
        await until(lambda: server.started)
        try:
            yield bound.getsockname()
        finally:
            server.should_exit = True
            await task


async def test_headers_that_never_come_end_the_connection() -> None:
    """Neither a silent connection nor a head that trickles in is kept; one that asks in time is answered."""

    class Impatient(BoundedHeaders):
        header_timeout_s = 0.2

    async with served(Impatient) as address:
        for said in (b"", b"GET / HTTP/1.1\r\nHo"):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(said)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
    async with served(BoundedHeaders) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        writer.close()


async def test_a_connections_own_dictionary_stays_small() -> None:
    """uvicorn's names are at most the thirty that Python keeps in place (of CPython 3.11), and none of ours is among them: with one
    more each connection takes a kilobyte more.
    """
    seen = []

    class Noted(BoundedHeaders):
        __slots__ = ()

        def connection_lost(self, exc: Exception | None) -> None:
            seen.append(set(vars(self)))
            super().connection_lost(exc)

    async with served(Noted) as address:
        assert b" 200 OK" in await said_to(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until(lambda: bool(seen))
    assert len(seen[0]) <= 30 and not seen[0] & set(BoundedHeaders.__slots__)


async def test_headers_that_never_end_are_a_400() -> None:
    """Past HEADER_BYTES_MAX the client gets a 400 and the connection is closed; headers just below it are answered."""
    async with served(BoundedHeaders) as address:
        for size, status in ((HEADER_BYTES_MAX - 1024, b"200"), (2 * HEADER_BYTES_MAX, b"400")):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * size)
            if status == b"200":
                writer.write(b"\r\n\r\n")
            assert (await reader.readline()).split()[1] == status
            writer.close()


GOOD = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"


async def said_to(address: tuple[str, int], *pieces: bytes) -> bytes:
    """All that is answered to these pieces, to the end of the connection."""
    reader, writer = await asyncio.open_connection(*address)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"POST /read HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_the_applications_to_answer(sent: bytes) -> None:
    """Once, with a body of its own, and then the connection is closed; a good request before it has its answer first."""
    async with served(BoundedHeaders) as address:
        alone = await said_to(address, sent)
        behind = await said_to(address, GOOD + sent)
    assert alone.count(b"HTTP/1.1 ") == 1 and alone.startswith(b"HTTP/1.1 400 ")
    assert alone.endswith(b"Invalid HTTP request received.") and b"connection: close" in alone
    first, _, second = behind.removeprefix(b"HTTP/1.1 ").partition(b"HTTP/1.1 ")
    assert first.startswith(b"200 ") and first.endswith(b"\r\n\r\nhi") and second.startswith(b"400 ")


async def test_a_body_that_turns_out_to_be_no_http_is_answered() -> None:
    """Also where it was awaited."""
    head = b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"
    async with served(BoundedHeaders) as address:
        answer = await said_to(address, head, b"zz\r\n" * 100)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.endswith(b"Invalid HTTP request received.")


async def test_a_body_that_goes_on_after_its_answer_ends_the_connection() -> None:
    """The answer is read; then it is closed after a while, or after as many bytes as are thrown away at most."""

    class Impatient(BoundedHeaders):
        rest_s = 0.2

    class Patient(BoundedHeaders):
        rest_s = 3600.0

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
    for protocol, length in ((Impatient, 1000), (Patient, REST_BYTES_MAX + 1_000_000)):
        async with served(protocol) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(head)
            assert b"200" in await reader.readuntil(b"unread")
            with suppress(ConnectionError):
                writer.write(b"x" * length)
                await asyncio.wait_for(reader.read(), 20)
            writer.close()


async def test_a_body_that_ends_after_its_answer_keeps_the_connection() -> None:
    """As most do: the next request on it is answered."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    async with served(BoundedHeaders) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(head)
        await reader.readuntil(b"unread")
        writer.write(b"x" * 100_000 + GOOD)
        assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("bytes_at_once", [1, 7, 10_000])
async def test_a_client_that_asks_for_http_2_gets_http_1(bytes_at_once: int) -> None:
    """As Java's does with every request (`Upgrade: h2c`), with its whole body; wherever the network cuts it."""
    asked = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    async with served(BoundedHeaders) as address:
        reader, writer = await asyncio.open_connection(*address)
        request = GOOD.replace(b"Host: x\r\n", b"Host: x\r\n" + asked)
        for start in range(0, len(request), bytes_at_once):
            writer.write(request[start : start + bytes_at_once])
            await writer.drain()
            await asyncio.sleep(0)
        assert (await asyncio.wait_for(reader.readuntil(b"hi"), 10)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_flow_counts_how_long_writes_wait() -> None:
    """From the client's backpressure to its end, by the clock that it was given; also of a write that is cancelled."""
    clock = Clock()
    async with served(BoundedHeaders) as address:
        _, writer = await asyncio.open_connection(*address)
        flow = TimedFlow(writer.transport, clock)  # type: ignore[arg-type] # as uvicorn has it
        await flow.drain()
        assert flow.waited_s == 0.0
        flow.pause_writing()
        for waits_s, ends in ((3.0, flow.resume_writing), (2.0, None)):
            waiting = asyncio.create_task(flow.drain())
            await asyncio.sleep(0)
            clock.advance(waits_s)
            ends() if ends else waiting.cancel()
            await asyncio.wait([waiting])
            flow.pause_writing()
        assert flow.waited_s == 5.0
        flow.cut()
        assert writer.transport.is_closing()


async def pieces_of(app: App, asked: bytes) -> list[bytes]:
    """What a client of this application's server reads, by the writes that it came in."""
    written: list[bytes] = []

    class Listening(BoundedHeaders):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
            super().connection_made(Heard(transport, written))

    async with served(Listening, app) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(asked)
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
    return written


class Heard(asyncio.Transport):
    """A transport that writes down what is written to it."""

    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        super().__init__()
        self._transport = transport
        self._written = written

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._written.append(bytes(data))
        self._transport.write(data)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._transport.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()


def _asked(path: bytes, method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (method, path)


async def test_an_answers_head_goes_out_with_its_body() -> None:
    """In one write, which costs the kernel as much as two."""
    (written,) = [piece for piece in await pieces_of(_app, _asked(b"/")) if piece]
    assert written.startswith(b"HTTP/1.1 200 OK\r\n") and written.endswith(b"\r\n\r\nunread")


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_a_head_waits_for_nothing_else(method: bytes) -> None:
    """One whose body comes later, or never, goes out by itself."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        responder = Responder(send, "x")
        await responder.start(200, [(b"content-length", b"4")])
        for _ in range(3):  # turns of the loop
            await asyncio.sleep(0)
        await responder.finish(b"late")

    first, *rest = [piece for piece in await pieces_of(slow, _asked(b"/", method)) if piece]
    assert first.startswith(b"HTTP/1.1 200 OK\r\n") and first.endswith(b"\r\n\r\n")
    assert rest == ([b"late"] if method == b"GET" else [])


async def test_a_flow_tells_when_its_client_has_left() -> None:
    """At once where it has left already, though another request waits behind the one that runs; no more once that is taken back."""
    told, begun = list[str](), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.read_body(9)
        assert request.flow is not None and request.flow.has_request
        gone = asyncio.Event()
        request.flow.on_left(gone.set)
        begun.set()
        await asyncio.wait_for(gone.wait(), 10)
        request.flow.take_back(gone.set)
        request.flow.on_left(lambda: told.append("late"))

    for sent in (_asked(b"/"), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + _asked(b"/")):
        async with served(BoundedHeaders, app) as address:
            _, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            await asyncio.wait_for(begun.wait(), 10)
            writer.close()
            await until(lambda: told)
        assert told == ["late"]
        told.clear()
        begun.clear()


async def test_a_request_that_lingers_takes_nothing_from_the_next() -> None:
    """Its connection's next request runs once it is answered, and is told when the client leaves."""
    told, is_first_over = list[str](), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.read_body(9)
        responder = Responder(send, "x", request.flow)
        try:
            async with request.cancel_when_client_leaves(responder):
                if request.path == "/next":
                    told.append("runs")
                    await asyncio.sleep(10)
                await responder.whole(200, b"first")
                await until(lambda: told)
        except ClientLeft:
            told.append("left")
        else:
            is_first_over.set()

    async with served(BoundedHeaders, app) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"first")
        writer.write(_asked(b"/next"))
        await is_first_over.wait()
        writer.close()
        await until(lambda: "left" in told)
    assert told == ["runs", "left"]
