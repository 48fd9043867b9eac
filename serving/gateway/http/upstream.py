"""Upstream: what a gateway asks engines and directories with; open while it runs. Calls have connections of their own
(`connections`); aiohttp is for everything else.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from serving.errors import GatewayFull
from serving.gateway.http.connections import IDLE_S, Connections, Reply


class Upstream:
    """Holds the client session. How long an answer may take is for those who use it."""

    def __init__(self, connect_timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._connections = Connections(connect_timeout_s, tls)

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
        # As many connections as there are questions, not kept long enough to go stale.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ssl=self._tls or True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            try:
                yield self._session
            finally:
                self._session = None
                self._connections.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], head_limit_s: float | None) -> Reply:
        """Send a call to an engine (`Connections.post`); raises GatewayFull while the gateway starts or stops."""
        if self._session is None:
            raise stopping()
        return await self._connections.post(url, body, headers, head_limit_s)


def stopping() -> GatewayFull:
    """The error of requests that this gateway can no longer serve."""
    return GatewayFull("This gateway is stopping; please try again.", retry_after_s=1)
