"""Connections: to engines, each for one call at a time and kept for the next one: HTTP/1.1 by httptools (RLY-40).

What comes is either read when a task gets round to it, or taken in the same turn of the event loop in which it comes
(`Reply.wait`). Engines are ours: their answers are bounded, and what is no HTTP breaks the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import httptools

#: Seconds an idle connection is kept: below the 5 s after which vLLM's server closes it.
IDLE_S = 2.0
#: Bytes of an answer that wait here for a client that reads more slowly than its engine writes; then reading pauses, and the
#: kernel holds some more. One read may exceed it by the kernel's buffer.
READ_BYTES = 32 * 1024
#: The kernel's buffer of a connection; it doubles this. Left alone it grows to megabytes for each slow reader, and counts as the
#: pod's memory. 64 KiB per round trip to an engine nearby are 100 MB/s.
SOCKET_BYTES = 32 * 1024
#: Bytes of an answer's head.
HEAD_BYTES_MAX = 64 * 1024
#: Bytes of a request's body that are copied to go out with its head.
JOINED_BYTES_MAX = 16 * 1024
#: Addresses of engines whose parts are remembered.
TARGETS_MAX = 4096

#: Takes a piece of an answer, or says that it has to be read.
Take = Callable[[bytes], bool]


class NotConnected(Exception):
    """An engine's address refuses connections, cannot be found, or does not answer in time."""


class ConnectionBroken(Exception):
    """The connection ended before the answer did, or what came over it was none."""


class Origin(NamedTuple):
    """Where a connection leads to."""

    host: str
    port: int
    is_tls: bool


@lru_cache(TARGETS_MAX)
def _target(url: str) -> tuple[Origin, bytes]:
    """Where a URL leads, and the first two lines of a POST to it."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    origin = Origin(parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls)
    return origin, f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode("ascii")


def _head(first: bytes, headers: Mapping[str, str], length: int) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\r\n") != len(headers) or lines.count("\n") != len(headers) or "\0" in lines:
        raise ValueError("a header of more than one line")
    return b"%b%bContent-Length: %d\r\n\r\n" % (first, lines.encode("latin-1"), length)


class Connections:
    """As many as there are calls. `with await connections.post(…) as reply: …`"""

    def __init__(self, connect_timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._all: set[_Connection] = set()
        #: Those without a call, the one that was used last at the end.
        self._idle: dict[Origin, list[_Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], head_limit_s: float | None = None) -> Reply:
        """Send a call; return when the head of its answer is there.

        Raises NotConnected, ConnectionBroken, and TimeoutError where the head takes longer than `head_limit_s`.
        """
        origin, first = _target(url)
        head = _head(first, headers, len(body))
        connection = self._kept(origin) or await self._connected(origin)
        reply = connection.begin()
        connection.send(head, body)
        try:
            await reply.headed(head_limit_s)
        except BaseException:
            reply.close()
            raise
        return reply

    def close(self) -> None:
        """Cut all connections."""
        for connection in list(self._all):
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()

    def _kept(self, origin: Origin) -> _Connection | None:
        idle = self._idle.get(origin)
        return idle.pop() if idle else None

    async def _connected(self, origin: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        tls = (self._tls or ssl.create_default_context()) if origin.is_tls else None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, origin), origin.host, origin.port, ssl=tls
                )
        except (OSError, TimeoutError) as error:
            raise NotConnected(type(error).__name__) from None
        return connection

    def opened(self, connection: _Connection) -> None:
        self._all.add(connection)

    def lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        with contextlib.suppress(KeyError, ValueError):
            self._idle[connection.origin].remove(connection)

    def keep(self, connection: _Connection) -> None:
        """Its call is over: another may have it."""
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(IDLE_S / 2, self._close_idle)

    def _close_idle(self) -> None:
        """Close those that have been idle for long, twice in IDLE_S."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        before = loop.time() - IDLE_S / 2
        for connections in list(self._idle.values()):
            for connection in [it for it in connections if it.idle_since <= before]:
                connections.remove(connection)
                connection.abort()
        self._idle = {origin: connections for origin, connections in self._idle.items() if connections}
        if self._idle:
            self._sweep = loop.call_later(IDLE_S / 2, self._close_idle)


