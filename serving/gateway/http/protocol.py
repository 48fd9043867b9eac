"""Protocol: uvicorn's HTTP/1.1 connection, with bounds on what a client may send unasked.

It tells the application how long writes have waited, and hands it what is no HTTP, so that this is answered, counted and logged
like any other request.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.errors import InvalidRequest
from serving.gateway.http.asgi import FAULT, FLOW
from serving.gateway.http.light_event import LightEvent

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.config import Config
    from uvicorn.server import ServerState

#: Bytes of request headers read before they must be complete.
HEADER_BYTES_MAX = 64 * 1024
#: Seconds a connection may take to send its first byte and then its headers.
HEADER_TIMEOUT_S = 30.0
#: Seconds in which a body may still end whose request has been answered; then the connection is closed. Clients read their
#: answer when they have sent everything, and a connection closed at once would take it from them.
REST_S = 1.0
#: Bytes of it that are thrown away: twice the largest body of the default settings.
REST_BYTES_MAX = 16 * 1024 * 1024


#: Bytes of an answer that wait in this process for the client, besides the piece that came last.
WRITE_BYTES = 16 * 1024

_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)
_UPGRADE_BEGINS = b"\r\nupgrade:"


def _without_upgrade(data: bytes) -> bytes:
    """The same with another name for the header `Upgrade` in its head.

    A server may ignore that header (RFC 9110, 7.8), and httptools cannot: it takes the body for the other protocol's. Java's own
    client sends it with every request over plain HTTP.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    if not _UPGRADE.search(head):
        return data
    return _UPGRADE.sub(b"\r\nx-upgrade", head) + data[len(head) :]


def _without_beginning(data: bytes) -> bytes:
    """The same without an end of its head that may be the beginning of that header: the rest comes with the next read."""
    end = data.rfind(b"\r")
    if end < 0 or b"\r\n\r\n" in data or not _UPGRADE_BEGINS.startswith(data[end:].lower()):
        return data
    return data[:end]


