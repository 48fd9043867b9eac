"""The catalogue of metrics: its page is in step, its names carry units, and it is held against what is exported."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

import metrics_catalog
from metrics_catalog import Metric, catalog
from serving.config import GatewaySettings
from serving.engine.directory import Listing
from serving.gateway.observe.metrics import Metrics, Snapshot
from tests.clock import Clock
from tests.monitoring.catalog import differences, differences_of_text, exposition
from tests.monitoring.queries import DASHBOARDS

OURS = [*catalog().plane("gateway").metrics, *catalog().plane("directory").metrics]
#: How names end, and the unit that this says.
ENDINGS = {
    "_seconds": "seconds", "_bytes_total": "bytes", "_ratio": "ratio", "_timestamp_seconds": "Unix seconds",
    "_tokens_total": "tokens", "_requests": "requests", "_requests_total": "requests", "_replicas": "replicas",
}  # fmt: skip


def test_the_page_is_in_step() -> None:
    """deploy/metrics.md is what deploy/metrics_catalog.py writes today."""
    assert metrics_catalog.PAGE.read_text() == metrics_catalog.page(catalog())


@pytest.mark.parametrize("metric", OURS, ids=lambda it: it.name)
def test_names_carry_units(metric: Metric) -> None:
    """Ours begin with the plane, counters end in _total and nothing else does, and the ending is the unit."""
    ending = max((it for it in ENDINGS if metric.name.endswith(it)), key=len, default="")

    assert re.fullmatch(r"serving_(gateway|engine|directory)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert not ending or metric.unit == ENDINGS[ending]


@pytest.mark.parametrize("metric", list(catalog().metrics), ids=lambda it: it.name)
def test_entries_are_whole(metric: Metric) -> None:
    """Each says in a sentence what is counted and where to look; boards that it names exist."""
    assert metric.meaning.endswith(".") and metric.look.endswith(".")
    assert set(re.findall(r"[Bb]oard \*(\w+)\*", metric.look)) <= {path.stem for path in DASHBOARDS}
    assert "|" not in metric.meaning + metric.look, "a table's own character"


def test_labels_are_explained_once() -> None:
    """Every label has a sentence, and every sentence a label."""
    assert {label for it in catalog().metrics for label in it.labels} == catalog().labels.keys()


def test_names_are_unique() -> None:
    """No two metrics share a sample."""
    samples = [sample for it in catalog().metrics for sample in it.samples]

    assert len(samples) == len(set(samples))


@pytest.mark.parametrize("metric", OURS, ids=lambda it: it.name)
def test_every_metric_of_ours_is_looked_at(metric: Metric) -> None:
    """What is exported is on a board: a figure that nobody sees is not worth its series."""
    boards = "".join(json.dumps(json.loads(path.read_text())["panels"]) for path in DASHBOARDS)

    assert any(re.search(rf"\b{sample}\b", boards) for sample in metric.samples)


def test_gateways_export_the_catalogue() -> None:
    """A gateway's registry has every metric of the catalogue, of that type and with these labels, and no other."""
    assert differences("gateway", Metrics(Snapshot, GatewaySettings().slo_of).registry.collect()) == []


def test_directories_export_the_catalogue() -> None:
    """So has a directory's."""
    text = Listing("a", "one", Clock()).metrics().decode()
    assert differences_of_text("directory", text) == []


def test_an_exposition_of_the_catalogue_has_no_differences() -> None:
    """What the other tests export is what the catalogue says, of every plane."""
    for plane in catalog().planes:
        assert differences_of_text(plane.name, exposition(plane, 3)) == [], plane.name


def test_differences_are_found() -> None:
    """A missing metric, an unknown one, another type, another label and an unknown value are one sentence each."""
    registry = CollectorRegistry()
    Counter("serving_gateway_admissions", "", ("model", "decision"), registry=registry).labels("m", "delayed")
    Counter("serving_gateway_surprises", "", registry=registry)
    Counter("serving_gateway_open_requests", "", registry=registry)
    Gauge("serving_gateway_waiting_requests", "", ("model", "key"), registry=registry).labels("m", "k")

    found = differences("gateway", registry.collect())

    assert {
        "serving_gateway_admissions_total has decision='delayed', "
        "which is not one of admitted, waited, refused_full, refused_wait, refused_key",
        "serving_gateway_surprises is not in the catalogue",
        "serving_gateway_open_requests is a counter, not a gauge",
        "serving_gateway_waiting_requests has the labels ['key', 'model'], not ['model']",
        "serving_gateway_store_up is not exported",
    } <= set(found)
    assert not any("is not" in it and "exported" in it for it in differences("gateway", registry.collect(), False))
