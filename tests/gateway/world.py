"""A gateway on a real port before scripted engines, with a real store, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import aiohttp
import uvicorn
from sqlalchemy import select

from serving.config import (
    ConsoleSettings,
    FileSettings,
    GatewaySettings,
    Issuer,
    QueueSettings,
    Retries,
    Slo,
    StoredSettings,
    Timeouts,
)
from serving.gateway.admission.counters.tally import Tally
from serving.gateway.api.unattended import Unattended
from serving.gateway.assembly import Edges, assemble
from serving.gateway.audit.audit import Audit
from serving.gateway.cli.opening import signer
from serving.gateway.http.protocol import BoundedHeaders, TimedFlow
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller
from serving.gateway.observe.tracing import Tracing
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger as ledger_table
from serving.gateway.stored.batches.batches import Batches
from serving.gateway.stored.files.files import TenantFiles
from serving.gateway.stored.vault import Vault
from serving.secret import PlaneSecret
from tests.gateway.places import Place
from tests.scripted_engine import MODEL

#: Short enough for tests, long enough for a busy machine: a client in the same event loop can hold up a connect.
QUICK = Timeouts(request_total_s=20, engine_silence_s=5, replica_wait_s=1.0, keep_alive_s=0.2, engine_connect_s=10.0)
#: Small enough to be filled: of files of 4 MiB there is room for two and a half.
FILES = FileSettings(
    file_bytes_max=4 * 1024 * 1024, tenant_files_max=8, tenant_bytes_max=10 * 1024 * 1024, lines_max=1000
)
CHAT: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for a condition; fails when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not come true within {timeout_s} s"
        await asyncio.sleep(0.01)


class Answer:
    """A response, read to its end."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, cookies: Sequence[str] = ()) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body
        #: What it sets, as it is written.
        self.cookies = cookies

    @property
    def json(self) -> dict[str, object]:
        document: dict[str, object] = json.loads(self.body)
        return document

    @property
    def error(self) -> dict[str, object]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error


class World:
    """The running gateway: ask it, look at its ledger and its access log."""

    def __init__(self, url: str, key: str, store: Store, ledger: Ledger, client: aiohttp.ClientSession) -> None:
        self.url = url
        self.key = key
        self.client = client
        self.lines: list[dict[str, object]] = []
        #: How often a write to a client began to wait for it, or ended: odd while the only one waits.
        self.write_waits = 0
        self.registry: Registry
        self.files: TenantFiles
        self.batches: Batches
        self.unattended: Unattended
        #: What the gateway goes by now.
        self.caller: Callable[[], Awaitable[Caller]]
        #: The server's connections of clients, now.
        self.connections: Set[object] = set()
        self.store = store
        self._ledger = ledger

    def key_of_another(self, tenant: str) -> str:
        """A key of a new tenant."""
        registry = Registry(self.store, Keyring.open(self.store), time.time)
        registry.create_tenant(tenant)
        return registry.create_key(tenant, name="laptop")

    async def bound(self, policy: Policy) -> None:
        """Give the tenant a policy, and wait until the gateway knows it."""
        self.registry.update_tenant("acme", policy=policy)
        deadline = time.monotonic() + 10
        while (await self.caller()).tenant_policy != policy:
            assert time.monotonic() < deadline, "the gateway does not learn of the policy"
            await asyncio.sleep(0.01)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    async def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        """One request with the tenant's key; `body` goes as JSON unless it is bytes."""
        payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = self.headers() | {"Content-Type": "application/json"} if headers is None else headers
        async with self.client.request(
            method, self.url + path, data=payload, headers=sent, allow_redirects=False
        ) as response:
            cookies = response.headers.getall("Set-Cookie", [])
            return Answer(response.status, response.headers, await response.read(), cookies)

    async def post(self, path: str, body: object) -> Answer:
        return await self.ask("POST", path, body)

    async def chat(self, **fields: object) -> Answer:
        return await self.post("/v1/chat/completions", CHAT | fields)

    def rows(self) -> list[dict[str, object]]:
        """The ledger as the database has it, in order of time."""
        self._ledger.flush()
        with self.store.begin() as connection:
            rows = connection.execute(select(ledger_table).order_by(ledger_table.c.started_at))
            return [dict(row._mapping) for row in rows]

    async def row(self) -> dict[str, object]:
        """The only row, once its request is over."""
        await until(lambda: all(row["outcome"] != "open" for row in self.rows()))
        (row,) = self.rows()
        return row

    async def until_ready(self) -> None:
        """Wait until a model answers."""
        deadline = time.monotonic() + 10
        while (await self.ask("GET", "/health/models")).status != 200:
            assert time.monotonic() < deadline, "no model became ready"
            await asyncio.sleep(0.01)


