"""Watch: how many replicas there were, read from the gateway's own metrics while the load runs."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from urllib.error import URLError

import msgspec
from prometheus_client.parser import text_string_to_metric_families

REPLICAS = "serving_gateway_replicas"
WANTED = "serving_gateway_wanted_replicas"


class Sighting(msgspec.Struct, frozen=True):
    """One look: seconds since the start, and of each model its replicas by state and how many are wanted."""

    at_s: float
    replicas: dict[str, dict[str, float]]
    wanted: dict[str, float]


def sighting(at_s: float, exposition: str) -> Sighting:
    """What Prometheus' text format says of replicas. Raises ValueError for another format."""
    replicas: dict[str, dict[str, float]] = {}
    wanted: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == REPLICAS:
                replicas.setdefault(sample.labels["model"], {})[sample.labels["state"]] = sample.value
            elif sample.name == WANTED:
                wanted[sample.labels["model"]] = sample.value
    return Sighting(at_s, replicas, wanted)


def look(url: str, clock: Callable[[], float], timeout_s: float = 5.0) -> Sighting | None:
    """One look at a `/metrics`; None when nothing answers there, or something else than a gateway does."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return sighting(clock(), answer.read().decode())
    except (URLError, OSError, ValueError, KeyError):
        return None
