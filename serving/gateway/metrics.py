"""Metrics: everything this plane counts, declared together, and the one log line each request leaves.

Labels are few and bounded: routes and outcomes are ours, models are those the fleet lists. No tenant, key or request id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.gateway.fleet import Model
from serving.gateway.ledger import Usage

#: Seconds; from a cached short prompt on a GPU to a long prompt in a queue.
_TTFT_BUCKETS_S = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120)
#: Seconds; up to the longest a request may take.
_DURATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
NO_MODEL = "unknown"
#: Asked every few seconds by machines: their lines would bury everyone else's.
PROBES = ("/health/", "/metrics")

access_log = logging.getLogger("serving.access")


class AccessLine(msgspec.Struct, frozen=True):
    """One request as the log has it: who, what, how it went. Never what was said."""

    request_id: str
    route: str
    status: int
    outcome: str
    duration_s: float
    tenant: str | None = None
    key_id: str | None = None
    model: str | None = None
    replica_id: str | None = None
    ttft_s: float | None = None
    retries: int = 0
    usage: Usage = Usage()


class _ReplicaStates(Collector):
    """Replicas by state, read from the fleet when asked."""

    def __init__(self, models: Callable[[], Iterable[Model]]) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "serving_gateway_replicas", "Replicas this gateway knows.", labels=["model", "state"]
        )
        for model in self._models():
            for state, count in model.states.items():
                family.add_metric([model.name, state], count)
        yield family
        wanted = GaugeMetricFamily(
            "serving_gateway_wanted_replicas",
            "Replicas that the directories want, as this gateway heard.",
            labels=["model"],
        )
        for model in self._models():
            if model.wanted is not None:
                wanted.add_metric([model.name], model.wanted)
        yield wanted
        waiting = GaugeMetricFamily(
            "serving_gateway_waiting_requests",
            "Requests that this gateway holds because no replica can take them.",
            labels=["model"],
        )
        for model in self._models():
            waiting.add_metric([model.name], model.waiting_requests)
        yield waiting


class Metrics:
    """A gateway's own registry."""

    def __init__(self, models: Callable[[], Iterable[Model]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_ReplicaStates(models))
        by_call = ("route", "model")
        self._requests = Counter(
            "serving_gateway_requests", "Requests answered.", (*by_call, "outcome"), registry=self.registry
        )
        self._ttft = Histogram(
            "serving_gateway_time_to_first_token_seconds",
            "Seconds from a request's arrival to the first byte of its answer, streams only.",
            by_call,
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self._duration = Histogram(
            "serving_gateway_request_duration_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            by_call,
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self._tokens = Counter(
            "serving_gateway_tokens", "Tokens billed, exact or estimated.", ("model", "kind"), registry=self.registry
        )
        self._retries = Counter(
            "serving_gateway_upstream_retries", "Attempts at replicas that failed.", ("model",), registry=self.registry
        )
        self._open = Gauge("serving_gateway_open_requests", "Requests held now.", registry=self.registry)

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Counted as open while inside."""
        self._open.inc()
        try:
            yield
        finally:
            self._open.dec()

    def settle(self, line: AccessLine, model: str | None) -> None:
        """Count one request and write its line, a probe's at DEBUG; `model` is a served one or None."""
        label = model or NO_MODEL
        self._requests.labels(line.route, label, line.outcome).inc()
        self._duration.labels(line.route, label).observe(line.duration_s)
        if line.ttft_s is not None:
            self._ttft.labels(line.route, label).observe(line.ttft_s)
        if line.retries:
            self._retries.labels(label).inc(line.retries)
        self._count_tokens(line, label)
        level = logging.DEBUG if line.route.startswith(PROBES) else logging.INFO
        access_log.log(level, msgspec.json.encode(line).decode())

    def _count_tokens(self, line: AccessLine, label: str) -> None:
        kinds = {
            "prompt": line.usage.prompt_tokens,
            "completion": line.usage.completion_tokens,
            "cached_prompt": line.usage.cached_prompt_tokens,
            "reasoning": line.usage.reasoning_tokens,
        }
        for kind, tokens in kinds.items():
            if tokens:
                self._tokens.labels(label, kind).inc(tokens)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
