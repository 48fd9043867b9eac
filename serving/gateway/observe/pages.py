"""Pages: what the workers of one gateway count, added up to one page of metrics.

Counters and histograms are sums, also of workers that have died: their last page counts on, so that no sum falls (GW-54). A gauge
is a sum where each worker has its own share, and otherwise the value that tells an operator most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

#: Gauges of which each worker has a share.
SHARED = frozenset(
    f"serving_gateway_{name}"
    for name in (
        "open_requests",
        "waiting_requests",
        "queued_calls",
        "ledger_rows_waiting",
        "batches",
        "batch_lines_waiting",
        "background_responses",
    )
)
#: Those of which the least says most: one worker that lacks something is enough.
LEAST = frozenset(
    f"serving_gateway_{name}"
    for name in ("sources_up", "issuers_up", "store_up", "counters_up", "certificate_expiry_timestamp_seconds")
)
#: Those of which the most does, and those of which all workers say the same but for the moment of their last poll.
MOST = frozenset(
    f"serving_gateway_{name}"
    for name in (
        "oldest_wait_seconds",
        "ledger_lag_seconds",
        "audit_lag_seconds",
        "batch_oldest_seconds",
        "batch_stalled_seconds",
        "files_bytes",
        "outlier_replicas",
        "replicas",
        "wanted_replicas",
        "build_info",
    )
)

_Labels = tuple[tuple[str, str], ...]
#: Family → series (its name and its labels) → value.
_Values = dict[str, dict[tuple[str, _Labels], float]]


class Pages:
    """The last page of each worker. A worker keeps its place when another process takes it over."""

    def __init__(self) -> None:
        #: Name → the family without samples.
        self._families: dict[str, Metric] = {}
        self._last: dict[int, tuple[str, _Values]] = {}
        self._ended: _Values = {}

    def take(self, place: int, process: str, text: str) -> None:
        """The page of the process that has this place now."""
        values = self._read(text)
        known, before = self._last.get(place, (process, {}))
        if known != process:
            _add(self._ended, {name: it for name, it in before.items() if self._is_sum(name)})
        self._last[place] = process, values

    def render(self) -> bytes:
        """One page of all of them."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Merged(list(self._merged())))
        return generate_latest(registry)

    def _read(self, text: str) -> _Values:
        values: _Values = {}
        for family in text_string_to_metric_families(text):
            values[family.name] = {(it.name, tuple(it.labels.items())): it.value for it in family.samples}
            self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        return values

    def _is_sum(self, name: str) -> bool:
        return self._families[name].type in ("counter", "histogram")

    def _merged(self) -> Iterator[Metric]:
        pages = [values for _, values in self._last.values()]
        for name, family in self._families.items():
            whole = Metric(name, family.documentation, family.type)
            kept = [self._ended] if self._is_sum(name) else []
            series = _joined([page.get(name, {}) for page in [*pages, *kept]], self._rule(name))
            whole.samples = [Sample(sample, dict(labels), value) for (sample, labels), value in series.items()]
            yield whole

    def _rule(self, name: str) -> Callable[[Iterable[float]], float]:
        if self._is_sum(name) or name in SHARED:
            return sum
        return min if name in LEAST else max


class _Merged(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _joined(
    pages: Sequence[Mapping[tuple[str, _Labels], float]], rule: Callable[[Iterable[float]], float]
) -> dict[tuple[str, _Labels], float]:
    found: dict[tuple[str, _Labels], list[float]] = {}
    for page in pages:
        for series, value in page.items():
            found.setdefault(series, []).append(value)
    return {series: rule(values) for series, values in found.items()}


def _add(total: _Values, values: Mapping[str, Mapping[tuple[str, _Labels], float]]) -> None:
    for name, series in values.items():
        known = total.setdefault(name, {})
        for key, value in series.items():
            known[key] = known.get(key, 0.0) + value