class _Lines(logging.Handler):
    def __init__(self, lines: list[dict[str, object]]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(json.loads(record.getMessage()))


@contextmanager
def _logged(lines: list[dict[str, object]]) -> Iterator[None]:
    """What the access log says goes to `lines`."""
    log = logging.getLogger("serving.access")
    handler = _Lines(lines)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def slow_reader(world: World, path: str) -> Iterator[socket.socket]:
    """A client that asks, and reads nothing of the answer."""
    with socket.socket() as connection:
        # Before it connects: the kernel would take megabytes for it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, _, port = world.url.removeprefix("http://").partition(":")
        connection.connect((host, int(port)))
        connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\n\r\n".encode())
        connection.setblocking(False)
        yield connection


@asynccontextmanager
async def running_gateway(
    home: Path,
    engines: tuple[str, ...] = (),
    *,
    directories: tuple[str, ...] = (),
    prefill_engines: tuple[str, ...] = (),
    timeouts: Timeouts = QUICK,
    secret: PlaneSecret | None = None,
    is_awaited: bool = True,
    max_open_requests: int = 64,
    max_body_bytes: int = 64 * 1024,
    aliases: dict[str, str] | None = None,
    log_prompts: bool = False,
    poll_interval_s: float = 0.05,
    tracing: Tracing | None = None,
    slo: Slo | None = None,
    cors_origins: tuple[str, ...] = (),
    max_held_bytes: int = 64 * 1024 * 1024,
    clock: Callable[[], float] = time.monotonic,
    refused_per_key: int = 20,
    continuation: bool = True,
    hand_on_drains: bool = False,
    oidc: tuple[Issuer, ...] = (),
    console: ConsoleSettings | None = None,
    queue: QueueSettings | None = None,
    tally: Tally | None = None,
    stored: StoredSettings | None = None,
    place: Place | None = None,
    key: str | None = None,
    gateway_id: str | None = None,
    files: FileSettings = FILES,
) -> AsyncIterator[World]:
    """Serve until the end of the `with`; by default it begins when a model is ready.

    With the `key` of another gateway it is one more on that one's store.
    """
    settings = GatewaySettings(
        engines=engines,
        directories=directories,
        prefill_engines=prefill_engines,
        aliases={"gpt-4o": MODEL} if aliases is None else aliases,
        poll_interval_s=poll_interval_s,
        max_body_bytes=max_body_bytes,
        max_open_requests=max_open_requests,
        log_prompts=log_prompts,
        slo=slo or Slo(),
        cors_origins=cors_origins,
        max_held_bytes=max_held_bytes,
        timeouts=timeouts,
        retries=Retries(refused_per_key=refused_per_key),
        continuation=continuation,
        hand_on_drains=hand_on_drains,
        oidc=oidc,
        console=console or ConsoleSettings(),
        queue=queue or QueueSettings(),
        stored=stored or StoredSettings(),
        files=files,
    )
    with ExitStack() as opened:
        store = opened.enter_context(place.open() if place else Store.open(home))
        keyring = Keyring.open(store)
        registry = Registry(store, keyring, time.time)
        if key is None:
            registry.create_tenant("acme")
            key = registry.create_key("acme", name="laptop")
        tenants = opened.enter_context(Tenants(store, keyring, key_cache_s=10, lookup_timeout_s=10))
        ledger = opened.enter_context(Ledger(store, clock=time.time, gateway_id=gateway_id))
        audit = opened.enter_context(Audit(store, signer(keyring), clock=time.time))
        bound = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        # Connections inherit it: writes to a client that does not read wait after kilobytes instead of megabytes.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        edges = Edges(
            secret=secret, tracing=tracing or Tracing(), clock=clock, tally=tally, vault=Vault.at(home, may_make=True)
        )
        assembled = assemble(settings, store, tenants, ledger, audit, edges)
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        client = aiohttp.ClientSession()
        world = World(url, key, store, ledger, client)
        world.registry = registry
        assert assembled.kept is not None
        world.files, world.batches = assembled.kept.files, assembled.kept.batches
        world.unattended = assembled.kept.unattended
        world.caller = partial(tenants.identify, key)

        def write_clock() -> float:
            world.write_waits += 1
            return clock()

        async with _served(assembled.gateway, bound, write_clock) as world.connections, client:
            opened.enter_context(_logged(world.lines))
            if is_awaited:
                await world.until_ready()
                world.lines.clear()
            yield world


class _Reference(BoundedHeaders):
    """Takes no event in the turn in which it comes: all go the way that is the reference (RLY-41)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.flow = _Deferring(transport, self.clock)


class _Deferring(TimedFlow):
    takes_now = False


#: The environment's word for how events of a stream go on, in every test with a `World`.
PATH = "SERVING_TEST_PATH"
PROTOCOLS = {"fast": BoundedHeaders, "reference": _Reference}


@asynccontextmanager
async def _served(app: object, bound: socket.socket, write_clock: Callable[[], float]) -> AsyncIterator[Set[object]]:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=type("Timed", (PROTOCOLS[os.environ.get(PATH, "fast")],), {"clock": staticmethod(write_clock)}),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    await until(lambda: server.started)
    try:
        yield server.server_state.connections
    finally:
        server.should_exit = True
        await task
