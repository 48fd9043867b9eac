"""Exposition: samples out of Prometheus' text format, as the gateway and vLLM write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.parser import text_string_to_metric_families


class Sample(msgspec.Struct, frozen=True):
    """One line."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(text: str) -> Iterator[Sample]:
    """Every sample; raises ValueError where the text is none of that format."""
    for family in text_string_to_metric_families(text):
        for it in family.samples:
            yield Sample(it.name, it.labels, it.value)


def by_label(found: list[Sample], name: str, label: str) -> dict[str, float]:
    """Sums of one metric by one of its labels."""
    sums: dict[str, float] = {}
    for it in found:
        if it.name == name:
            key = it.labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + it.value
    return sums
