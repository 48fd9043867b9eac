"""Assembly: the one place where the gateway's parts meet, from settings to the application."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial

import msgspec

from serving.config import GatewaySettings
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.counters.memory import MemoryCounters
from serving.gateway.admission.counters.shared import SharedCounters
from serving.gateway.admission.counters.tally import Tally
from serving.gateway.admission.estimates import Estimates
from serving.gateway.admission.reservations import Reservations
from serving.gateway.admission.seeds import Seeds
from serving.gateway.answers import seal
from serving.gateway.answers.reasoning import Reasoning
from serving.gateway.answers.seal import Seal
from serving.gateway.api import metrics as metrics_page
from serving.gateway.api import openapi
from serving.gateway.api.admin import front
from serving.gateway.api.admin.front import Front
from serving.gateway.api.admin.office import Office
from serving.gateway.api.admin.sight import Sight
from serving.gateway.api.background import Background
from serving.gateway.api.batches import BatchesApi
from serving.gateway.api.console.door import Door
from serving.gateway.api.console.files import Files
from serving.gateway.api.conversations import ConversationsApi
from serving.gateway.api.docs import Docs
from serving.gateway.api.files import FilesApi
from serving.gateway.api.health import Health
from serving.gateway.api.inference import Inference
from serving.gateway.api.lines import Lines
from serving.gateway.api.merged import MergedHours, MergedMetrics
from serving.gateway.api.metrics import MetricsPage
from serving.gateway.api.models import Models
from serving.gateway.api.responses import Responses
from serving.gateway.api.unattended import Unattended
from serving.gateway.api.visit import Handler
from serving.gateway.app import Gateway
from serving.gateway.audit.audit import Audit
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.names import Names
from serving.gateway.fleet.outliers import Outliers
from serving.gateway.fleet.polls import Polls
from serving.gateway.fleet.sources import DirectorySource, EngineSource, Source
from serving.gateway.http.cors import Cors
from serving.gateway.http.routing import ANY, About, Entry, Routes
from serving.gateway.http.upstream import Upstream
from serving.gateway.identity import repetitions
from serving.gateway.identity.changes import Follower
from serving.gateway.identity.identity import Identity
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.repetitions import Repetitions
from serving.gateway.identity.sessions import Sessions
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.price_list import PriceList
from serving.gateway.ledger.watch import has_died, own_gateway_id
from serving.gateway.nouns import CallRecord
from serving.gateway.observe import access
from serving.gateway.observe.activity import Activity
from serving.gateway.observe.backlog import Backlog
from serving.gateway.observe.metrics import Metrics, Snapshot
from serving.gateway.observe.recorder import Recorder
from serving.gateway.observe.tracing import Tracing
from serving.gateway.policies import PriorityClass
from serving.gateway.relay.prefill import Prefill
from serving.gateway.relay.relay import Relay
from serving.gateway.store.store import Store
from serving.gateway.stored.batches.batches import Batches
from serving.gateway.stored.batches.runner import Runner
from serving.gateway.stored.batches.shift import Tools
from serving.gateway.stored.batches.spare import Spare
from serving.gateway.stored.conversations import SECONDS_PER_DAY, Conversations
from serving.gateway.stored.desk import Desk
from serving.gateway.stored.files.files import TenantFiles
from serving.gateway.stored.files.pieces import Pieces
from serving.gateway.stored.memory import Memory
from serving.gateway.stored.shelf import Shelf
from serving.gateway.stored.sweeping import Sweeper
from serving.gateway.stored.vault import Vault
from serving.secret import PlaneSecret
from serving.wire import EngineLoad

log = logging.getLogger(__name__)


class Edges(msgspec.Struct, frozen=True):
    """What the application meets outside: each has a default that a laptop and a test can do with."""

    #: What gateways show to engines and directories; None where those ask for nothing.
    secret: PlaneSecret | None = None
    #: How engines' and directories' certificates are checked.
    tls: ssl.SSLContext | None = None
    #: When certificates in use end, in seconds since the epoch.
    expiries: Callable[[], Mapping[str, float]] = dict
    tracing: Tracing = Tracing()
    write_access: Callable[[CallRecord], None] = access.write_text
    #: Where the page of all workers is; None where this process is the whole gateway.
    merged_page: str | None = None
    #: Where gateways count together; None where this process counts for itself.
    tally: Tally | None = None
    #: Seals what is stored; without a key file nothing is.
    vault: Vault = Vault(None)
    #: This worker has taken the place of one that died.
    is_successor: bool = False
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


_EDGES = Edges()


class Kept(msgspec.Struct, frozen=True):
    """What outlives a request."""

    desk: Desk
    files: TenantFiles
    batches: Batches
    unattended: Unattended
    runner: Runner


class Assembled(msgspec.Struct, frozen=True):
    """The application, the page of its metrics for a port of its own, and the console with all that it calls for one of its own."""

    gateway: Gateway
    metrics_page: MetricsPage
    console: Gateway | None
    #: None where there are no files and batches.
    kept: Kept | None


def assemble(
    settings: GatewaySettings, store: Store, tenants: Tenants, ledger: Ledger, audit: Audit, edges: Edges = _EDGES
) -> Assembled:
    """The application before the directories and engines that `settings` names. Raises Refusal when an issuer's CA cannot be used."""
    clock = edges.clock
    identity = Identity(settings, store, tenants, clock, edges.wall_clock)
    sources = list(_sources(settings, edges.secret))
    demands = Demands(clock)
    outliers = Outliers(settings.outliers, clock)
    fleet = Fleet((source.name for source in sources), demands, clock, edges.wall_clock, outliers)
    polls = Polls(sources, fleet, demands, settings.poll_interval_s, clock)
    names = Names(fleet, settings.aliases)
    upstream = Upstream(settings.timeouts.engine_connect_s, edges.tls)
    prefill, prefill_polls = _prefill(settings, upstream, edges)
    estimates = Estimates()
    prices = PriceList(store)
    prices.load()
    seeds = Seeds(store, ledger)
    counters = _counters(settings, seeds, ledger, edges)
    shared = counters if isinstance(counters, SharedCounters) else None
    admission = Admission(fleet, demands, estimates, settings, clock)
    snapshot = partial(_snapshot, fleet, admission, (polls, prefill_polls), identity, ledger, audit, shared, edges)
    metrics = Metrics(snapshot, settings.slo_of)
    health = Health(fleet, upstream, identity, ledger, shared)
    activity = Activity(settings.slo_of, edges.wall_clock)
    page = MetricsPage(metrics, health.of_models, activity.slots)
    recorder = Recorder(ledger, metrics, edges.write_access, fleet.lists, prices.of, clock, audit.settle, activity)
    reservations = Reservations(counters, prices.of, estimates, edges.wall_clock)
    memory = _memory(settings, store, edges)
    background = _background(settings, memory, recorder, tenants, ledger)
    ledger.keep_house(Sweeper(store, edges.wall_clock, ledger.gateway_id, background.running).sweep_if_due)
    inference = Inference(
        settings,
        identity,
        tenants,
        ledger,
        names,
        reservations,
        admission,
        Relay(upstream, estimates, settings, edges.secret, clock, prefill),
        Reasoning(Seal(tenants.derived_key(seal.PURPOSE), edges.wall_clock), clock),
        recorder.foresee,
        memory,
        background,
    )
    hours = MergedHours(edges.merged_page, activity.slots)
    sight = Sight(
        fleet,
        polls,
        admission,
        reservations,
        hours.read,
        lambda: ledger.gateways,
        settings.aliases,
        clock,
        edges.wall_clock,
    )
    administration = _administration(settings, store, identity, tenants, audit, sight, edges)
    lasts_s = settings.console.session_s
    sessions = Sessions(store, audit.witness, lasts_s=lasts_s, wall_clock=edges.wall_clock)
    unattended = Unattended(inference, recorder, ledger, edges.tracing, clock)
    lines = Lines(unattended, tenants, names, fleet)
    kept = _kept(settings, store, unattended, lines, fleet, admission, edges) if settings.files.enabled else None
    metrics.backlog = partial(_backlog, kept, background)
    entries: list[Entry[Handler]] = [
        Entry(ANY, front.PATH, administration.serve),
        *inference.entries(),
        *Responses(settings, identity, admission, memory, background).entries(),
        *ConversationsApi(settings, identity, admission, memory).entries(),
        *(_kept_entries(kept, identity, admission, settings) if kept else ()),
        *Models(identity, names).entries(),
        *health.entries(is_public=settings.metrics_port is None),
    ]
    if settings.metrics_port is None:
        shown = MergedMetrics(edges.merged_page) if edges.merged_page else page
        about = About(
            summary="Metrics, as Prometheus reads them.", tag="service", is_open=True, content_type="text/plain"
        )
        entries.append(Entry("GET", metrics_page.PATH, shown.show, about=about))
    body_s = settings.timeouts.request_body_s
    doors = Door(settings.console, settings.currency, identity, sessions, body_s)
    console = [*Files().entries(), *doors.entries()] if settings.console.enabled else []
    console_port = settings.console.port if settings.console.enabled else None
    cors = Cors(settings.cors_origins)
    observers = [identity.forget, prices.follow, reservations.follow, background.follow]
    follower = Follower(store, *observers, *([kept.runner.follow] if kept else []))
    running = partial(
        _running,
        upstream,
        (polls, prefill_polls),
        identity,
        prices,
        follower,
        administration,
        seeds,
        sessions,
        shared,
        background,
        kept,
    )

    def gateway(entries: list[Entry[Handler]], running: Callable[[], AbstractAsyncContextManager[None]]) -> Gateway:
        table = [*entries]
        # It describes itself too.
        table += Docs(partial(_document, table, administration)).entries()
        return Gateway(Routes(table), recorder, edges.tracing, running, clock, cors)

    if console_port is None:
        return Assembled(gateway([*entries, *console], running), page, None, kept)
    return Assembled(gateway(entries, running), page, gateway([*entries, *console], nullcontext), kept)