class TimedFlow(FlowControl):
    """Knows how long writes have waited for the client. uvicorn asks it only where one really has to."""

    def __init__(self, transport: asyncio.Transport, clock: Callable[[], float]) -> None:
        super().__init__(transport)
        self._is_writable_event = LightEvent()
        self._is_writable_event.set()
        self.waited_s = 0.0
        #: The request whose application runs; later ones wait in the pipeline.
        self.running: RequestResponseCycle | None = None
        self._clock = clock
        self._has_left = False
        self._tell: Callable[[], None] | None = None

    @property
    def has_request(self) -> bool:
        return self.running is not None and not self.running.more_body

    def on_left(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        if self._has_left:
            tell()
        else:
            # A connection that is not read from does not end.
            self.resume_reading()

    def take_back(self, tell: Callable[[], None]) -> None:
        # The next request may run before what follows its predecessor's answer is over.
        if self._tell == tell:
            self._tell = None

    def left(self) -> None:
        """The client has closed the connection."""
        self._has_left = True
        if self._tell is not None:
            self._tell()

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing()

    @property
    def takes_now(self) -> bool:
        cycle = self.running
        return (
            cycle is not None
            and not self.write_paused
            and bool(cycle.chunked_encoding)
            and not cycle.response_complete
            and not cycle.disconnected
            and not self._transport.is_closing()
        )

    def write_now(self, body: bytes) -> None:
        # As the cycle's own `send` frames it.
        if self.running is not None:
            self.running.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    async def drain(self) -> None:
        began_at = self._clock()
        try:
            await super().drain()
        finally:
            self.waited_s += self._clock() - began_at

    def cut(self) -> None:
        self._transport.abort()
        if self.running is not None:
            # Its client gets no more of the running answer: the application may leave it as it is.
            self.running.disconnected = True
            self.running.message_event.set()


class JoinedHead:
    """Stands in for an answer's transport until its head is out: that goes with what follows it in the same turn of the event
    loop, in one write.
    """

    def __init__(self, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop) -> None:
        self._cycle = cycle
        self._loop = loop
        self._transport = cycle.transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
            self._loop.call_soon(self._write_alone)
        else:
            self._cycle.transport = self._transport
            self._transport.write(self._head + data)

    def _write_alone(self) -> None:
        if self._cycle.transport is not self._transport and not self.is_closing():
            self.write(b"")

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._head is not None:
            self._write_alone()
        self._transport.close()


class Pipeline(list[tuple[RequestResponseCycle, "ASGI3Application"]]):
    """Requests that came before their predecessor was answered, as uvicorn keeps them; its deque takes 0.7 KB while it is empty."""

    def appendleft(self, request: tuple[RequestResponseCycle, ASGI3Application]) -> None:
        self.insert(0, request)


class BoundedHeaders(HttpToolsProtocol):
    """uvicorn's own protocol, which has no bound of its own for headers that never end or never come.

    Nor for a body that goes on after its request was answered. It also tells the application how long writes waited for the
    client, and of what is no HTTP.
    """

    # Its own stand beside uvicorn's: Python keeps an object small whose dictionary has at most thirty names.
    __slots__ = (
        "_header_bytes",
        "_header_deadline",
        "_held_back",
        "_is_broken",
        "_is_in_headers",
        "_rest_bytes",
        "_rest_deadline",
    )

    flow: TimedFlow
    clock = staticmethod(time.monotonic)
    header_timeout_s = HEADER_TIMEOUT_S
    rest_s = REST_S

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.pipeline = Pipeline()  # type: ignore[assignment] # all that uvicorn does with it
        self._is_in_headers = False
        self._header_bytes = 0
        self._header_deadline: asyncio.TimerHandle | None = None
        #: The end of what came, while it may be the beginning of a header that is renamed.
        self._held_back = b""
        #: While the rest of a body comes whose request has been answered.
        self._rest_deadline: asyncio.TimerHandle | None = None
        self._rest_bytes = 0
        #: What came was no HTTP, and neither can be what follows.
        self._is_broken = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        self.flow = TimedFlow(transport, self.clock)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_headers()
        self._has_rest()
        super().connection_lost(exc)
        self.flow.left()

    def data_received(self, data: bytes) -> None:
        if self._is_broken or self._rest_deadline is not None:
            self._rest_bytes += len(data)
            if self._rest_bytes > REST_BYTES_MAX:
                self.transport.close()
                return
        if self._is_broken:
            return
        if self._is_in_headers or self.cycle is None or not self.cycle.more_body:
            data = _without_upgrade(self._held_back + data)
            whole, data = data, _without_beginning(data)
            self._held_back = whole[len(data) :]
        super().data_received(data)
        if self._is_in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES_MAX:
                self.send_400_response("Request headers are too long.")

    def on_message_begin(self) -> None:
        self._is_in_headers, self._header_bytes = True, 0
        if self._header_deadline is None:
            self._await_headers()
        super().on_message_begin()
        self.scope["extensions"] = {FLOW: self.flow}  # type: ignore[dict-item] # an object of ours, no open mapping

    def on_headers_complete(self) -> None:
        self._has_headers()
        super().on_headers_complete()
        self._is_in_headers = False
        # Nobody waits yet: the request's task has not begun.
        self.cycle.message_event = LightEvent()
        if not self.cycle.waiting_for_100_continue:
            self.cycle.transport = JoinedHead(self.cycle, self.loop)  # type: ignore[assignment] # all that a cycle uses

    def on_message_complete(self) -> None:
        self._has_rest()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and self.cycle.response_complete and not self.transport.is_closing():
            self._rest_bytes = 0
            self._rest_deadline = self.loop.call_later(self.rest_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is a request too: the application answers it, when it has answered those before."""
        if self._is_broken:
            return
        self._is_broken = True
        self._has_headers()
        cycle = self.cycle
        if self._is_in_headers or cycle is None or not cycle.more_body:
            self._answer_head(InvalidRequest(msg))
        elif cycle.response_complete:
            self.transport.close()
        else:
            # The body is still awaited.
            cycle.scope["extensions"][FAULT] = InvalidRequest(msg)  # type: ignore[assignment]
            cycle.keep_alive = False
            cycle.message_event.set()

    def _answer_head(self, fault: InvalidRequest) -> None:
        """A request of which no more is known than that, behind those that run."""
        if not self._is_in_headers:
            super().on_message_begin()
        path = self.url.partition(b"?")[0]
        self.scope |= {"method": "GET", "path": path.decode("latin-1"), "raw_path": path, "query_string": b""}
        self.scope["extensions"] = {FLOW: self.flow, FAULT: fault}  # type: ignore[dict-item]
        before, self.cycle = self.cycle, self._last_cycle()
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))

    def _last_cycle(self) -> RequestResponseCycle:
        cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=LightEvent(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        return cycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.flow.running = cycle
        super()._start_asgi_task(cycle, app)

    def _await_headers(self) -> None:
        self._header_deadline = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _has_rest(self) -> None:
        if self._rest_deadline is not None:
            self._rest_deadline.cancel()
            self._rest_deadline = None

    def _has_headers(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None