class _Connection(asyncio.Protocol):
    """One connection; httptools calls its `on_` methods."""

    __slots__ = (
        "_connections",
        "_ends_with_connection",
        "_has_head",
        "_head_bytes",
        "_headers",
        "_is_spoiled",
        "_is_whole",
        "_parser",
        "_pieces",
        "_reply",
        "idle_since",
        "origin",
        "transport",
    )
    transport: asyncio.Transport

    def __init__(self, connections: Connections, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._connections = connections
        self._parser = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        #: Of the answer that comes in now.
        self._head_bytes = 0
        self._has_head = False
        self._is_whole = False
        self._ends_with_connection = False
        #: What came after an answer's end, or says so itself: no second call may have it.
        self._is_spoiled = False
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as asyncio calls it
        self.transport = transport
        bound: socket.socket | None = transport.get_extra_info("socket")
        if bound is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.lost(self)
        if self._reply is not None:
            if self._has_head and self._ends_with_connection and exc is None:
                self._is_whole = True
            self._reply.end(is_whole=self._is_whole)

    def begin(self) -> Reply:
        self._head_bytes, self._has_head, self._is_whole, self._headers = 0, False, False, {}
        self._reply = reply = Reply(self)
        if self.transport.is_closing():
            reply.end(is_whole=False)
        return reply

    def send(self, head: bytes, body: bytes) -> None:
        if len(body) <= JOINED_BYTES_MAX:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def finish(self) -> None:
        """Its call is over, and the answer may be."""
        self._reply = None
        if self._is_whole and not self._is_spoiled and not self.transport.is_closing():
            self._connections.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once: that makes an engine stop."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            # No call is under way, so this is no answer.
            self.abort()
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._is_spoiled = True
            # What follows an answer is no part of it.
            if not self._is_whole:
                self._break(reply)
                return
        if self._head_bytes > HEAD_BYTES_MAX and not self._has_head:
            self._break(reply)
        elif pieces := self._pieces:
            self._pieces = []
            reply.come(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._is_whole:
            reply.end(is_whole=True)

    def _break(self, reply: Reply) -> None:
        reply.end(is_whole=False)
        self.abort()

    def on_message_begin(self) -> None:
        self._is_spoiled = self._is_spoiled or self._is_whole
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        # What comes before the answer (100, 103) is none.
        if status >= 200 and not self._is_whole and self._reply is not None:
            self._has_head = True
            said = self._headers
            is_chunked = "chunked" in said.get("transfer-encoding", "").lower()
            self._ends_with_connection = "content-length" not in said and not is_chunked
            self._is_spoiled = self._is_spoiled or not self._parser.should_keep_alive()
            self._reply.head(status, said)

    def on_body(self, body: bytes) -> None:
        if not self._is_whole:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._is_whole = self._has_head


class Reply:
    """One call's answer, as far as it has come."""

    __slots__ = (
        "_connection",
        "_has_ended",
        "_is_broken",
        "_is_paused",
        "_pieces",
        "_take",
        "_transport",
        "_unpack",
        "_waiter",
        "_waiting_bytes",
        "headers",
        "status",
    )

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        #: By their names in lower case.
        self.headers: Mapping[str, str] = {}
        self._connection: _Connection | None = connection
        self._transport = connection.transport
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._is_paused = False
        self._has_ended = False
        self._is_broken = False
        self._unpack: Callable[[bytes], bytes] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._take: Take | None = None

    @property
    def is_over(self) -> bool:
        """All that came of it has been read, and no more will come; raises ConnectionBroken where it is not whole."""
        if self._waiting_bytes or not self._has_ended:
            return False
        if self._is_broken:
            raise ConnectionBroken
        return True

    def read_nowait(self) -> bytes:
        """What has come and was not read."""
        if not self._waiting_bytes:
            return b""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._waiting_bytes = [], 0
        if self._is_paused:
            self._is_paused = False
            # Also after its end: the next call's answer comes over the same connection.
            self._transport.resume_reading()
        return data

    async def wait(self, take: Take | None = None) -> None:
        """Return when there is something to read, when it is over, or after `wake`.

        With `take` what comes goes there first, in the turn in which it comes; this returns with the first piece that it does
        not take. What `take` raises is raised here.
        """
        if self._waiting_bytes or self._has_ended:
            return
        self._take = take
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = self._take = None

    def wake(self) -> None:
        """Let `wait` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, limit_s: float) -> bytes:
        """What comes next, as soon as there is some; nothing at the end and when there is none in time."""
        if not self._waiting_bytes and not self.is_over:
            limit = asyncio.get_running_loop().call_later(limit_s, self.wake)
            try:
                await self.wait()
            finally:
                limit.cancel()
        return self.read_nowait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, as it comes; raises ConnectionBroken."""
        while not self.is_over:
            if data := self.read_nowait():
                yield data
            else:
                await self.wait()

    async def beginning(self, most_bytes: int, limit_s: float) -> bytes:
        """So many bytes at most, or those that come within so many seconds."""
        read = bytearray()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                async for data in self.pieces():
                    read += data
                    if len(read) >= most_bytes:
                        break
        return bytes(read[:most_bytes])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """The call is over; an answer that was given up is cut, which makes its engine stop at once."""
        if error is None:
            self.release()
        else:
            self.close()

    def release(self) -> None:
        """The call is over: its connection is kept if the answer is whole."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            if self._waiting_bytes:
                # Not read to its end, and perhaps paused.
                connection.abort()
            connection.finish()

    def close(self) -> None:
        """Give the answer up, and its connection with it."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.abort()
            connection.finish()

    async def headed(self, limit_s: float | None) -> None:
        """Return when its head is there; raises ConnectionBroken and TimeoutError."""
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            self.wake()

        limit = asyncio.get_running_loop().call_later(limit_s, give_up) if limit_s is not None else None
        try:
            while not self.status and not self._has_ended and not is_late:
                await self.wait()
        finally:
            if limit is not None:
                limit.cancel()
        if not self.status:
            raise ConnectionBroken if self._has_ended else TimeoutError

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding in ("gzip", "deflate"):
            self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress
        self.wake()

    def come(self, data: bytes) -> None:
        """A piece of it has come."""
        if self._unpack is not None:
            try:
                data = self._unpack(data)
            except zlib.error:
                return self.end(is_whole=False)
            if not data:
                return None
        if self._take is not None and not self._waiting_bytes and self._is_taken(self._take, data):
            return None
        self._pieces.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > READ_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        return self.wake()

    def _is_taken(self, take: Take, data: bytes) -> bool:
        try:
            if take(data):
                return True
        except Exception as error:  # noqa: BLE001 It is raised where the answer is waited for.
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
        self._take = None
        return False

    def end(self, *, is_whole: bool) -> None:
        """No more of it will come."""
        if not self._has_ended:
            self._has_ended, self._is_broken = True, not is_whole
            self.wake()