def _kept(
    settings: GatewaySettings,
    store: Store,
    unattended: Unattended,
    lines: Lines,
    fleet: Fleet,
    admission: Admission,
    edges: Edges,
) -> Kept:
    desk, pieces = Desk(), Pieces.open(settings.files, store.home)
    files = TenantFiles(settings.files, store, pieces, edges.vault, desk, edges.wall_clock)
    batches = Batches(settings.files, store, edges.vault, files, edges.wall_clock)
    spare = Spare(partial(_seen, fleet, admission), settings.files.careful_tokens_per_s, edges.clock)
    fleet.observe(spare.wake_all)
    lines_max, line_bytes_max = settings.files.lines_max, settings.max_body_bytes
    tools = Tools(batches, files, desk, spare, lines, lines_max, line_bytes_max, edges.clock)
    # Of one machine a gateway knows which processes there are.
    has_ended = partial(_has_ended, store)
    return Kept(desk, files, batches, unattended, Runner(tools, own_gateway_id(), has_ended, edges.wall_clock))


def _backlog(kept: Kept | None, background: Background) -> Backlog:
    seen = kept.runner.backlog() if kept else Backlog()
    return msgspec.structs.replace(seen, background=len(background.running()))


def _kept_entries(
    kept: Kept, identity: Identity, admission: Admission, settings: GatewaySettings
) -> Iterator[Entry[Handler]]:
    yield from FilesApi(identity, admission, kept.files).entries()
    yield from BatchesApi(identity, kept.batches, kept.files, kept.desk, settings.timeouts.request_body_s).entries()


