"""Server: the gateway as a process: its parts opened in order, one socket for the API, maybe one for metrics."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import uvicorn
import uvloop

from serving.config import GatewaySettings, Settings
from serving.errors import Refusal
from serving.gateway.api.metrics import MetricsPage
from serving.gateway.app import Gateway
from serving.gateway.assembly import Assembled, Edges, assemble
from serving.gateway.cli import opening
from serving.gateway.http import certificates, descriptors
from serving.gateway.http.certificates import Loaded
from serving.gateway.http.protocol import BoundedHeaders
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import CallRecord
from serving.gateway.observe import access, logs, tracing
from serving.gateway.observe.tracing import Tracing
from serving.secret import PlaneSecret

#: Connections the kernel holds until they are accepted.
BACKLOG = 2048
#: The kernel's buffer for what a client has not read; it doubles this. 128 KiB per round trip are 1 MB/s over 100 ms.
SEND_BYTES = 64 * 1024
#: Buffers from this size on are memory maps of their own.
LARGE_BUFFER_BYTES = 128 * 1024
#: mallopt(3)
_M_MMAP_THRESHOLD = -3
#: Seconds an idle client connection is kept: longer than the 60 s of common load balancers, which must close first.
IDLE_CLIENT_S = 75


def run(settings: Settings) -> None:
    """Serve the API until SIGTERM or Ctrl-C; raises Refusal when it cannot start."""
    logs.start(settings.log_format)
    shown = certificates.shown(settings.gateway.tls) if settings.gateway.tls else None
    trusted = certificates.trusted(settings.plane_tls) if settings.plane_tls else None
    with _listening(settings.gateway.host, settings.gateway.port) as api:
        opening.first_start(settings)
        with _assembled(settings, shown, trusted) as assembled:
            serve(assembled, settings.gateway, api, shown, trusted)


def serve(
    assembled: Assembled, settings: GatewaySettings, api: socket.socket, shown: Loaded | None, trusted: Loaded | None
) -> None:
    """Run the event loop on a bound socket until told to stop; running answers get `drain_timeout_s` to end."""
    freeze()
    return_memory()
    descriptors.raise_limit()
    with contextlib.ExitStack() as opened:
        servers = [(_uvicorn(assembled.gateway, settings, "on", shown.context if shown else None), api)]
        if settings.metrics_port is not None:
            metrics_socket = opened.enter_context(_listening(settings.host, settings.metrics_port))
            servers.append((_uvicorn(assembled.metrics_page, settings, "off"), metrics_socket))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_all(servers, [it for it in (shown, trusted) if it is not None]))


def return_memory() -> None:
    """Have what is freed of large buffers go back to the system at once, and keep them out of the heap that they would tear.

    glibc raises its own bound with each large buffer that is freed, and bodies that grow side by side then cost double.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library decides for itself
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES)


def freeze() -> None:
    """Take what is there from the garbage collector's hands: it lives as long as the process.

    A full collection would go through all of it, and hold every stream up for 40 ms.
    """
    gc.collect()
    gc.freeze()


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
    following = [asyncio.create_task(it) for it in (certificates.follow(renewed), descriptors.follow())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in following:
        task.cancel()
    for server, _ in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)


def _uvicorn(
    app: Gateway | MetricsPage,
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
def _assembled(settings: Settings, shown: Loaded | None, trusted: Loaded | None) -> Iterator[Assembled]:
    with contextlib.ExitStack() as opened:
        # First in, last out: a collector that is away holds its spans up, and must not hold up the ledger.
        spans = opened.enter_context(contextlib.closing(_tracing(settings.gateway)))
        store, keyring = opened.enter_context(opening.opened(settings))
        tenants = Tenants(store, keyring, key_cache_s=settings.gateway.key_cache_s)
        opened.enter_context(tenants)
        ledger = opened.enter_context(Ledger(store, clock=time.time))
        edges = Edges(
            secret=_plane_secret(settings),
            tls=trusted.context if trusted else None,
            expiries=lambda: certificates.expiries(shown, trusted),
            tracing=spans,
            write_access=_access_log(settings.log_format),
        )
        yield assemble(settings.gateway, tenants, ledger, edges)


def _access_log(log_format: Literal["json", "text"]) -> Callable[[CallRecord], None]:
    # Without standard error there is nothing to write to, and logging knows how to keep silent.
    return access.write_json if log_format == "json" and sys.stderr else access.write_text


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
        # Connections inherit it. Left alone, the kernel's buffer grows to megabytes for each client that reads slowly.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        try:
            bound.bind((host, port))
        except OSError as error:
            raise Refusal(
                f"Port {port} on {host} cannot be used: {error.strerror}; choose another with --port."
            ) from None
        yield bound
