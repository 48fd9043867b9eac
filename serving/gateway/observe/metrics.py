"""Metrics: everything this plane counts, declared together. `deploy/metrics.yaml` says what each means and where to look.

Labels are few and bounded: routes, outcomes and reasons are ours, models are those the fleet lists, tenants as many as
`TENANTS_MAX`. No key and no request id.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.metadata import version

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serving.config import Slo
from serving.gateway.fleet.fleet import Model
from serving.gateway.ledger.prices import MICROS
from serving.gateway.nouns import CallRecord, Decision, Failure, Handover, InterTokenLatency, Outcome
from serving.gateway.observe import backlog
from serving.gateway.observe.backlog import Backlog
from serving.gateway.observe.slo import Verdict, judge_call
from serving.wire import ReplicaState

#: Seconds; from a cached short prompt on a GPU to a long prompt in a queue.
_TTFT_BUCKETS_S = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120)
#: Seconds a call waits for a replica; most do not, and none longer than a cold start.
_WAITING_BUCKETS_S = (0.001, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
#: Seconds per token: a reader follows ten tokens a second, and a batch makes do with one.
_TPOT_BUCKETS_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
#: Seconds; up to the longest a request may take.
_DURATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
#: Requests that are counted together, in less than a millisecond. Alone, one finds nothing of all this in the CPU's caches
#: and takes 35 us instead of 21 (measured in a gateway that streams).
GROUP = 32
#: Seconds that the page's thread may hold the interpreter while the event loop wants it: Python's own 5 ms are a pause in every
#: stream (OBS-11).
TURN_S = 0.0005
NO_MODEL = "unknown"
#: Tenants with series of their own, about 0.5 KB each; those beyond share one.
TENANTS_MAX = 1000
OTHER_TENANTS = "(others)"
#: Of `Usage`, each without its `_tokens`.
TOKEN_KINDS = ("prompt", "completion", "cached_prompt", "reasoning")


#: What a retry budget said.
GRANTED, REFUSED = BUDGET_DECISIONS = ("granted", "refused")


class Snapshot(msgspec.Struct, frozen=True):
    """What is as it is when asked."""

    models: Sequence[Model] = ()
    #: Directory or engine → did it answer the last poll?
    sources_up: Mapping[str, bool] = {}
    #: Issuer of single sign-on → did it publish its keys when last asked?
    issuers_up: Mapping[str, bool] = {}
    ledger_rows_waiting: int = 0
    ledger_lag_s: float = 0.0
    audit_lag_s: float = 0.0
    is_store_up: bool = True
    #: Certificate → when it ends, in seconds since the epoch.
    certificates_end_at_s: Mapping[str, float] = {}
    #: Model and priority class → calls that wait for a place in its fleet.
    queued: Mapping[tuple[str, str], int] = {}
    #: Of this process, 1 if it has taken a dead worker's place: the sum over all is how many died.
    workers_replaced: int = 0
    #: Are limits counted where they are meant to be?
    is_counting_together: bool = True
    #: Decisions on this gateway's share of limits.
    decisions_alone: int = 0
    backlog: Backlog = Backlog()


class _Now(Collector):
    """The last snapshot as Prometheus has it."""

    def __init__(self) -> None:
        self.seen = Snapshot()

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        seen = self.seen
        yield from _of_models(seen.models)
        queued = _empty("queued_calls", "Calls that wait for a place in a full fleet.", "model", "priority")
        for labels, calls in seen.queued.items():
            queued.add_metric(labels, calls)
        yield queued
        yield _family(
            "sources_up", "Whether a directory or an engine answered the last poll.", "source", seen.sources_up
        )
        yield _family(
            "issuers_up",
            "Whether an issuer of single sign-on published its keys when last asked.",
            "issuer",
            seen.issuers_up,
        )
        yield _alone("ledger_rows_waiting", "Rows in memory that the store has not got.", seen.ledger_rows_waiting)
        yield _alone("ledger_lag_seconds", "Seconds since every row was in the store.", seen.ledger_lag_s)
        yield _alone("audit_lag_seconds", "Seconds since every entry was in the store.", seen.audit_lag_s)
        yield _alone("store_up", "Whether the last use of the store worked.", seen.is_store_up)
        yield _family(
            "certificate_expiry_timestamp_seconds",
            "When a certificate in use ends.",
            "certificate",
            seen.certificates_end_at_s,
        )
        replaced = "Workers that died or hung and were replaced."
        yield CounterMetricFamily("serving_gateway_workers_replaced", replaced, value=seen.workers_replaced)
        together = "Whether limits are counted by all gateways together."
        yield _alone("counters_up", together, seen.is_counting_together)
        alone = "Decisions on limits by this gateway's share of them."
        yield CounterMetricFamily("serving_gateway_counters_alone_decisions", alone, value=seen.decisions_alone)
        yield from backlog.families(seen.backlog)


class _InterTokenOfModels(Collector):
    """Gaps between the pieces of streams, by model."""

    def __init__(self) -> None:
        self.by_model: dict[str, InterTokenLatency] = {}

    def collect(self) -> Iterator[HistogramMetricFamily]:
        name = "serving_gateway_inter_token_seconds"
        family = HistogramMetricFamily(name, "Seconds between two pieces of one stream.", labels=["model"])
        for model, latency in list(self.by_model.items()):
            family.add_metric([model], latency.buckets(), latency.total_s)
        yield family


class Metrics:
    """A gateway's own registry."""

    def __init__(self, snapshot: Callable[[], Snapshot], slo_of: Callable[[str], Slo]) -> None:
        # Another series for each counter and histogram, which says when it began and is of no use here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        #: One page is written at a time.
        self._page = asyncio.Lock()
        self._slo_of = slo_of
        self._tenants: set[str] = set()
        self._uncounted: deque[CallRecord] = deque()
        self._inter_token = _InterTokenOfModels()
        self._snapshot = snapshot
        #: What says how much is to be done; the parts that know it are put together later.
        self.backlog: Callable[[], Backlog] = Backlog
        self._now = _Now()
        self.registry.register(self._now)
        self.registry.register(self._inter_token)
        self._declare_requests()
        self._declare_calls()
        #: Models whose series stand at 0, so that their first increase is seen as one.
        self._prepared: set[str] = set()
        built = Gauge("serving_gateway_build_info", "This gateway's version.", ["version"], registry=self.registry)
        built.labels(version("gpt-oss-serving")).set(1)

    def _declare_requests(self) -> None:
        by_call = ("route", "model")
        self._requests = self._counter("requests", "Requests ended.", *by_call, "outcome", "reason")
        self._ttft = self._histogram(
            "time_to_first_token_seconds",
            "Seconds from a request's arrival to the first byte of its stream, without those its body took to come.",
            _TTFT_BUCKETS_S,
            *by_call,
        )
        self._duration = self._histogram(
            "request_duration_seconds",
            "Seconds from a request's arrival to the end of its answer, the client's own included.",
            _DURATION_BUCKETS_S,
            *by_call,
        )
        self._tenant_requests = self._counter("tenant_requests", "Requests ended.", "tenant", "outcome")
        self._tenant_tokens = self._counter("tenant_tokens", "Tokens billed.", "tenant", "kind")
        self._tenant_cost = self._counter("tenant_cost", "Money billed, in the currency of the prices.", "tenant")
        self._over_budget = self._counter("tenant_over_soft_budget", "Calls beyond a month's soft budget.", "tenant")
        self._one_open = _OneMore(Gauge("serving_gateway_open_requests", "Requests held now.", registry=self.registry))

    def _declare_calls(self) -> None:
        self._tokens = self._counter("tokens", "Tokens billed, exact or estimated.", "model", "kind")
        self._waiting = self._histogram(
            "waiting_seconds", "Seconds a call waited for a replica that could take it.", _WAITING_BUCKETS_S, "model"
        )
        self._queue_s = self._histogram(
            "queue_seconds",
            "Seconds a call waited for a place in a full fleet.",
            _WAITING_BUCKETS_S,
            "model",
            "priority",
        )
        self._queue_outcomes = self._counter(
            "queue_outcomes", "What became of calls that had to wait for a place.", "model", "priority", "outcome"
        )
        self._tpot = self._histogram(
            "time_per_output_token_seconds",
            "Seconds per token after the first, the mean of one stream, without those its client took to read.",
            _TPOT_BUCKETS_S,
            "model",
        )
        self._admissions = self._counter("admissions", "What became of calls that were in order.", "model", "decision")
        self._retries = self._counter("upstream_retries", "Attempts at replicas that failed.", "model", "failure")
        self._budgeted = self._counter("retry_budget", "Retries that were due.", "model", "decision")
        self._continuations = self._counter("continuations", "Streams that went on at another engine.", "model")
        self._handovers = self._counter("prefill_handovers", "Prompts for other engines.", "model", "handover")
        self._ejections = self._counter("outlier_ejections", "Replicas ejected as outliers.", "model")
        self._bytes = self._counter("relayed_bytes", "Bytes of answers passed on.", "model")
        self._keep_alives = self._counter("keep_alives", "Comments sent while an engine said nothing.", "model")
        self._slo = self._counter("slo_requests", "Calls judged by their model's SLO.", "model", "verdict")
        self._lost = self._counter("replicas_lost", "Replicas whose addresses refused connections.", "model")

    def _counter(self, name: str, text: str, *labels: str) -> Callable[..., Counter]:
        """From values of its labels to one series. The library's own way there takes 1.4 us, a dozen times a request."""
        return cache(Counter(f"serving_gateway_{name}", text, labels, registry=self.registry).labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Callable[..., Histogram]:
        return cache(Histogram(f"serving_gateway_{name}", text, labels, buckets=buckets, registry=self.registry).labels)

    def _prepare(self, model: str) -> None:
        if model in self._prepared:
            return
        self._prepared.add(model)
        for counter, values in (
            (self._slo, Verdict),
            (self._admissions, Decision),
            (self._retries, Failure),
            (self._tokens, TOKEN_KINDS),
            (self._budgeted, BUDGET_DECISIONS),
            (self._handovers, Handover),
        ):
            for value in values:
                counter(model, value)
        for plain in (self._bytes, self._keep_alives, self._lost, self._ejections, self._continuations):
            plain(model)

    def open_request(self) -> AbstractContextManager[None]:
        """Counted as open while inside."""
        return self._one_open

    def settle(self, record: CallRecord) -> None:
        """Count one request that is over."""
        # Without what was said, which would stay in memory until the next scrape.
        kept = msgspec.structs.replace(record, prompt=None) if record.prompt else record
        self._uncounted.append(kept)
        if len(self._uncounted) >= GROUP:
            self._count_all()

    def _count_all(self) -> None:
        # One at a time: should one be impossible to count, the others are not lost with it.
        while self._uncounted:
            self._count(self._uncounted.popleft())

    def _count(self, record: CallRecord) -> None:
        route, model = record.route.label, _model_label(record)
        self._requests(route, model, record.outcome, record.reason).inc()
        self._duration(route, model).observe(record.duration_s)
        if record.ttft_s is not None:
            self._ttft(route, model).observe(record.ttft_s)
        if record.tenant is not None:
            self._count_tenant(record, record.tenant)
        if record.decision:
            self._admissions(model, record.decision).inc()
        if record.asked_for_engine:
            self._count_call(record, model)
        if record.route.is_billed and record.batch_id is None:
            self._judge(record, model)

    def _count_tenant(self, record: CallRecord, tenant: str) -> None:
        if tenant not in self._tenants:
            tenant = tenant if len(self._tenants) < TENANTS_MAX else OTHER_TENANTS
            self._tenants.add(tenant)
        self._tenant_requests(tenant, record.outcome).inc()
        usage = record.usage
        for kind, tokens in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            if tokens > 0:
                self._tenant_tokens(tenant, kind).inc(tokens)
        if record.price_micros:
            self._tenant_cost(tenant).inc(record.price_micros / MICROS)
        if record.is_over_soft_budget:
            self._over_budget(tenant).inc()

    def _count_call(self, record: CallRecord, model: str) -> None:
        self._waiting(model).observe(record.waited_s)
        if record.queued is not None:
            self._queue_s(model, record.priority).observe(record.queued_s)
            self._queue_outcomes(model, record.priority, record.queued).inc()
        self._bytes(model).inc(record.bytes_relayed)
        if record.keep_alives:
            self._keep_alives(model).inc(record.keep_alives)
        for failure, count in record.failures.items():
            self._retries(model, failure).inc(count)
        for handover, count in record.handovers.items():
            self._handovers(model, handover).inc(count)
        if record.retries_granted:
            self._budgeted(model, GRANTED).inc(record.retries_granted)
        if record.is_retry_refused:
            self._budgeted(model, REFUSED).inc()
        if record.continuations:
            self._continuations(model).inc(record.continuations)
        if record.replicas_ejected:
            self._ejections(model).inc(record.replicas_ejected)
        if record.replicas_lost:
            self._lost(model).inc(record.replicas_lost)
        if record.inter_token is not None:
            self._inter_token.by_model.setdefault(model, InterTokenLatency()).add(record.inter_token)
        self._count_tokens(record, model)

    def _judge(self, record: CallRecord, model: str) -> None:
        tokens = record.usage.completion_tokens
        if record.ttft_s is not None and tokens > 1 and record.outcome is Outcome.OK:
            self._tpot(model).observe((record.served_s - record.ttft_s) / (tokens - 1))
        if verdict := judge_call(self._slo_of(model), record):
            self._slo(model, verdict).inc()

    def _count_tokens(self, record: CallRecord, model: str) -> None:
        usage = record.usage
        counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens, usage.reasoning_tokens)
        for kind, tokens in zip(TOKEN_KINDS, counts, strict=True):
            if tokens > 0:
                self._tokens(model, kind).inc(tokens)

    async def render(self) -> bytes:
        """Prometheus' text format: written in a thread, because a thousand tenants take long enough to hold up streams."""
        self._count_all()
        self._now.seen = msgspec.structs.replace(self._snapshot(), backlog=self.backlog())
        for model in self._now.seen.models:
            self._prepare(model.name)
        async with self._page:
            with _short_turns():
                return await asyncio.to_thread(generate_latest, self.registry)


