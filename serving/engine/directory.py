"""Directory: which replicas serve what in this cell, and how many should run? Replicas report here about twice a second,
and every two seconds while they say the same; gateways poll it over HTTP and send their demand; Serve's autoscaling hook
reads the wanted numbers.

It stores nothing: a restarted directory has every replica's report again within one interval, and until then marks its
answer incomplete, so that no gateway drops a replica because of the restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError
from starlette.requests import Request
from starlette.responses import Response

from serving.engine.failures import EngineFailure, FailureHistory
from serving.engine.metrics import Metrics, Snapshot
from serving.engine.news import News
from serving.engine.placement import GPU_TYPE_LABEL
from serving.engine.pool import Node
from serving.engine.scaling import Arrivals, Plans, Scaler
from serving.engine.specs import CellSettings
from serving.secret import PlaneSecret
from serving.wire import (
    METRICS_ROUTE,
    WANTED_ROUTE,
    DirectoryAnswer,
    EngineLoad,
    GatewayReport,
    Listed,
    ReplicaReport,
    ReplicaState,
)

logger = logging.getLogger("serving.directory")

#: Seconds without a report after which a replica is dropped: twenty missed heartbeats, five of one that says the same.
EXPIRY_S = 10.0
#: Seconds after its start by which every living replica has reported.
COMPLETE_AFTER_S = 5.0
#: Seconds without any report from living replicas after which the directory concludes that it was cut off itself:
#: longer than an overloaded engine delays its replica (a probe of 5 s and a report of 2 s at most, and a heartbeat's
#: pause).
SILENCE_S = 9.0
#: Seconds after which it concludes that all of them are gone: as long as Ray may take to declare a node dead.
SILENCE_MAX_S = 60.0
#: States of a replica that will go on reporting.
_LIVING = frozenset({ReplicaState.STARTING, ReplicaState.LOADING, ReplicaState.WARMING, ReplicaState.READY})
#: Gangs whose first member's address is kept; a cell has fewer nodes.
_MEETINGS_MAX = 1000
#: Gateways whose demand is kept; a cell has tens.
_GATEWAYS_MAX = 1000
#: Seconds for which the poll of a gateway without calls waits for news: as long as a gateway's polls may be apart (CELL-27).
NEWS_WAIT_S = 2.0
#: Seconds between two polls of Ray's nodes: they come and go in minutes.
_NODES_INTERVAL_S = 5.0

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Address and port of an engine's first member.
Meeting = tuple[str, int]


class Listing:
    """The reports received in this incarnation; plain data, the clock given."""

    def __init__(self, cell: str, incarnation: str, clock: Callable[[], float]) -> None:
        self._cell = cell
        self._incarnation = incarnation
        self._clock = clock
        self._started_at = clock()
        self._reports: dict[str, tuple[float, ReplicaReport]] = {}
        #: When the last report came, and since when they have come without a gap.
        self._last_report_at = self._reporting_since = self._started_at
        self._failures = FailureHistory()
        self._meetings: dict[str, Meeting] = {}
        self._gateways: dict[str, tuple[float, GatewayReport]] = {}
        self._nodes: Sequence[Node] = ()
        self._scaler = Scaler()
        self._arrivals = Arrivals(self._started_at)
        self._metrics = Metrics(cell)

    def plan(self, plans: Plans) -> None:
        """Take each model's plan from the settings."""
        self._scaler.plan(plans)

    def set_nodes(self, nodes: Sequence[Node]) -> None:
        """Take the GPU nodes that exist now."""
        self._nodes = nodes

    def record_gateway(self, report: GatewayReport) -> None:
        """A gateway's report counts until its next one, or until it expires."""
        if report.gateway_id in self._gateways or len(self._gateways) < _GATEWAYS_MAX:
            self._gateways[report.gateway_id] = (self._clock(), report)
            self._arrivals.record(report)

    def record(self, report: ReplicaReport) -> bool:
        """Take a replica's heartbeat, and count a failure at its first FAILED; returns whether more than its load is new."""
        now = self._clock()
        if now - self._last_report_at > SILENCE_S:
            self._reporting_since = now
        self._last_report_at = now
        before = self._reports.get(report.replica_id)
        if report.state is ReplicaState.FAILED and not (before and before[1].state is ReplicaState.FAILED):
            why = report.reason if report.ejected else None
            self._failures.record(EngineFailure(report.model, report.node, report.devices, now, why))
        self._reports[report.replica_id] = (now, report)
        self._metrics.record(report, now)
        return before is None or _lasting(before[1]) != _lasting(report)

    def start_wait_s(self, model: str) -> float:
        """Back-off: seconds that an engine of `model` should wait before it starts, because others failed."""
        return self._failures.wait_s(model, self._clock())

    def meet(self, gang: str, address: Meeting | None) -> Meeting | None:
        """The address of the first member of an engine over several nodes; `address` is given by that member itself."""
        if address is not None:
            self._meetings[gang] = address
            while len(self._meetings) > _MEETINGS_MAX:
                del self._meetings[next(iter(self._meetings))]
        return self._meetings.get(gang)

    def wanted(self) -> dict[str, int] | None:
        """Model → engines wanted; None while this directory does not have every replica's report."""
        self._refresh()
        return self._scaler.wanted() if self.is_complete() else None

    def is_complete(self) -> bool:
        """Has every living replica had time to report? Not to a directory that just started, or was cut off itself."""
        now = self._clock()
        is_old = now - max(self._started_at, self._reporting_since) >= COMPLETE_AFTER_S
        return is_old and not self._is_silent(now)

    def _is_silent(self, now: float) -> bool:
        """Has no living replica reported for so long that the directory itself must have been cut off?

        Ray blocks every call to an actor for 13 s (observed with 2.60) when a caller's node dies in the middle of one.
        """
        is_anyone_expected = any(report.state in _LIVING for _, report in self._reports.values())
        return is_anyone_expected and SILENCE_S < now - self._last_report_at < SILENCE_MAX_S

    def _refresh(self) -> None:
        now = self._clock()
        if self.is_complete():
            self._reports = {key: (at, report) for key, (at, report) in self._reports.items() if now - at < EXPIRY_S}
        self._gateways = {key: (at, report) for key, (at, report) in self._gateways.items() if now - at < EXPIRY_S}
        self._metrics.keep_only(self._reports.keys())
        if self.is_complete() and self._scaler.is_due(now):
            demand = self._arrivals.demand([report for _, report in self._gateways.values()], now)
            self._arrivals = Arrivals(now)
            reports = list(self._reports.values())
            self._scaler.decide(reports, demand if self._gateways else None, self._nodes, now)

    def metrics(self) -> bytes:
        """The metrics page, in Prometheus' text format."""
        self._refresh()
        now, models = self._clock(), self._scaler.listed()
        return self._metrics.render(
            Snapshot(
                replicas=[report for _, report in self._reports.values()],
                models=models,
                start_waits_s={model.name: self._failures.wait_s(model.name, now) for model in models},
                suspect_devices=len(self._failures.suspects(now)),
                gateways=len(self._gateways),
            )
        )

    def answer(self) -> DirectoryAnswer:
        """The answer to a gateway's poll."""
        self._refresh()
        now = self._clock()
        return DirectoryAnswer(
            cell=self._cell,
            incarnation=self._incarnation,
            is_complete=self.is_complete(),
            replicas=tuple(Listed(report=report, heard_ago_s=now - at) for at, report in self._reports.values()),
            warnings=(*self._failures.suspects(now), *self._failures.ejections(now)),
            models=self._scaler.listed(),
            gateways=len(self._gateways),
        )


