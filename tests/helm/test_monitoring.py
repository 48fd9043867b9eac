"""Watching: alerts and dashboards ask for metrics that exist, and monitors select what they should scrape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.config import GatewaySettings
from serving.gateway.metrics import Metrics, Snapshot
from serving.wire import ENGINE_ROUTES
from tests.helm.cells import CHART, Object, render
from tests.helm.chart import FILES, of_kind, pods, shipped

WATCHED: Object = {
    "monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboards")}
}
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))


def test_alerts_ask_for_metrics_that_exist() -> None:
    """Every metric and label of every expression is one that gateways export, whatever name Prometheus gives its parts."""
    rules = list(_rules())

    assert len(rules) >= 5
    for rule in rules:
        assert _metrics(rule["expr"]) and _metrics(rule["expr"]) <= _exported(), rule["alert"]


def test_alerts_tell_what_to_do() -> None:
    """Each has a severity, how long it must last, a summary and where to look."""
    for rule in _rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["annotations"].keys() == {"summary", "description"}


def test_alerts_are_of_this_release() -> None:
    """Two releases do not alert for each other: every selector names namespace and Service."""
    for rule in _rules():
        selectors = re.findall(r"serving_gateway_\w+(\{[^}]*\})?", rule["expr"])
        for selector in selectors:
            assert 'namespace="serving"' in selector and 'service="test-gpt-oss-serving-metrics"' in selector


def test_the_alert_of_full_gateways_follows_the_settings() -> None:
    """At 80 % of the requests a gateway may hold, by the settings' own default."""

    def limit(values: Object) -> float:
        (rule,) = [it for it in _rules(values) if it["alert"] == "ServingGatewayNearlyFull"]
        return float(rule["expr"].rpartition(">")[2])

    assert limit({}) == int(0.8 * GatewaySettings().max_open_requests)
    assert limit({"gateway": {"settings": {"max_open_requests": 2000}}}) == 1600


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_metrics_that_exist(path: Path) -> None:
    """Every query of every panel, and those of the variables."""
    board = json.loads(path.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [it["query"] for it in board["templating"]["list"] if it["type"] == "query"]

    assert len(queries) > 5
    assert {name for query in queries for name in _metrics(query)} <= _exported()


def test_dashboards_are_config_maps() -> None:
    """Each file of dashboards/ whole, with the labels by which Grafana's sidecar finds it."""
    boards = [it for it in of_kind(render(WATCHED), "ConfigMap") if "grafana_dashboard" in it["metadata"]["labels"]]

    assert [it["data"] for it in boards] == [{path.name: path.read_text()} for path in DASHBOARDS]


def test_monitors_select_what_they_scrape() -> None:
    """The gateways' Service by its port's name, Ray pods by theirs, engines by the first port of their range."""
    objects = render(WATCHED)
    (monitor,) = of_kind(objects, "ServiceMonitor")
    services = [
        it for it in of_kind(objects, "Service") if _matches(monitor["spec"]["selector"], it["metadata"]["labels"])
    ]
    by_name = {it["metadata"]["name"]: it["spec"] for it in of_kind(objects, "PodMonitor")}
    ray, engine = by_name["test-gpt-oss-serving-ray"], by_name["test-gpt-oss-serving-engine"]

    assert [it["metadata"]["name"] for it in services] == ["test-gpt-oss-serving-metrics"]
    assert [it["port"] for it in monitor["spec"]["endpoints"]] == ["metrics"]
    for pod in pods(objects):
        component = pod.labels["app.kubernetes.io/component"]
        assert _matches(ray["selector"], pod.labels) == (component in {"head", "directory", "engine"})
        assert _matches(engine["selector"], pod.labels) == (component == "engine")
        if component in {"head", "directory", "engine"}:
            assert {"name": "metrics", "containerPort": 6386} in pod.spec["containers"][0]["ports"], pod.owner
    (endpoint,) = engine["podMetricsEndpoints"]
    assert ("GET", endpoint["path"]) in ENGINE_ROUTES
    assert endpoint["authorization"]["credentials"] == {"name": "test-gpt-oss-serving-plane", "key": "plane.secret"}
    assert "scheme" not in endpoint


def test_scrapes_of_engines_follow_the_planes_tls() -> None:
    """With a certificate between the planes Prometheus speaks TLS too, and checks the one name all engines have."""
    objects = render(WATCHED | {"acknowledgePlaintextBetweenPlanes": False, "planeTls": {"secretName": "planes"}})
    (endpoint,) = next(
        it["spec"]["podMetricsEndpoints"]
        for it in of_kind(objects, "PodMonitor")
        if it["metadata"]["name"].endswith("-engine")
    )

    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["serverName"] == "engine.gpt-oss-serving"
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == "planes"


def test_nothing_foreign_is_on_by_default() -> None:
    """A cluster without Prometheus' operator takes the defaults, and so does one without cert-manager."""
    assert {it["kind"] for it in render({}) if "." in it["apiVersion"].partition("/")[0]} <= {
        "Ingress", "NetworkPolicy", "RayService", "Role", "RoleBinding",
    }  # fmt: skip


def test_every_values_file_that_watches_is_watched() -> None:
    """The files for production install monitors and alerts."""
    for name in {"dgx-2", "production", "air-gapped", "openshift"} & FILES.keys():
        assert {"ServiceMonitor", "PrometheusRule"} <= {it["kind"] for it in shipped(name)}


def _rules(values: Object | None = None) -> Iterator[Object]:
    (found,) = of_kind(render(WATCHED | (values or {})), "PrometheusRule")
    for group in found["spec"]["groups"]:
        yield from group["rules"]


def _metrics(expression: str) -> set[str]:
    return set(re.findall(r"\b[a-z]+(?:_[a-z]+){2,}\b", expression)) - {"histogram_quantile", "label_values"}


def _exported() -> set[str]:
    """Names of every sample a gateway may give."""
    names = set()
    for family in Metrics(Snapshot, GatewaySettings().slo_of).registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    return bool(selector["matchLabels"].items() <= labels.items()) and all(
        labels.get(it["key"]) in it["values"] for it in expressions
    )
