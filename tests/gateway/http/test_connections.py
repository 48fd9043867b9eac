"""Connections: whatever an engine's bytes look like on the wire, a call gets its answer, or the way in which there is none."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from serving.gateway.http.connections import (
    HEAD_BYTES_MAX,
    IDLE_S,
    READ_BYTES,
    ConnectionBroken,
    Connections,
    NotConnected,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"


class Peer:
    """A server that answers the nth request with the nth list of writes, and keeps what it got."""

    def __init__(self, *answers: Sequence[bytes], closes: bool = False) -> None:
        self._answers = iter(answers)
        self._closes = closes
        self.url = ""
        self.connections = 0
        self.closed = asyncio.Event()
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for piece in next(self._answers):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        await end(writer)


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(answer: Answering) -> AsyncIterator[tuple[Connections, str]]:
    """Connections, and the address of a server; both are gone at the end."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await answer(reader, writer)

    connections = Connections(5.0)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield connections, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
    finally:
        connections.close()
        server.close()
        if tasks:
            await asyncio.wait(tasks)


@asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[Connections]:
    async with listening(peer.serve) as (connections, peer.url):
        yield connections


async def asked(connections: Connections, peer: Peer, limit_s: float = 5.0) -> tuple[int, bytes]:
    with await connections.post(peer.url, b"{}", {"Content-Type": "application/json"}, limit_s) as reply:
        return reply.status, b"".join([piece async for piece in reply.pieces()])


async def test_a_request_is_whole_and_plain() -> None:
    """Its line, its host, its headers, its length and its body; large ones too."""
    peer = Peer([LENGTH], [LENGTH])
    async with serving(peer) as connections:
        for body in (b"{}", b"x" * 1_000_000):
            with await connections.post(peer.url, body, {"A": "b"}) as reply:
                await reply.wait()
    host = peer.url.removeprefix("http://").partition("/")[0].encode()
    assert peer.requests == [
        b"POST /v1/x HTTP/1.1\r\nHost: %b\r\nA: b\r\nContent-Length: %d\r\n\r\n%b" % (host, len(body), body)
        for body in (b"{}", b"x" * 1_000_000)
    ]


@pytest.mark.parametrize("value", ["b\r\nC: d", "b\nC: d", "b\0"])
async def test_a_header_cannot_bring_another(value: str) -> None:
    """What a client sends for tracing goes into headers."""
    with pytest.raises(ValueError, match="more than one line"):
        await Connections(1.0).post("http://127.0.0.1:9/", b"", {"A": value})


@pytest.mark.parametrize("answer", [CHUNKED, LENGTH, UNTIL_CLOSED])
async def test_an_answer_may_be_cut_anywhere(answer: bytes) -> None:
    """In its head, in the size of a chunk, between its border's two bytes, and in several such places."""
    draw = random.Random(1)
    places = [[cut] for cut in range(1, len(answer))]
    places += [sorted(draw.sample(range(1, len(answer)), 5)) for _ in range(20)]
    cut = [[answer[start:end] for start, end in zip([0, *ends], [*ends, None], strict=True)] for ends in places]
    peer = Peer(*cut, closes=answer is UNTIL_CLOSED)
    async with serving(peer) as connections:
        for _ in cut:
            assert await asked(connections, peer) == (200, b"abcde")


async def test_a_connection_is_used_again_and_not_beside_another() -> None:
    """Calls one after another share one; two at a time have two."""
    peer = Peer([CHUNKED], [LENGTH], [LENGTH], [LENGTH])
    async with serving(peer) as connections:
        assert await asked(connections, peer) == await asked(connections, peer) == (200, b"abcde")
        assert peer.connections == 1
        await asyncio.gather(asked(connections, peer), asked(connections, peer))
        assert peer.connections == 2


async def test_a_connection_that_was_paused_reads_the_next_answer() -> None:
    """An answer whose last read was past the bound has ended and been read; the connection goes on."""
    large = b"x" * 8 * READ_BYTES
    peer = Peer([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large) + large], [LENGTH])
    async with serving(peer) as connections:
        assert await asked(connections, peer) == (200, large)
        assert await asked(connections, peer) == (200, b"abcde")
    assert peer.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        LENGTH + b"more",
        LENGTH + LENGTH,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    ],
)
async def test_a_connection_that_may_not_be_clean_is_not_used_again(answer: bytes) -> None:
    """The next call would get what belongs to this one."""
    peer = Peer([answer], [LENGTH])
    async with serving(peer) as connections:
        with await connections.post(peer.url, b"{}", {}) as reply:
            await reply.wait()
            assert reply.read_nowait() == b"abcde"
        assert await asked(connections, peer) == (200, b"abcde")
    assert peer.connections == 2


