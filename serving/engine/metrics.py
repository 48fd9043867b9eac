"""Metrics of one cell, as its directory sees it: each engine's load, starts and failures, shortages.

`deploy/metrics.yaml` describes each. Counters restart with the directory.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Container, Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.wire import EJECTIONS, ListedModel, ReplicaReport, ReplicaState, plain_name

#: Seconds a start spends in one state: from a small model on a laptop to a large one on slow storage.
_PHASE_BUCKETS_S = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 2400)
#: States on the way to READY.
_PHASES = (ReplicaState.STARTING, ReplicaState.LOADING, ReplicaState.WARMING)


class Snapshot(msgspec.Struct, frozen=True):
    """The state at one scrape."""

    replicas: Sequence[ReplicaReport] = ()
    models: Sequence[ListedModel] = ()
    #: Model → back-off of its next start, in seconds.
    start_waits_s: dict[str, float] = {}
    suspect_devices: int = 0
    gateways: int = 0


class _Now(Collector):
    """The last snapshot as gauges."""

    def __init__(self, cell: str) -> None:
        self._cell = cell
        self.seen = Snapshot()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._of_models()
        yield from self._of_replicas()
        yield self._family(
            "serving_engine_suspect_devices", "GPUs on which engines keep failing.", self.seen.suspect_devices
        )
        yield self._family("serving_directory_gateways", "Gateways that polled this cell lately.", self.seen.gateways)

    def _of_models(self) -> Iterator[GaugeMetricFamily]:
        states = self._family("serving_engine_replicas", "Replicas by state.", None, "model", "state")
        counted = Tally((it.model, it.state) for it in self.seen.replicas if not it.rank)
        for listed in self.seen.models:
            counted.setdefault((listed.name, ReplicaState.READY), 0)
        for (model, state), count in counted.items():
            states.add_metric([self._cell, model, state], count)
        yield states
        wanted = self._family("serving_engine_wanted_replicas", "Engines that should run.", None, "model")
        shortage = self._family("serving_engine_shortage", "1 while a model cannot have what it needs.", None, "model")
        for listed in self.seen.models:
            if listed.wanted is not None:
                wanted.add_metric([self._cell, listed.name], listed.wanted)
            shortage.add_metric([self._cell, listed.name], float(listed.shortage is not None))
        yield wanted
        yield shortage
        waits = self._family("serving_engine_start_wait_seconds", "Seconds the next start would wait.", None, "model")
        for model, wait_s in self.seen.start_waits_s.items():
            waits.add_metric([self._cell, model], wait_s)
        yield waits

    def _of_replicas(self) -> Iterator[GaugeMetricFamily]:
        by_replica = ("model", "replica")
        running = self._family("serving_engine_running_requests", "Requests it computes.", None, *by_replica)
        waiting = self._family("serving_engine_waiting_requests", "Requests queued inside it.", None, *by_replica)
        used = self._family("serving_engine_kv_cache_used_ratio", "Share of its KV cache in use.", None, *by_replica)
        for it in self.seen.replicas:
            if it.state in (ReplicaState.READY, ReplicaState.DRAINING) and not it.rank:
                where = [self._cell, it.model, it.replica_id]
                running.add_metric(where, it.load.running_requests)
                waiting.add_metric(where, it.load.waiting_requests)
                used.add_metric(where, it.load.kv_cache_used_ratio)
        yield from (running, waiting, used)

    def _family(self, name: str, text: str, value: float | None, *more: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=("cell", *more))
        if value is not None:
            family.add_metric([self._cell], value)
        return family


class Metrics:
    """A directory's own registry."""

    def __init__(self, cell: str) -> None:
        # They would double the series of each counter and histogram, and no query reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._cell = plain_name(cell)
        self._now = _Now(self._cell)
        self.registry.register(self._now)
        by_model = ("cell", "model")
        self._starts = Counter("serving_engine_starts", "Engines started.", by_model, registry=self.registry)
        self._failures = Counter("serving_engine_failures", "Engines that failed.", by_model, registry=self.registry)
        self._ejections = Counter(
            "serving_engine_ejections",
            "Engines that their replica ended, by why.",
            (*by_model, "cause"),
            registry=self.registry,
        )
        self._phases = Histogram(
            "serving_engine_start_phase_seconds",
            "Seconds a start spent in one state.",
            (*by_model, "phase"),
            buckets=_PHASE_BUCKETS_S,
            registry=self.registry,
        )
        #: Replica → the state it is in, and since when.
        self._since: dict[str, tuple[ReplicaState, float]] = {}

    def record(self, report: ReplicaReport, now: float) -> None:
        """Count a report if it is a replica's first, or its state has changed. Only rank 0 of an engine counts."""
        if report.rank:
            return
        before = self._since.get(report.replica_id)
        if before and before[0] is report.state:
            return
        self._since[report.replica_id] = report.state, now
        if before is None and report.state in _PHASES:
            self._starts.labels(self._cell, report.model).inc()
        if report.state is ReplicaState.FAILED:
            self._failures.labels(self._cell, report.model).inc()
            if report.ejected in EJECTIONS:
                self._ejections.labels(self._cell, report.model, report.ejected).inc()
        elif before and before[0] in _PHASES:
            self._phases.labels(self._cell, report.model, before[0]).observe(now - before[1])

    def keep_only(self, replica_ids: Container[str]) -> None:
        """Drop the state of all other replicas."""
        self._since = {replica_id: it for replica_id, it in self._since.items() if replica_id in replica_ids}

    def render(self, seen: Snapshot) -> bytes:
        """Prometheus' text format."""
        self._now.seen = seen
        for model in seen.models:  # start at 0, so that `increase()` sees the first one
            self._starts.labels(self._cell, model.name)
            self._failures.labels(self._cell, model.name)
            for cause in EJECTIONS:
                self._ejections.labels(self._cell, model.name, cause)
        return generate_latest(self.registry)
