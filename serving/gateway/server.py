"""Server: the gateway as a process, or as several: its parts opened in order, one socket for the API, maybe one for metrics."""

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
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import uvicorn
import uvloop

from serving.config import GatewaySettings, Settings
from serving.errors import Refusal
from serving.gateway import workers
from serving.gateway.admission.counters import sql
from serving.gateway.admission.counters.sql import SqlTally
from serving.gateway.admission.counters.tally import Tally
from serving.gateway.api.merged import MergedPage
from serving.gateway.api.metrics import MetricsPage
from serving.gateway.app import Gateway
from serving.gateway.assembly import Assembled, Edges, assemble
from serving.gateway.audit.audit import Audit
from serving.gateway.cli import opening
from serving.gateway.http import certificates, descriptors
from serving.gateway.http.certificates import Loaded
from serving.gateway.http.protocol import BoundedHeaders
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import CallRecord
from serving.gateway.observe import access, logs, tracing
from serving.gateway.observe.tracing import Tracing
from serving.gateway.store.store import Store
from serving.gateway.workers import Beat, Life, Role
from serving.secret import PlaneSecret

#: Connections the kernel holds until they are accepted.
BACKLOG = 2048
#: The kernel's buffer for what a client has not read; it doubles this. 128 KiB per round trip are 1 MB/s over 100 ms.
SEND_BYTES = 64 * 1024
#: Buffers from this size on are memory maps of their own.
LARGE_BUFFER_BYTES = 128 * 1024
#: mallopt(3)
_M_MMAP_THRESHOLD = -3
#: New objects after which the garbage collector looks at them, and how often before it looks at older ones, and at all. A request
#: leaves it nothing to find; by Python's defaults (700, 10, 10) it took a sixth of the time in which streams arrive, and went
#: through all that are open seven times while 2,000 did, for up to 190 ms.
COLLECTED_AFTER = (2_000, 10, 50)
#: Seconds an idle client connection is kept: longer than the 60 s of common load balancers, which must close first.
IDLE_CLIENT_S = 75
#: Seconds between two signs of life of a worker to its parent.
BEAT_S = 0.5
#: Where the processes of one gateway reach one another.
_INSIDE = "127.0.0.1"


class Sockets(NamedTuple):
    """Where a gateway listens: its API, and its page of metrics and its console if those have sockets of their own."""

    api: socket.socket
    page: socket.socket | None = None
    console: socket.socket | None = None


class Certificates(NamedTuple):
    """What a gateway shows to clients, and how it checks engines; each None without TLS."""

    shown: Loaded | None
    trusted: Loaded | None

    @property
    def tls(self) -> ssl.SSLContext | None:
        return self.shown.context if self.shown else None

    @property
    def loaded(self) -> list[Loaded]:
        return [it for it in self if it is not None]


def run(settings: Settings) -> None:
    """Serve the API until SIGTERM or Ctrl-C; raises Refusal when it cannot start."""
    logs.start(settings.log_format)
    used = Certificates(
        certificates.shown(settings.gateway.tls) if settings.gateway.tls else None,
        certificates.trusted(settings.plane_tls) if settings.plane_tls else None,
    )
    host, metrics_port = settings.gateway.host, settings.gateway.metrics_port
    with contextlib.ExitStack() as opened:
        api = opened.enter_context(_listening(host, settings.gateway.port))
        opening.first_start(settings)
        page = opened.enter_context(_listening(host, metrics_port)) if metrics_port is not None else None
        console_port = settings.gateway.console.port if settings.gateway.console.enabled else None
        console = opened.enter_context(_listening(host, console_port)) if console_port is not None else None
        if settings.gateway.workers > 1 and sys.platform != "linux":
            raise Refusal("Several workers need Linux: set gateway.workers to 1.")
        if settings.gateway.workers > 1:
            _run_workers(settings, Sockets(api, page or opened.enter_context(_inside()), console), used)
        else:
            with _assembled(settings, used) as assembled:
                serve(assembled, settings.gateway, Sockets(api, page, console), used)


