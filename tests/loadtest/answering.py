"""A server that gives each call the same answer, for clients of benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self, pieces: Sequence[bytes], *, cuts: bool) -> None:
        """`cuts`: the connection is closed behind the answer."""
        self._pieces = pieces
        self._cuts = cuts

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"".join(self._pieces))
        if self._cuts:
            self._transport.close()


@asynccontextmanager
async def answering(pieces: Sequence[bytes], *, cuts: bool = False) -> AsyncIterator[int]:
    """The port of such a server."""
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: Answering(pieces, cuts=cuts), "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]
