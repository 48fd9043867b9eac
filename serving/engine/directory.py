"""Directory: who serves what in this cell, and how many should? Replicas report here about twice a second; gateways ask
over HTTP and say what they see; Serve's autoscaling hook reads what is wanted.

It keeps nothing: a restarted directory hears everyone again within one interval, and says until then that its answer
is not complete, so that its silence removes nobody.
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

from serving.engine.failures import Failure, Failures
from serving.engine.metrics import Metrics, Snapshot
from serving.engine.placement import GPU_TYPE_LABEL
from serving.engine.pool import Node
from serving.engine.scaling import Arrivals, Plans, Scaler
from serving.engine.specs import CellSettings
from serving.secret import PlaneSecret
from serving.wire import (
    METRICS_ROUTE,
    WANTED_ROUTE,
    DirectoryAnswer,
    GatewayReport,
    Listed,
    ReplicaReport,
    ReplicaState,
)

logger = logging.getLogger("serving.directory")

#: Seconds without a report after which a replica is no longer listed: twenty missed reports.
EXPIRY_S = 10.0
#: Seconds after its start from which a directory has heard from everyone who lives.
COMPLETE_AFTER_S = 5.0
#: Seconds without any report, of replicas that live, after which the directory takes itself for the one that was away:
#: longer than an overloaded engine keeps its replica (a probe of 5 s and a report of 2 s at most, and a heartbeat's pause).
SILENCE_S = 9.0
#: Seconds after which it believes that they are all gone: as long as Ray may take to give a dead node up.
SILENCE_MAX_S = 60.0
#: States of a replica that means to go on reporting.
_LIVING = frozenset({ReplicaState.STARTING, ReplicaState.LOADING, ReplicaState.WARMING, ReplicaState.READY})
#: Gangs whose meeting place is remembered; a cell has fewer nodes.
_MEETINGS_MAX = 1000
#: Gateways whose demand is remembered; a cell has tens.
_GATEWAYS_MAX = 1000
#: Seconds between two looks at Ray's nodes: they come and go in minutes.
_NODES_INTERVAL_S = 5.0

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Address and port of an engine's first member.
Meeting = tuple[str, int]


class Listing:
    """The reports heard in this incarnation; plain data, the clock given."""

    def __init__(self, cell: str, incarnation: str, clock: Callable[[], float]) -> None:
        self._cell = cell
        self._incarnation = incarnation
        self._clock = clock
        self._started_at = clock()
        self._heard: dict[str, tuple[float, ReplicaReport]] = {}
        #: When the last report came, and since when they come without a silence between them.
        self._last_heard_at = self._heard_since = self._started_at
        self._failures = Failures()
        self._meetings: dict[str, Meeting] = {}
        self._gateways: dict[str, tuple[float, GatewayReport]] = {}
        self._nodes: Sequence[Node] = ()
        self._scaler = Scaler()
        self._arrivals = Arrivals(self._started_at)
        self._metrics = Metrics(cell)

    def plan(self, plans: Plans) -> None:
        """Take what the settings want of each model."""
        self._scaler.plan(plans)

    def see(self, nodes: Sequence[Node]) -> None:
        """Take the GPU nodes that there are now."""
        self._nodes = nodes

    def hear_gateway(self, report: GatewayReport) -> None:
        """What one gateway sees now stands until it says something else, or nothing for a while."""
        if report.gateway_id in self._gateways or len(self._gateways) < _GATEWAYS_MAX:
            self._gateways[report.gateway_id] = (self._clock(), report)
            self._arrivals.hear(report)

    def hear(self, report: ReplicaReport) -> None:
        now = self._clock()
        if now - self._last_heard_at > SILENCE_S:
            self._heard_since = now
        self._last_heard_at = now
        before = self._heard.get(report.replica_id)
        if report.state is ReplicaState.FAILED and not (before and before[1].state is ReplicaState.FAILED):
            self._failures.hear(Failure(report.model, report.node, report.devices, now))
        self._heard[report.replica_id] = (now, report)
        self._metrics.hear(report, now)

    def start_wait_s(self, model: str) -> float:
        """Seconds an engine of `model` should wait before it starts, because others failed."""
        return self._failures.wait_s(model, self._clock())

    def meet(self, gang: str, address: Meeting | None) -> Meeting | None:
        """Where the members of an engine over several nodes find its first one, which says so itself."""
        if address is not None:
            self._meetings[gang] = address
            while len(self._meetings) > _MEETINGS_MAX:
                del self._meetings[next(iter(self._meetings))]
        return self._meetings.get(gang)

    def wanted(self) -> dict[str, int] | None:
        """Model → engines wanted; None while this directory has not heard from everyone."""
        self._refresh()
        return self._scaler.wanted() if self._is_complete() else None

    def _is_complete(self) -> bool:
        """Would a replica that lives have been heard? Not by a directory that is young, or was away itself."""
        now = self._clock()
        is_old = now - max(self._started_at, self._heard_since) >= COMPLETE_AFTER_S
        return is_old and not self._is_silent(now)

    def _is_silent(self, now: float) -> bool:
        """Has everybody who lives said nothing for so long that it must be this directory?

        Ray holds up every call of an actor, 13 s (seen with 2.60), when a caller's node dies in the middle of one.
        """
        is_anyone_expected = any(report.state in _LIVING for _, report in self._heard.values())
        return is_anyone_expected and SILENCE_S < now - self._last_heard_at < SILENCE_MAX_S

    def _refresh(self) -> None:
        now = self._clock()
        if self._is_complete():
            self._heard = {key: (at, report) for key, (at, report) in self._heard.items() if now - at < EXPIRY_S}
        self._gateways = {key: (at, report) for key, (at, report) in self._gateways.items() if now - at < EXPIRY_S}
        self._metrics.forget(self._heard.keys())
        if self._is_complete() and self._scaler.is_due(now):
            demand = self._arrivals.demand([report for _, report in self._gateways.values()], now)
            self._arrivals = Arrivals(now)
            heard = list(self._heard.values())
            self._scaler.decide(heard, demand if self._gateways else None, self._nodes, now)

    def metrics(self) -> bytes:
        """What Prometheus gets."""
        self._refresh()
        now, models = self._clock(), self._scaler.listed()
        return self._metrics.render(
            Snapshot(
                replicas=[report for _, report in self._heard.values()],
                models=models,
                start_waits_s={model.name: self._failures.wait_s(model.name, now) for model in models},
                suspect_devices=len(self._failures.suspects(now)),
                gateways=len(self._gateways),
            )
        )

    def answer(self) -> DirectoryAnswer:
        """What gateways get."""
        self._refresh()
        now = self._clock()
        return DirectoryAnswer(
            cell=self._cell,
            incarnation=self._incarnation,
            is_complete=self._is_complete(),
            replicas=tuple(Listed(report=report, heard_ago_s=now - at) for at, report in self._heard.values()),
            warnings=tuple(self._failures.suspects(now)),
            models=self._scaler.listed(),
        )


class Directory:
    """The Serve deployment around a Listing."""

    async def __init__(self, cell: str, secret_file: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._listing = Listing(cell, uuid.uuid4().hex, time.monotonic)
        self._secret = PlaneSecret(Path(secret_file))
        self._settings = CellSettings()
        self._watching = asyncio.get_running_loop().create_task(self._watch_nodes())

    async def _watch_nodes(self) -> None:
        while True:
            try:
                self._listing.see(gpu_nodes(await asyncio.to_thread(ray.nodes)))
            except RayError as error:
                logger.warning("Ray did not list its nodes: %s", type(error).__name__)
            await asyncio.sleep(_NODES_INTERVAL_S)

    def check_health(self) -> None:
        """Asked by Serve, which replaces a directory that no longer sees what it decides on."""
        if self._watching.done():
            raise RuntimeError("nodes are no longer watched")

    def reconfigure(self, plain: dict[str, Any]) -> None:
        """Called by Serve at the start and when the settings' models change, which restarts nothing."""
        self._settings = CellSettings.model_validate(plain)
        self._listing.plan(self._settings.plans())

    async def report(self, report: ReplicaReport) -> None:
        """Called by replicas through Serve."""
        self._listing.hear(report)

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
        """Called over HTTP by gateways, by Serve's hook and by Prometheus; demands the plane secret and never returns it."""
        if not self._secret.accepts(request.headers.get("authorization", "").encode()):
            return Response(status_code=401)
        if request.url.path.endswith(WANTED_ROUTE):
            return _json(self._listing.wanted())
        if request.url.path.endswith(METRICS_ROUTE):
            return Response(self._listing.metrics(), media_type=_METRICS_TYPE)
        if request.method == "POST":
            try:
                self._listing.hear_gateway(msgspec.json.decode(await request.body(), type=GatewayReport))
            except (msgspec.DecodeError, UnicodeDecodeError):
                return Response(status_code=400)
        return _json(self._listing.answer())


def gpu_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The living nodes with GPUs, of what `ray.nodes()` says."""
    return [
        Node(it["NodeID"], int(it["Resources"]["GPU"]), it["Labels"].get(GPU_TYPE_LABEL, ""))
        for it in nodes
        if it["Alive"] and it["Resources"].get("GPU")
    ]


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
