"""Protocol: uvicorn's HTTP/1.1 connection with bounds on headers, which tells the application how long writes have waited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.gateway.http.asgi import FLOW

#: Bytes of request headers read before they must be complete.
HEADER_BYTES_MAX = 64 * 1024
#: Seconds a connection may take to send its first byte and then its headers.
HEADER_TIMEOUT_S = 30.0


class TimedFlow(FlowControl):
    """Knows how long writes have waited for the client. uvicorn asks it only where one really has to."""

    def __init__(self, transport: asyncio.Transport, clock: Callable[[], float]) -> None:
        super().__init__(transport)
        self.waited_s = 0.0
        self._clock = clock

    async def drain(self) -> None:
        began_at = self._clock()
        try:
            await super().drain()
        finally:
            self.waited_s += self._clock() - began_at

    def cut(self) -> None:
        self._transport.abort()


class BoundedHeaders(HttpToolsProtocol):
    """uvicorn's own protocol, which has no bound of its own for headers that never end or never come.

    It also tells the application how long writes waited for the client.
    """

    clock = staticmethod(time.monotonic)
    header_timeout_s = HEADER_TIMEOUT_S
    _is_in_headers = False
    _header_bytes = 0
    _header_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.flow = TimedFlow(transport, self.clock)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES_MAX:
                self._is_in_headers = False
                self.send_400_response("Request headers are too long.")

    def on_message_begin(self) -> None:
        self._is_in_headers, self._header_bytes = True, 0
        if self._header_deadline is None:
            self._await_headers()
        super().on_message_begin()
        self.scope["extensions"] = {FLOW: self.flow}  # type: ignore[dict-item] # an object of ours, no open mapping

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._has_headers()
        super().on_headers_complete()

    def _await_headers(self) -> None:
        self._header_deadline = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _has_headers(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None
