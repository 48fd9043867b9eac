"""App: the ASGI application of this plane, and the one place where its parts meet.

receive → identify → resolve → admit → route → relay → settle.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import msgspec

from serving.config import GatewaySettings
from serving.errors import (
    ApiError,
    EngineTimedOut,
    GatewayFull,
    InternalError,
    MethodNotAllowed,
    ModelNotFound,
    RequestTimedOut,
    RouteNotFound,
    Unauthenticated,
)
from serving.gateway.dialects import calls
from serving.gateway.dialects.routes import ENGINE_ROUTES, EngineRoute, dialect_of
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet, Model
from serving.gateway.fleet.sources import DirectorySource, EngineSource, Source
from serving.gateway.http import bodies as shapes
from serving.gateway.http.asgi import ClientLeft, Header, Receive, Request, Responder, Scope, Send, require_json
from serving.gateway.identity.tenants import Caller, Tenants
from serving.gateway.ledger.ledger import Entry, Ledger, Usage
from serving.gateway.observe import access
from serving.gateway.observe.access import AccessLine
from serving.gateway.observe.metrics import Metrics, Snapshot
from serving.gateway.observe.tracing import Trace, Tracing
from serving.gateway.outcome import outcome_of, reason_of
from serving.gateway.relay import relay
from serving.gateway.relay.relay import Exchange, Relay
from serving.secret import PlaneSecret
from serving.wire import ASLEEP, ReplicaState

#: The status in logs and ledger of a request whose client left first (nginx's convention; nobody receives it).
CLIENT_LEFT_STATUS = 499
MODELS_PATH = "/v1/models"
OTHER_ROUTE = "other"
#: Bytes of a body that a log line holds where the settings ask for it.
LOGGED_PROMPT_BYTES = 64 * 1024
#: Seconds in which a client may take the event that ends its stream; who reads nothing is cut off.
LAST_EVENT_S = 1.0

log = logging.getLogger(__name__)


class Visit:
    """One request on its way through, as the log line and the ledger will have it."""

    def __init__(self, request: Request, responder: Responder, trace: Trace, started_at: float) -> None:
        self.request = request
        self.responder = responder
        self.trace = trace
        self.started_at = started_at
        self.route = OTHER_ROUTE
        #: Seconds in which the rest of the body had yet to come.
        self.body_s = 0.0
        self.caller: Caller | None = None
        self.model: str | None = None
        self.exchange: Exchange | None = None
        self.prompt: str | None = None

    @property
    def client_s(self) -> float:
        """Seconds that the client took, sending and reading."""
        return self.body_s + self.responder.waited_s

    def status(self, error: BaseException | None) -> int:
        """What the client saw, or would have seen."""
        if isinstance(error, ClientLeft):
            return CLIENT_LEFT_STATUS
        if self.responder.status is not None:
            return self.responder.status
        if isinstance(error, asyncio.CancelledError):
            return GatewayFull.status
        return error.status if isinstance(error, ApiError) else InternalError.status

    def line(self, error: BaseException | None, now: float) -> AccessLine:
        exchange = self.exchange
        first_byte_at = exchange.first_byte_at if exchange and exchange.call.is_streamed else None
        return AccessLine(
            request_id=self.responder.request_id,
            route=self.route,
            status=self.status(error),
            outcome=outcome_of(error),
            trace_id=self.trace.trace_id,
            reason=reason_of(error),
            duration_s=round(now - self.started_at, 6),
            client_s=round(self.client_s, 6),
            tenant=self.caller.tenant if self.caller else None,
            key_id=self.caller.key_id if self.caller else None,
            model=self.model,
            replica_id=exchange.replica_id if exchange else None,
            waited_s=round(exchange.waited_s, 6) if exchange else 0.0,
            ttft_s=None if first_byte_at is None else round(first_byte_at - self.started_at - self.body_s, 6),
            retries=exchange.retries if exchange else 0,
            usage=exchange.usage() if exchange else Usage(),
            prompt=self.prompt,
        )


@contextmanager
def booked(entry: Entry, visit: Visit) -> Iterator[None]:
    """Fills in a ledger entry on every way out."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        entry.outcome = outcome_of(error)
        entry.status = visit.status(error)
        if visit.exchange:
            entry.usage = visit.exchange.usage()
            entry.replica_id = visit.exchange.replica_id


