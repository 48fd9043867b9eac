"""Backlog: what runs without a client that waits, in numbers: batches, calls in the background, and the bytes of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

#: Where a batch may be that a gateway runs, in OpenAI's words.
STATUSES = ("validating", "in_progress", "finalizing", "cancelling")
#: What becomes of a line.
COMPLETED, FAILED = RESULTS = ("completed", "failed")


class Backlog(msgspec.Struct, frozen=True):
    """One gateway's, as it is when asked."""

    #: Status → batches that run here.
    batches: Mapping[str, int] = {}
    #: Their lines that are not done.
    lines_waiting: int = 0
    #: Result → lines that were done here.
    lines: Mapping[str, int] = {}
    #: Batches that were taken over from a gateway that died.
    takeovers: int = 0
    #: Age of the oldest open batch, wherever it runs.
    oldest_s: float = 0.0
    #: How long a batch here has not moved, though nothing held it back.
    stalled_s: float = 0.0
    #: Responses that run in the background here.
    background: int = 0
    #: Of all tenants' files, as last added up.
    files_bytes: int = 0


def families(seen: Backlog) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    """As Prometheus has it."""
    batches = GaugeMetricFamily("serving_gateway_batches", "Batches that run here.", labels=["status"])
    for status in STATUSES:
        batches.add_metric([status], seen.batches.get(status, 0))
    yield batches
    lines = CounterMetricFamily("serving_gateway_batch_lines", "Lines of batches that were done.", labels=["result"])
    for result in RESULTS:
        lines.add_metric([result], seen.lines.get(result, 0))
    yield lines
    taken = "Batches taken over from gateways that died."
    yield CounterMetricFamily("serving_gateway_batch_takeovers", taken, value=seen.takeovers)
    for name, text, value in (
        ("batch_lines_waiting", "Lines of its batches that are not done.", seen.lines_waiting),
        ("batch_oldest_seconds", "Age of the oldest open batch.", seen.oldest_s),
        ("batch_stalled_seconds", "Seconds without a step of a batch that nothing holds back.", seen.stalled_s),
        ("background_responses", "Responses that run in the background.", seen.background),
        ("files_bytes", "Bytes of all files.", seen.files_bytes),
    ):
        yield GaugeMetricFamily(f"serving_gateway_{name}", text, value=float(value))
