"""Exposition: an engine's own metrics with this product's labels, so that one query covers every plane.

vLLM labels a model `model_name` and does not know replicas. Its page is rewritten at each scrape.

The page has some 600 samples, of which a replica reads ten, twice a second: it asks for those by Prometheus' `name[]`, which
vLLM's own route ignores (CELL-26).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import parse_qs

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

#: Names the labels to the middleware, which vLLM constructs without arguments of ours.
LABELS_VARIABLE = "_SERVING_METRIC_LABELS"

#: Where vLLM's API servers share what they count, when there are several (prometheus_client's own variable).
_SHARED_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_NAME = "name[]"
#: What `chosen` is written as.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^\n]*)\})? (?=[^\n}]*$)", re.MULTILINE)
_MODEL_NAME = re.compile(rb'(?:^|(?<=,))model_name="(?:[^"\\]|\\.)*",?')


def labels(model: str, replica_id: str) -> str:
    """The labels of every sample of an engine; both values need no escaping (`serving.catalog`)."""
    return f'model="{model}",replica="{replica_id}"'


def names(query: bytes) -> list[str]:
    """The samples that a scrape's query asks for; none where it asks for the whole page."""
    return parse_qs(query.decode("latin-1")).get(_NAME, [])


def chosen(samples: Iterable[str]) -> bytes:
    """Prometheus' text of these samples alone, those of all API servers together. Reads files where there are several."""
    registry = REGISTRY
    if _SHARED_VARIABLE in os.environ:
        # Otherwise a part of it lacks collectors that do not say what they collect, of which this is one.
        registry = CollectorRegistry(support_collectors_without_names=True)
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client has no types for it
    return generate_latest(registry.restricted_registry(samples))


def relabelled(page: bytes, ours: bytes) -> bytes:
    """Prometheus' text with `ours` in every sample, in place of vLLM's `model_name`."""

    def sample(found: re.Match[bytes]) -> bytes:
        theirs = _MODEL_NAME.sub(b"", found[2] or b"").rstrip(b",")
        return found[1] + b"{" + (theirs + b"," if theirs else b"") + ours + b"} "

    return _SAMPLE.sub(sample, page)
