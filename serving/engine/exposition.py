"""Exposition: an engine's own metrics with this product's labels, so that one query covers every plane.

vLLM labels a model `model_name` and does not know replicas. Its page is rewritten at each scrape.
"""

from __future__ import annotations

import re

#: Names the labels to the middleware, which vLLM constructs without arguments of ours.
LABELS_VARIABLE = "_SERVING_METRIC_LABELS"

_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^\n]*)\})? (?=[^\n}]*$)", re.MULTILINE)
_MODEL_NAME = re.compile(rb'(?:^|(?<=,))model_name="(?:[^"\\]|\\.)*",?')


def labels(model: str, replica_id: str) -> str:
    """The labels of every sample of an engine; both values need no escaping (`serving.catalog`)."""
    return f'model="{model}",replica="{replica_id}"'


def relabelled(page: bytes, ours: bytes) -> bytes:
    """Prometheus' text with `ours` in every sample, in place of vLLM's `model_name`."""

    def sample(found: re.Match[bytes]) -> bytes:
        theirs = _MODEL_NAME.sub(b"", found[2] or b"").rstrip(b",")
        return found[1] + b"{" + (theirs + b"," if theirs else b"") + ours + b"} "

    return _SAMPLE.sub(sample, page)