async def test_an_answer_that_is_given_up_closes_its_connection() -> None:
    """That is how an engine learns that no client waits: at once, and not at the end."""
    peer = Peer([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"])
    async with serving(peer) as connections:
        with pytest.raises(ZeroDivisionError), await connections.post(peer.url, b"{}", {}):
            raise ZeroDivisionError
        await asyncio.wait_for(peer.closed.wait(), 5)


async def test_what_comes_before_the_answer_is_none() -> None:
    """100 and 103 are no answers."""
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    peer = Peer([early, LENGTH], [early + LENGTH])
    async with serving(peer) as connections:
        assert await asked(connections, peer) == await asked(connections, peer) == (200, b"abcde")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * HEAD_BYTES_MAX,
    ],
)
async def test_what_breaks_off_or_is_no_answer_breaks(answer: bytes) -> None:
    """Nothing, half of a head, half of a body, and what is no HTTP."""
    peer = Peer([answer], closes=True)
    async with serving(peer) as connections:
        with pytest.raises(ConnectionBroken):
            await asked(connections, peer)


async def test_what_came_before_a_break_is_read_first() -> None:
    """An engine that dies right behind its words has said them."""
    peer = Peer([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"], closes=True)
    async with serving(peer) as connections:
        with await connections.post(peer.url, b"{}", {}) as reply:
            pieces = reply.pieces()
            assert await anext(pieces) == b"abc"
            with pytest.raises(ConnectionBroken):
                await anext(pieces)


async def test_an_address_where_nothing_listens_is_not_connected() -> None:
    """Whether it refuses, or is nowhere."""
    peer = Peer()
    async with serving(peer):
        pass
    for url in (peer.url, "http://name.invalid:80/"):
        with pytest.raises(NotConnected):
            await Connections(5.0).post(url, b"", {})


async def test_a_head_that_does_not_come_is_a_timeout() -> None:
    """Asked for in so many seconds; without a limit it is waited for."""
    peer = Peer([b"HTTP/1.1 200 OK\r\n"])
    async with serving(peer) as connections:
        with pytest.raises(TimeoutError):
            await asked(connections, peer, limit_s=0.01)
        await asyncio.wait_for(peer.closed.wait(), 5)


async def test_a_compressed_answer_is_unpacked() -> None:
    """A proxy may do that unasked; in pieces it is still one text."""
    packed = gzip.compress(b"abcde" * 1000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    peer = Peer([head + packed[:10], packed[10:]])
    async with serving(peer) as connections:
        assert await asked(connections, peer) == (200, b"abcde" * 1000)


async def test_an_answer_that_is_not_read_stops_coming() -> None:
    """Backpressure: no more than the bound and one read of the kernel's buffer waits here; then the engine cannot write."""
    piece = b"%x\r\n%b\r\n" % (READ_BYTES, b"x" * READ_BYTES)
    peer = Peer([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[piece] * 400, b"0\r\n\r\n"])
    async with serving(peer) as connections:
        with await connections.post(peer.url, b"{}", {}) as reply:
            await reply.wait()
            for _ in range(200):
                await asyncio.sleep(0)
            held = len(reply.read_nowait())
            rest = sum([len(data) async for data in reply.pieces()])
    assert READ_BYTES < held <= 16 * READ_BYTES
    assert held + rest == 400 * READ_BYTES


def one_at_a_time(turn: asyncio.Semaphore, *pieces: bytes) -> Answering:
    """A server that sends an answer's head, and each piece of it when it may."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            await turn.acquire()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")
        await end(writer)

    return answer


async def test_what_is_taken_at_once_is_not_read() -> None:
    """In the order in which it comes; the first piece that is not taken, and all after it, wait to be read."""
    turn = asyncio.Semaphore(0)
    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        turn.release()
        if data == b"c":
            return False
        taken.append(data)
        return True

    async with listening(one_at_a_time(turn, b"a", b"b", b"c", b"d")) as (connections, url):
        with await connections.post(url, b"", {}) as reply:
            turn.release()
            await reply.wait(take)
            rest = b"".join([piece async for piece in reply.pieces()])
    assert (taken, rest) == ([b"a", b"b"], b"cd")


async def test_what_taking_raises_is_raised_where_it_is_waited_for() -> None:
    """An event loop's own handler would log it, and the call would wait for ever."""

    def take(data: bytes) -> bool:
        raise ZeroDivisionError

    turn = asyncio.Semaphore(0)
    async with listening(one_at_a_time(turn, b"a")) as (connections, url):
        with await connections.post(url, b"", {}) as reply:
            turn.release()
            with pytest.raises(ZeroDivisionError):
                await reply.wait(take)


async def test_a_wait_ends_when_it_is_told_to() -> None:
    """That is how a call looks at its time."""
    peer = Peer([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"])
    async with serving(peer) as connections:
        with await connections.post(peer.url, b"{}", {}) as reply:
            asyncio.get_running_loop().call_later(0.01, reply.wake)
            await asyncio.wait_for(reply.wait(), 5)
            assert await reply.read(0.01) == b"" and not reply.is_over


async def test_idle_connections_are_closed() -> None:
    """Before their engine closes them under a call."""
    peer = Peer([LENGTH])
    async with serving(peer) as connections:
        await asked(connections, peer)
        await asyncio.wait_for(peer.closed.wait(), 3 * IDLE_S)