def _run_workers(settings: Settings, bound: Sockets, used: Certificates) -> None:
    """Serve with several processes; where their exit code is not 0, it becomes this one's."""
    shared, count = (
        settings.model_copy(update={"gateway": workers.share_of(settings.gateway)}),
        settings.gateway.workers,
    )
    page = bound.page or _inside()
    apis, pages = _beside(bound.api, count), [_inside() for _ in range(count)]
    consoles = [None] * count if bound.console is None else _beside(bound.console, count)
    merged_page, own_pages = _url(page), [_url(it) for it in pages]

    def close_but(*kept: socket.socket | None) -> None:
        for it in (page, *apis, *pages, *consoles):
            if it is not None and it not in kept:
                it.close()

    def work(own: Sockets, life: Life) -> None:
        close_but(*own)
        with _assembled(shared, used, merged_page, is_successor=life.is_successor) as assembled:
            serve(assembled, shared.gateway, own, used, life.beat)

    def merge(life: Life) -> None:
        close_but(page)
        _turn([(_uvicorn(MergedPage(own_pages), settings.gateway, "off"), page)], [], life.beat)

    places = map(Sockets, apis, pages, consoles)
    roles = [Role(f"worker {number}", partial(work, own)) for number, own in enumerate(places, start=1)]
    freeze()
    if code := workers.supervise([*roles, Role("the page of metrics", merge)], close_but):
        sys.exit(code)


def _beside(api: socket.socket, count: int) -> list[socket.socket]:
    """So many sockets on one port, `api` the first: the kernel deals new connections out among those that listen (GW-53).

    That one was bound alone, so that a port in use is refused as ever, another gateway's with workers included.
    """
    api.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return [api, *(_bound(api.family, api.getsockname(), socket.SO_REUSEPORT) for _ in range(count - 1))]


def _inside() -> socket.socket:
    """A socket for the gateway's own processes."""
    bound = socket.socket()
    bound.bind((_INSIDE, 0))
    return bound


def _url(inside: socket.socket) -> str:
    return f"http://{_INSIDE}:{inside.getsockname()[1]}"


def serve(
    assembled: Assembled,
    settings: GatewaySettings,
    sockets: Sockets,
    used: Certificates,
    beat: Beat | None = None,
) -> None:
    """Run the event loop on bound sockets until told to stop; running answers get `drain_timeout_s` to end."""
    freeze()
    return_memory()
    descriptors.raise_limit()
    servers = [(_uvicorn(assembled.gateway, settings, "on", used.tls), sockets.api)]
    if sockets.page is not None:
        servers.append((_uvicorn(assembled.metrics_page, settings, "off"), sockets.page))
    if sockets.console is not None and assembled.console is not None:
        # What it shares with the API is opened and closed with that.
        servers.append((_uvicorn(assembled.console, settings, "off", used.tls), sockets.console))
    _turn(servers, [certificates.follow(used.loaded), descriptors.follow()], beat)


def _turn(
    servers: list[tuple[_Server, socket.socket]], beside: list[Coroutine[Any, Any, None]], beat: Beat | None = None
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if beat is not None:
            beside = [*beside, _beat_on([server for server, _ in servers], beat)]
        runner.run(_serve_all(servers, beside))


async def _beat_on(servers: Sequence[_Server], beat: Beat) -> None:
    """Say that this process serves and that its event loop turns."""
    while True:
        if all(server.started for server in servers):
            beat()
        await asyncio.sleep(BEAT_S)


def return_memory() -> None:
    """Have what is freed of large buffers go back to the system at once, and keep them out of the heap that they would tear.

    glibc raises its own bound with each large buffer that is freed, and bodies that grow side by side then cost double.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library decides for itself
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES)


def freeze() -> None:
    """Take what is there from the garbage collector's hands: it lives as long as the process. And let it look less often.

    A full collection would go through all of it, and hold every stream up for 40 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


class _Server(uvicorn.Server):
    """One of several servers of a process: signals are for all of them, and not raised again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve_all(servers: list[tuple[_Server, socket.socket]], beside: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Serve until a signal comes or one of them ends; a second signal cuts what still runs. What runs `beside` ends with it."""

    def stop() -> None:
        for server, _ in servers:
            server.force_exit = server.should_exit
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    tasks = [asyncio.create_task(server.serve(sockets=[bound])) for server, bound in servers]
    following = [asyncio.create_task(it) for it in beside]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in following:
        task.cancel()
    for server, _ in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)