class Directory:
    """The Serve deployment around a Listing."""

    async def __init__(self, cell: str, secret_file: str) -> None:  # type: ignore[misc]  # Serve awaits it
        incarnation = uuid.uuid4().hex
        self._listing = Listing(cell, incarnation, time.monotonic)
        self._news = News(incarnation)
        self._secret = PlaneSecret(Path(secret_file))
        self._settings = CellSettings()
        self._watching = asyncio.get_running_loop().create_task(self._watch_nodes())

    async def _watch_nodes(self) -> None:
        while True:
            try:
                self._listing.set_nodes(gpu_nodes(await asyncio.to_thread(ray.nodes)))
            except RayError as error:
                logger.warning("Ray did not list its nodes: %s", type(error).__name__)
            await asyncio.sleep(_NODES_INTERVAL_S)

    def check_health(self) -> None:
        """Serve's health check: raises when nodes are no longer watched; Serve then replaces this directory."""
        if self._watching.done():
            raise RuntimeError("the directory no longer watches Ray's nodes")

    def reconfigure(self, plain: dict[str, Any]) -> None:
        """Called by Serve at the start, and when the settings change; restarts nothing."""
        self._settings = CellSettings.model_validate(plain)
        self._listing.plan(self._settings.plans())
        self._news.happen()

    async def report(self, report: ReplicaReport) -> bool:
        """Called by replicas through Serve; True: it has arrived."""
        if self._listing.record(report):
            self._news.happen()
        return True

    async def start_wait_s(self, model: str) -> float:
        """Called by a replica before it starts its engine."""
        return self._listing.start_wait_s(model)

    async def live_settings(self, model: str) -> dict[str, Any] | None:
        """Called by a replica before it starts its engine; None for a model that is no longer served."""
        live = self._settings.live(model)
        return live.model_dump(mode="json") if live else None

    async def meet(self, gang: str, address: Meeting | None) -> Meeting | None:
        """Called by the members of a gang until they know where to meet."""
        return self._listing.meet(gang, address)

    async def __call__(self, request: Request) -> Response:
        """Called over HTTP by gateways, Serve's hook and Prometheus; requires the plane secret and never returns it."""
        if not self._secret.accepts(request.headers.get("authorization", "").encode()):
            return Response(status_code=401)
        if request.url.path.endswith(WANTED_ROUTE):
            return _json(self._listing.wanted())
        if request.url.path.endswith(METRICS_ROUTE):
            return Response(self._listing.metrics(), media_type=_METRICS_TYPE)
        if request.method == "POST":
            try:
                report = msgspec.json.decode(await request.body(), type=GatewayReport)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return Response(status_code=400)
            self._listing.record_gateway(report)
            if self._listing.is_complete():
                await self._news.after(report.known, NEWS_WAIT_S)
        return _json(msgspec.structs.replace(self._listing.answer(), news=self._news.token))


def _lasting(report: ReplicaReport) -> ReplicaReport:
    return msgspec.structs.replace(report, load=EngineLoad())


def gpu_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The living GPU nodes in `ray.nodes()`'s answer."""
    return [
        Node(it["NodeID"], int(it["Resources"]["GPU"]), it["Labels"].get(GPU_TYPE_LABEL, ""))
        for it in nodes
        if it["Alive"] and it["Resources"].get("GPU")
    ]


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