def _has_ended(store: Store, gateway_id: str) -> bool:
    return not store.is_shared and has_died(gateway_id)


def _seen(fleet: Fleet, admission: Admission, model: str) -> tuple[list[EngineLoad], int]:
    """What lines of batches go by: what replicas report, and the other calls that wait."""
    waiting = sum(it.calls for it in admission.depths() if it.model == model and it.priority is not PriorityClass.BATCH)
    return [it.load for it in fleet.standings(model)], waiting


def _counters(settings: GatewaySettings, seeds: Seeds, ledger: Ledger, edges: Edges) -> MemoryCounters | SharedCounters:
    def clock_us() -> int:
        return round(edges.wall_clock() * 1e6)

    if edges.tally is None:
        return MemoryCounters(clock_us, seeds)
    return SharedCounters(
        edges.tally,
        seeds=seeds,
        gateways=lambda: ledger.gateways,
        timeout_s=settings.counters.timeout_s,
        alone_max_s=settings.counters.alone_max_s,
        clock_us=clock_us,
    )


def _memory(settings: GatewaySettings, store: Store, edges: Edges) -> Memory:
    kept_s = settings.stored.retention_days * SECONDS_PER_DAY
    vault = edges.vault
    conversations = Conversations(store, vault, kept_s, edges.wall_clock)
    return Memory(Shelf(store, vault, conversations, kept_s, edges.wall_clock), conversations, edges.wall_clock)