def _uvicorn(
    app: Gateway | MetricsPage | MergedPage,
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
        # Nothing here asks where a client connects from.
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_CLIENT_S,
        timeout_graceful_shutdown=round(settings.drain_timeout_s),
        ssl_context_factory=(lambda *_: tls) if tls else None,
    )
    return _Server(config)


@contextlib.contextmanager
def _assembled(
    settings: Settings, used: Certificates, merged_page: str | None = None, *, is_successor: bool = False
) -> Iterator[Assembled]:
    with contextlib.ExitStack() as opened:
        # First in, last out: a collector that is away holds its spans up, and must not hold up the ledger.
        spans = opened.enter_context(contextlib.closing(_tracing(settings.gateway)))
        store, keyring = opened.enter_context(opening.opened(settings))
        tenants = Tenants(
            store,
            keyring,
            key_cache_s=settings.gateway.key_cache_s,
            lookup_timeout_s=settings.gateway.timeouts.key_lookup_s,
        )
        opened.enter_context(tenants)
        keep_days = settings.gateway.ledger_retention_days
        ledger = opened.enter_context(Ledger(store, clock=time.time, retention_days=keep_days))
        audit = opened.enter_context(Audit(store, opening.signer(keyring), clock=time.time))
        edges = Edges(
            secret=_plane_secret(settings),
            tls=used.trusted.context if used.trusted else None,
            expiries=lambda: certificates.expiries(*used),
            tracing=spans,
            write_access=_access_log(settings.log_format, opened),
            merged_page=merged_page,
            is_successor=is_successor,
            tally=_tally(settings, store, opened),
            vault=opening.vault(settings, store),
        )
        yield assemble(settings.gateway, store, tenants, ledger, audit, edges)


def _tally(settings: Settings, store: Store, opened: contextlib.ExitStack) -> Tally | None:
    """Where this gateway counts together with others, if there can be any. Raises Refusal when its address cannot be used."""
    said = settings.gateway.counters
    if said.url_file is not None:
        # Imported here: gateways without Redis are spared its library, and OpenTelemetry's, which that one loads.
        from serving.gateway.admission.counters.redis import RedisTally

        return RedisTally(said.url_file, is_cluster=said.cluster, timeout_s=said.timeout_s)
    if store.is_shared:
        # Connections of their own: neither look-ups nor the ledger wait for decisions.
        own = settings.store.model_copy(update={"pool_size": sql.THREADS})
        return SqlTally(opened.enter_context(Store.open(settings.home, own)))
    return SqlTally(store) if settings.gateway.workers > 1 else None


def _access_log(log_format: Literal["json", "text"], opened: contextlib.ExitStack) -> Callable[[CallRecord], None]:
    # Without standard error there is nothing to write to, and logging knows how to keep silent.
    if log_format == "text" or not sys.stderr:
        return access.write_text
    log = access.JsonLog()
    opened.callback(log.flush)
    return log.write


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
    try:
        bound = _bound(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port), socket.SO_REUSEADDR)
    except OSError as error:
        raise Refusal(f"Port {port} on {host} cannot be used: {error.strerror}; choose another with --port.") from None
    with bound:
        yield bound


def _bound(family: int, address: tuple[str, int], option: int) -> socket.socket:
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
        # Connections inherit it. Left alone, the kernel's buffer grows to megabytes for each client that reads slowly.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