class _OneMore(AbstractContextManager[None]):
    """One more of what a gauge counts while inside, for any number at a time."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def __enter__(self) -> None:
        self._gauge.inc()

    def __exit__(self, *_: object) -> None:
        self._gauge.dec()


@contextmanager
def _short_turns() -> Iterator[None]:
    """Threads take short turns inside."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _model_label(record: CallRecord) -> str:
    """A served model's name; any other is a client's invention."""
    return record.model if record.model and record.is_model_listed else NO_MODEL


def _of_models(models: Sequence[Model]) -> Iterator[GaugeMetricFamily]:
    replicas = _empty("replicas", "Replicas this gateway knows.", "model", "state")
    for model in models:
        for state, count in ({ReplicaState.READY: 0} | model.states).items():
            replicas.add_metric([model.name, state], count)
    yield replicas
    wanted = {model.name: model.wanted for model in models if model.wanted is not None}
    yield _family("wanted_replicas", "Replicas that the directories want, as last reported here.", "model", wanted)
    outliers = _empty("outlier_replicas", "Replicas that get no calls, or few, because they failed.", "model", "state")
    for model in models:
        outliers.add_metric([model.name, "ejected"], model.ejected)
        outliers.add_metric([model.name, "returning"], model.returning)
    yield outliers
    waiting = {model.name: model.waiting_requests for model in models}
    yield _family("waiting_requests", "Requests held because no replica can take them.", "model", waiting)
    oldest = {model.name: model.oldest_wait_s for model in models}
    yield _family("oldest_wait_seconds", "Seconds the first of them has waited.", "model", oldest)


def _empty(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"serving_gateway_{name}", text, labels=labels)


def _family(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = _empty(name, text, label)
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _alone(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"serving_gateway_{name}", text, value=float(value))