def _background(
    settings: GatewaySettings, memory: Memory, recorder: Recorder, tenants: Tenants, ledger: Ledger
) -> Background:
    return Background(
        memory,
        recorder.settle,
        recorder.open_request,
        tenants.as_now,
        ledger.gateway_id,
        total_s=settings.stored.background_total_s,
        calls_max=settings.stored.background_calls_max,
        keep_alive_s=settings.timeouts.keep_alive_s,
    )


def _administration(
    settings: GatewaySettings,
    store: Store,
    identity: Identity,
    tenants: Tenants,
    audit: Audit,
    sight: Sight,
    edges: Edges,
) -> Front:
    registry = Registry(store, tenants.keyring, edges.wall_clock)
    kept = Repetitions(tenants.keyring.derived(repetitions.PURPOSE), edges.wall_clock)
    office = Office(store, registry, kept, edges.wall_clock, audit, settings.currency, sight, edges.vault)
    return Front(identity, office, body_s=settings.timeouts.request_body_s)


def _sources(settings: GatewaySettings, secret: PlaneSecret | None) -> Iterator[Source]:
    for number, url in enumerate(settings.directories):
        yield DirectorySource(url, secret, f"directory-{number}")
    for number, url in enumerate(settings.engines):
        yield EngineSource(url, secret, f"engine-{number}")


def _prefill(settings: GatewaySettings, upstream: Upstream, edges: Edges) -> tuple[Prefill | None, Polls]:
    """The engines that compute prompts: a fleet of their own, of which clients' names know nothing."""
    clock, demands = edges.clock, Demands(edges.clock)
    sources = [
        EngineSource(url, edges.secret, f"prefill-{number}") for number, url in enumerate(settings.prefill_engines)
    ]
    fleet = Fleet((source.name for source in sources), demands, clock, edges.wall_clock)
    prefill = Prefill(fleet, upstream, edges.secret, settings.timeouts, clock) if sources else None
    return prefill, Polls(sources, fleet, demands, settings.poll_interval_s, clock)


async def _document(table: list[Entry[Handler]], administration: Front) -> openapi.Document:
    application = await administration.application()
    return openapi.document(table, application.app.openapi())


def _snapshot(
    fleet: Fleet,
    admission: Admission,
    polls: Sequence[Polls],
    identity: Identity,
    ledger: Ledger,
    audit: Audit,
    shared: SharedCounters | None,
    edges: Edges,
) -> Snapshot:
    return Snapshot(
        models=fleet.models(),
        queued={(depth.model, depth.priority): depth.calls for depth in admission.depths()},
        sources_up={label: is_up for it in polls for label, is_up in it.sources_up().items()},
        issuers_up=identity.issuers_up(),
        ledger_rows_waiting=ledger.pending_rows,
        ledger_lag_s=ledger.lag_s,
        audit_lag_s=audit.lag_s,
        is_store_up=ledger.is_store_up,
        certificates_end_at_s=edges.expiries(),
        workers_replaced=int(edges.is_successor),
        is_counting_together=shared is None or not shared.is_alone,
        decisions_alone=shared.decisions_alone if shared else 0,
    )


@asynccontextmanager
async def _running(
    upstream: Upstream,
    polls: Sequence[Polls],
    identity: Identity,
    prices: PriceList,
    changes: Follower,
    administration: Front,
    seeds: Seeds,
    sessions: Sessions,
    shared: SharedCounters | None,
    background: Background,
    kept: Kept | None,
) -> AsyncIterator[None]:
    async with identity.opened(), upstream.opened() as session:
        tasks = [
            *(asyncio.create_task(it.run(session), name="fleet") for it in polls),
            asyncio.create_task(changes.run(), name="store"),
            asyncio.create_task(prices.run(), name="price list"),
            *(asyncio.create_task(it, name=name) for name, it in identity.running()),
        ]
        if kept is not None:
            tasks.append(asyncio.create_task(kept.runner.run(), name="batches"))
        if shared is not None:
            tasks.append(asyncio.create_task(shared.run(), name="counters"))
        for task in tasks:
            task.add_done_callback(_complain)
        try:
            with administration, seeds, sessions:
                yield
        finally:
            await background.close()
            for task in tasks:
                task.cancel()
            # The polls use the session that is closed next.
            await asyncio.wait(tasks)
            if kept is not None:
                kept.desk.close()
            if shared is not None:
                await shared.close()


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("the %s is no longer followed: %s", task.get_name(), type(task.exception()).__name__)
