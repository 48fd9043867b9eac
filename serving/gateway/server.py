"""Server: the gateway as a process: its parts opened in order, one socket for the API, maybe one for metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
import uvicorn
import uvloop
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.config import GatewaySettings, Settings
from serving.errors import Refusal
from serving.gateway.app import METRICS_TYPE, Gateway, create_app
from serving.gateway.cli import opening
from serving.gateway.http import certificates
from serving.gateway.http.asgi import FLOW, Receive, Request, Responder, Scope, Send
from serving.gateway.http.certificates import Loaded
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.observe import access, tracing
from serving.gateway.observe.access import AccessLine
from serving.gateway.observe.metrics import Metrics
from serving.gateway.observe.tracing import Tracing
from serving.secret import PlaneSecret

#: Connections the kernel holds until they are accepted.
BACKLOG = 2048
#: Bytes of request headers read before they must be complete.
HEADER_BYTES_MAX = 64 * 1024
#: Seconds a connection may take to send its first byte and then its headers.
HEADER_TIMEOUT_S = 30.0
#: Seconds an idle client connection is kept: longer than the 60 s of common load balancers, which must close first.
IDLE_CLIENT_S = 75

# Fixed words: the salt key is derived from the pepper and must not equal any key's digest.
_SALT_PURPOSE = "prefix cache salt"


def run(settings: Settings) -> None:
    """Serve the API until SIGTERM or Ctrl-C; raises Refusal when it cannot start."""
    _start_logging(settings.log_format)
    shown = certificates.shown(settings.gateway.tls) if settings.gateway.tls else None
    trusted = certificates.trusted(settings.plane_tls) if settings.plane_tls else None
    with _listening(settings.gateway.host, settings.gateway.port) as api:
        opening.first_start(settings)
        with _gateway(settings, shown, trusted) as gateway:
            serve(gateway, settings.gateway, api, shown, trusted)


def serve(
    gateway: Gateway, settings: GatewaySettings, api: socket.socket, shown: Loaded | None, trusted: Loaded | None
) -> None:
    """Run the event loop on a bound socket until told to stop; running answers get `drain_timeout_s` to end."""
    with contextlib.ExitStack() as opened:
        servers = [(_uvicorn(gateway, settings, "on", shown.context if shown else None), api)]
        if settings.metrics_port is not None:
            metrics_socket = opened.enter_context(_listening(settings.host, settings.metrics_port))
            servers.append((_uvicorn(MetricsApp(gateway.metrics), settings, "off"), metrics_socket))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_all(servers, [it for it in (shown, trusted) if it is not None]))


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


class _Server(uvicorn.Server):
    """One of several servers of a process: signals are for all of them, and not raised again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve_all(servers: list[tuple[_Server, socket.socket]], renewed: Sequence[Loaded]) -> None:
    """Serve until a signal comes or one of them ends; a second signal cuts what still runs."""

    def stop() -> None:
        for server, _ in servers:
            server.force_exit = server.should_exit
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    tasks = [asyncio.create_task(server.serve(sockets=[bound])) for server, bound in servers]
    following = asyncio.create_task(certificates.follow(renewed))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    following.cancel()
    for server, _ in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)


class MetricsApp:
    """`GET /metrics` and nothing else, on a port of its own."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        responder = Responder(send, request.request_id())
        if (request.method, request.path) == ("GET", "/metrics"):
            await responder.whole(200, await self._metrics.render(), content_type=METRICS_TYPE)
        else:
            await responder.whole(404, b"{}")


def _uvicorn(
    app: Gateway | MetricsApp,
    settings: GatewaySettings,
    lifespan: Literal["on", "off"],
    tls: ssl.SSLContext | None = None,
) -> _Server:
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedHeaders,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_CLIENT_S,
        timeout_graceful_shutdown=round(settings.drain_timeout_s),
        ssl_context_factory=(lambda *_: tls) if tls else None,
    )
    return _Server(config)


@contextlib.contextmanager
def _gateway(settings: Settings, shown: Loaded | None, trusted: Loaded | None) -> Iterator[Gateway]:
    with contextlib.ExitStack() as opened:
        # First in, last out: a collector that is away holds its spans up, and must not hold up the ledger.
        spans = opened.enter_context(contextlib.closing(_tracing(settings.gateway)))
        store, keyring = opened.enter_context(opening.opened(settings))
        tenants = Tenants(store, keyring, key_cache_s=settings.gateway.key_cache_s, clock=time.time)
        opened.enter_context(tenants)
        ledger = opened.enter_context(Ledger(store, clock=time.time))
        plane_secret = _plane_secret(settings)
        yield create_app(
            settings.gateway,
            tenants,
            ledger,
            plane_secret,
            keyring.digest(_SALT_PURPOSE),
            tls=trusted.context if trusted else None,
            expiries=lambda: certificates.expiries(shown, trusted),
            tracing=spans,
            write_access=_access_log(settings.log_format),
        )


def _tracing(settings: GatewaySettings) -> Tracing:
    if settings.traces_endpoint is None:
        return Tracing()
    return tracing.over_http(settings.traces_endpoint, settings.trace_sample_ratio)


def _plane_secret(settings: Settings) -> PlaneSecret | None:
    """The secret of this home's engines; engines that run elsewhere without one need none."""
    path = settings.secret_file
    if path.exists() or settings.gateway.directories:
        return PlaneSecret(path)
    return None


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except OSError as error:
            raise Refusal(
                f"Port {port} on {host} cannot be used: {error.strerror}; choose another with --port."
            ) from None
        yield bound


class _LogLine(msgspec.Struct):
    time_s: float
    level: str
    logger: str
    message: str | AccessLine

    @property
    def text(self) -> str:
        return msgspec.json.encode(self).decode()


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return _LogLine(round(record.created, 3), record.levelname.lower(), record.name, record.getMessage()).text


def write_access(line: AccessLine) -> None:
    """As a JSON line among the others, past Python's logging: its layers take 22 us of a request.

    A log that cannot be written fails no request.
    """
    if not access.is_probe(line):
        with contextlib.suppress(OSError, ValueError):
            # In one piece: up to 4 KiB, which only a logged prompt exceeds, a pipe mixes it with no other thread's.
            sys.stderr.write(_LogLine(round(time.time(), 3), "info", access.LOGGER, line).text + "\n")


def _access_log(log_format: Literal["json", "text"]) -> Callable[[AccessLine], None]:
    # Without standard error there is nothing to write to, and logging knows how to keep silent.
    return write_access if log_format == "json" and sys.stderr else access.write


def _start_logging(log_format: Literal["json", "text"]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_JsonLines() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