Handler = Callable[[Visit], Awaitable[None]]


class Gateway:
    """The application. Its lifespan owns the connections to engines and the polls of directories."""

    def __init__(
        self,
        settings: GatewaySettings,
        tenants: Tenants,
        ledger: Ledger,
        fleet: Fleet,
        demands: Demands,
        secret: PlaneSecret | None,
        salt_key: bytes,
        tls: ssl.SSLContext | None,
        expiries: Callable[[], Mapping[str, float]],
        tracing: Tracing,
        write_access: Callable[[AccessLine], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._tenants = tenants
        self._ledger = ledger
        self._fleet = fleet
        self._demands = demands
        self._secret = secret
        self._salt_key = salt_key
        self._tls = tls
        self._clock = clock
        self._relay: Relay | None = None
        self._open_calls = 0
        self._expiries = expiries
        self._tracing = tracing
        self._write_access = write_access
        self.metrics = Metrics(self._snapshot, settings.slo_of)
        self._gets: dict[str, Handler] = {
            MODELS_PATH: self._list_models,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/health/models": self._health_of_models,
        }
        if settings.metrics_port is None:
            self._gets["/metrics"] = self._show_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live_through(receive, send)
        elif scope["type"] == "http":
            request = Request(scope, receive)
            trace = self._tracing.begin(request)
            await self._visit(Visit(request, Responder(send, request.request_id(), request.flow), trace, self._clock()))

    # --- Lifespan -----------------------------------------------------------------------------------------------------

    async def _live_through(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with relay.session(self._settings.timeouts, self._tls) as client:
            self._relay = Relay(client, self._fleet, self._demands, self._settings.timeouts, self._secret, self._clock)
            following = asyncio.create_task(self._fleet.follow(client))
            following.add_done_callback(_complain)
            try:
                yield
            finally:
                self._relay = None
                following.cancel()
                # The polls use the client that is closed next.
                await asyncio.wait([following])

    # --- Every request ------------------------------------------------------------------------------------------------

    async def _visit(self, visit: Visit) -> None:
        error: BaseException | None = None
        try:
            with self.metrics.open_request():
                await self._dispatch(visit)
        except ClientLeft as left:
            error = left
        except ApiError as raised:
            error = raised
            await self._answer_error(visit, raised)
        except asyncio.CancelledError as stopped:
            error = stopped
            await self._answer_error(visit, _stopping())
            raise
        except Exception as bug:  # noqa: BLE001 The outermost edge: the client gets a body whatever it was.
            error = bug
            # Where it happened, never its text: that may quote a prompt.
            place = "".join(traceback.format_tb(bug.__traceback__))
            log.error("request %s: unforeseen %s at\n%s", visit.responder.request_id, type(bug).__name__, place)
            await self._answer_error(visit, InternalError("The gateway met an internal error."))
        finally:
            label = visit.model if visit.model and self._fleet.lists(visit.model) else None
            line = visit.line(error, self._clock())
            self._write_access(line)
            visit.trace.end(line)
            self.metrics.settle(line, label, visit.exchange.passage() if visit.exchange else None)

    async def _dispatch(self, visit: Visit) -> None:
        method, path = visit.request.method, visit.request.path
        if path in ENGINE_ROUTES:
            visit.route = path
            _require_method(method, "POST")
            await self._call(visit, ENGINE_ROUTES[path])
        elif path in self._gets:
            visit.route = path
            _require_method(method, "GET")
            await self._gets[path](visit)
        elif path.startswith(MODELS_PATH + "/"):
            visit.route = MODELS_PATH + "/{id}"
            _require_method(method, "GET")
            await self._show_model(visit, path.removeprefix(MODELS_PATH + "/"))
        else:
            raise RouteNotFound(f"Invalid URL ({method} {path[:256]})")

    async def _answer_error(self, visit: Visit, error: ApiError) -> None:
        responder, dialect = visit.responder, dialect_of(visit.request.path)
        if not responder.is_started:
            headers = shapes.error_headers(error) + _allow(error, visit.request.path)
            await responder.whole(error.status, shapes.error_body(error, dialect, responder.request_id), headers)
        elif visit.exchange and visit.exchange.call.is_streamed and not responder.is_complete:
            kind = visit.exchange.call.route.streams
            event = shapes.error_event(error, kind, responder.request_id, visit.exchange.events_passed)
            try:
                async with asyncio.timeout(LAST_EVENT_S):
                    await responder.write(event)
                    await responder.finish()
            except TimeoutError:
                responder.cut()
        elif not responder.is_complete:
            # A whole answer broke off. Its client may read no more, and closing alone would wait for it.
            responder.cut()

    # --- Calls to engines -----------------------------------------------------------------------------------------------

    async def _call(self, visit: Visit, route: EngineRoute) -> None:
        with self._admitted():
            visit.caller = caller = await self._identify(visit.request)
            opened = self._ledger.entry(
                request_id=visit.responder.request_id, caller=caller, route=route.path, model=""
            )
            with opened as entry, booked(entry, visit):
                try:
                    async with asyncio.timeout(self._settings.timeouts.request_total_s):
                        await self._serve(visit, route, caller, entry)
                except TimeoutError:
                    raise self._out_of_time(visit) from None

    async def _serve(self, visit: Visit, route: EngineRoute, caller: Caller, entry: Entry) -> None:
        require_json(visit.request)
        body = await self._body(visit)
        if self._settings.log_prompts:
            visit.prompt = body[:LOGGED_PROMPT_BYTES].decode(errors="replace")
        draft = calls.read(route, body)
        entry.model = visit.model = self._resolve(draft.requested_model)
        call = calls.finish(draft, visit.model, calls.cache_salt(self._salt_key, caller.tenant_id))
        if self._relay is None:
            raise _stopping()
        visit.exchange = Exchange(call, visit.responder, visit.trace, self._clock)
        async with visit.request.cancel_when_client_leaves(visit.responder):
            await self._relay.relay(visit.exchange)

    def _out_of_time(self, visit: Visit) -> ApiError:
        """Whose fault it is that a request used up its time: the client's where most of it went by without its reading."""
        if visit.responder.waited_s > self._settings.timeouts.request_total_s / 2:
            return RequestTimedOut("The answer was not read in time.")
        return EngineTimedOut("The request took too long.")

    async def _body(self, visit: Visit) -> bytes:
        limit_s = self._settings.timeouts.request_body_s
        began_at = self._clock()
        try:
            async with asyncio.timeout(limit_s):
                return await visit.request.read_body(self._settings.max_body_bytes)
        except TimeoutError:
            raise RequestTimedOut(f"The request body did not arrive within {limit_s:g} seconds.") from None
        finally:
            visit.body_s = self._clock() - began_at

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._open_calls >= self._settings.max_open_requests:
            raise GatewayFull("Too many requests are open; please try again.", retry_after_s=1)
        self._open_calls += 1
        try:
            yield
        finally:
            self._open_calls -= 1

    async def _identify(self, request: Request) -> Caller:
        key = request.presented_key()
        if key is None:
            raise Unauthenticated(
                "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY' or as 'x-api-key'."
            )
        return await self._tenants.identify(key)

    def _resolve(self, requested: str) -> str:
        model = self._settings.aliases.get(requested, requested)
        if not self._fleet.may_know(model):
            raise ModelNotFound(requested[:256])
        return model

    # --- What the gateway answers itself --------------------------------------------------------------------------------

    async def _list_models(self, visit: Visit) -> None:
        visit.caller = await self._identify(visit.request)
        await _send_json(visit, 200, ModelList(data=self._cards()))

    async def _show_model(self, visit: Visit, name: str) -> None:
        visit.caller = await self._identify(visit.request)
        for card in self._cards():
            if card.id == name:
                return await _send_json(visit, 200, card)
        raise ModelNotFound(name[:256])

    def _cards(self) -> list[ModelCard]:
        models = {model.name: model for model in (*self._fleet.adapters(), *self._fleet.models())}
        aliased = {alias: models[name] for alias, name in self._settings.aliases.items() if name in models}
        return [
            ModelCard(name, model.first_seen_s, max_model_len=model.context_tokens or None, parent=model.base)
            for name, model in (models | aliased).items()
        ]

    async def _live(self, visit: Visit) -> None:
        await _send_json(visit, 200, Health(status="ok"))

    async def _ready(self, visit: Visit) -> None:
        is_ready = self._relay is not None
        await _send_json(visit, 200 if is_ready else 503, Health(status="ok" if is_ready else "stopping"))

    async def _health_of_models(self, visit: Visit) -> None:
        models = self._fleet.models()
        answers = any(_is_ready(model) for model in models)
        await _send_json(visit, 200 if answers else 503, HealthOfModels({m.name: _summary(m) for m in models}))

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            models=self._fleet.models(),
            sources_up=self._fleet.sources_up(),
            ledger_rows_waiting=self._ledger.pending_rows,
            ledger_lag_s=self._ledger.lag_s,
            is_store_up=self._ledger.is_store_up,
            certificates_end_at_s=self._expiries(),
        )

    async def _show_metrics(self, visit: Visit) -> None:
        await visit.responder.whole(200, await self.metrics.render(), content_type=METRICS_TYPE)


METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class ModelCard(msgspec.Struct):
    id: str
    created: int
    object: str = "model"
    owned_by: str = "serving"
    max_model_len: int | None = None
    #: The model an adapter belongs to, as vLLM says it.
    parent: str | None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class Health(msgspec.Struct):
    status: str


class HealthOfModels(msgspec.Struct):
    """Model → its best state, and how many replicas are ready."""

    models: dict[str, str]


def _is_ready(model: Model) -> bool:
    return ReplicaState.READY in model.states


def _summary(model: Model) -> str:
    """The state that says most about a model: ready if any replica is, else how far the best one has got."""
    by_promise = (
        ReplicaState.READY,
        ReplicaState.WARMING,
        ReplicaState.LOADING,
        ReplicaState.STARTING,
        ReplicaState.DRAINING,
        ReplicaState.FAILED,
    )
    found = next((state.value for state in by_promise if state in model.states), None)
    return found or (ASLEEP if model.wanted == 0 and model.may_sleep else ReplicaState.STARTING)


async def _send_json(visit: Visit, status: int, body: msgspec.Struct) -> None:
    await visit.responder.whole(status, msgspec.json.encode(body))


def _stopping() -> GatewayFull:
    return GatewayFull("This gateway is stopping; please try again.", retry_after_s=1)


def _require_method(method: str, allowed: str) -> None:
    if method != allowed:
        raise MethodNotAllowed(f"Not allowed to {method[:16]} here; use {allowed}.")


def _allow(error: ApiError, path: str) -> list[Header]:
    if not isinstance(error, MethodNotAllowed):
        return []
    return [(b"allow", b"POST" if path in ENGINE_ROUTES else b"GET")]


def _complain(following: asyncio.Task[None]) -> None:
    if not following.cancelled() and following.exception() is not None:
        log.critical("the fleet is no longer followed: %s", type(following.exception()).__name__)


def create_app(
    settings: GatewaySettings,
    tenants: Tenants,
    ledger: Ledger,
    secret: PlaneSecret | None,
    salt_key: bytes,
    *,
    tls: ssl.SSLContext | None = None,
    expiries: Callable[[], Mapping[str, float]] = dict,
    tracing: Tracing | None = None,
    write_access: Callable[[AccessLine], None] = access.write,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
) -> Gateway:
    """The application before the directories and engines that `settings` names.

    `tls` is how their servers are known, `expiries` tells when certificates in use end (seconds since the epoch).
    """
    sources: list[Source] = [
        DirectorySource(url, secret, f"directory-{number}") for number, url in enumerate(settings.directories)
    ]
    sources += [EngineSource(url, secret, f"engine-{number}") for number, url in enumerate(settings.engines)]
    demands = Demands(clock)
    fleet = Fleet(sources, settings, demands, clock, wall_clock)
    spans = tracing or Tracing()
    return Gateway(
        settings, tenants, ledger, fleet, demands, secret, salt_key, tls, expiries, spans, write_access, clock
    )
