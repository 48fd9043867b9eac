"""Protocol: bounds on headers, and how long writes have waited."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from serving.gateway.http.asgi import Receive, Responder, Scope, Send
from serving.gateway.http.protocol import HEADER_BYTES_MAX, BoundedHeaders, TimedFlow
from tests.clock import Clock
from tests.gateway.world import until


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await Responder(send, "x").whole(200, b"{}")


@asynccontextmanager
async def served(protocol: type[BoundedHeaders]) -> AsyncIterator[tuple[str, int]]:
    """Where a server with this protocol listens."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(_app, http=protocol, ws="none", lifespan="off", log_config=None))
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
