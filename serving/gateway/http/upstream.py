"""Upstream: the one HTTP client of a gateway, for engines and directories; open while the gateway runs."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from serving.errors import GatewayFull

#: Seconds an idle connection is kept: below the 5 s after which vLLM's server closes it.
IDLE_CONNECTION_S = 2.0
#: Bytes of an answer that aiohttp holds for a client that reads more slowly than the engine writes: it stops reading past twice
#: this, and the kernel holds some more.
READ_BYTES = 16 * 1024
#: The kernel's buffer of a connection, in each direction; it doubles this. Left alone it grows to megabytes for each slow reader,
#: and counts as the pod's memory. 64 KiB per round trip to an engine nearby are 100 MB/s.
SOCKET_BYTES = 32 * 1024


class Upstream:
    """Holds the client session. How long an answer may take is for those who use it."""

    def __init__(self, connect_timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    @property
    def is_open(self) -> bool:
        return self._session is not None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Raises GatewayFull while the gateway starts or stops."""
        if self._session is None:
            raise stopping()
        return self._session

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Open the session in the running event loop, and close it at the end."""
        # As many connections as there are calls, not kept long enough to go stale.
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=IDLE_CONNECTION_S, ssl=self._tls or True, socket_factory=_socket
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=READ_BYTES
        ) as self._session:
            try:
                yield self._session
            finally:
                self._session = None


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    return made


def stopping() -> GatewayFull:
    """The error of requests that this gateway can no longer serve."""
    return GatewayFull("This gateway is stopping; please try again.", retry_after_s=1)
