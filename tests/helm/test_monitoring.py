"""Watching: rules are this release's and follow the values, dashboards are handed over whole, monitors select what they should scrape.

What the rules and dashboards ask for is held against the catalogue of metrics in tests/monitoring.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from serving.config import GatewaySettings
from serving.wire import DIRECTORY_ROUTE, ENGINE_ROUTES
from tests.helm.cells import CHART, GIVEN, Object, cells, helm_binary, render
from tests.helm.chart import FILES, named, of_kind, pods, shipped
from tests.monitoring.prometheus import promtool
from tests.monitoring.queries import DASHBOARDS, selectors
from tests.monitoring.rules import alerts, groups

WATCHED: Object = {
    "monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboards")}
}
#: Each metric's beginning, and the label besides the namespace by which a release's own are selected.
OWN = {
    "serving_gateway_": ("service", "test-gpt-oss-serving-metrics"),
    "serving_engine_": ("job", "serving/test-gpt-oss-serving-directory"),
    "serving_directory_": ("job", "serving/test-gpt-oss-serving-directory"),
    "vllm:": ("job", "serving/test-gpt-oss-serving-engine"),
    "model:": ("service", "test-gpt-oss-serving-metrics"),
    "serving_gpu:": ("release", "test"),
}


def test_rules_are_of_this_release() -> None:
    """Two releases do not alert for each other, in one namespace either; GPUs are those of the namespace's pods."""
    for rule in (rule for group in groups() for rule in group["rules"]):
        for metric, matchers in selectors(rule["expr"]):
            given = {label: text for label, operator, text in matchers if operator == "="}
            if metric.startswith("DCGM_"):
                assert "serving" in (given.get("namespace"), given.get("exported_namespace")), rule
                continue
            (own,) = (label for beginning, label in OWN.items() if metric.startswith(beginning))
            assert given["namespace"] == "serving" and given[own[0]] == own[1], rule


def test_nothing_of_the_rules_is_left_open() -> None:
    """Every <word> of files/rules.yaml has got its text."""
    assert re.findall(r"<\w+>", yaml.safe_dump(groups())) == []


def test_alerts_follow_the_settings() -> None:
    """The limits of gateways are the settings' own defaults, or what the values say."""

    def limits(values: Object) -> tuple[str, str]:
        found = alerts(values)
        full, age = (found[name]["expr"] for name in ("ServingGatewayNearlyFull", "ServingQueueAge"))
        return full.rpartition("> ")[2], age.partition("> ")[2].partition("\n")[0]

    defaults = GatewaySettings()
    given = {"gateway": {"settings": {"max_open_requests": 2000000}, "timeouts": {"replica_wait_s": 45}}}

    assert limits({}) == (f"0.8 * {defaults.max_open_requests}", f"0.5 * {defaults.timeouts.replica_wait_s:g}")
    assert limits(given) == ("0.8 * 2000000", "0.5 * 45")


def test_burn_rates_follow_the_objective() -> None:
    """What may miss the SLO is what the objective leaves."""
    values = {"monitoring": {"prometheusRule": {"sloObjective": 0.999}}}

    assert "14.4 * (1 - 0.999)" in alerts(values)["ServingSloBurnsFast"]["expr"]
    assert "> 1 - 0.999" in alerts(values)["ServingSloBurnsSlowly"]["expr"]


def test_paused_cells_may_be_silent() -> None:
    """A cell that was paused on purpose alerts nobody."""
    some = alerts({"cells": {"a": {}, "b": {"paused": True}, "c": {"paused": True}}})

    assert 'source!~""' in alerts()["ServingCellSilent"]["expr"]
    assert 'source!~"b|directory-1|c|directory-2"' in some["ServingCellSilent"]["expr"]


def test_rules_without_the_operator(tmp_path: Path) -> None:
    """The README's command writes the same rules as a file that any Prometheus loads."""
    readme = (CHART.parent / "deploy" / "README.md").read_text()
    (command,) = re.findall(r"^helm template serving helm (?:.*\\\n)*.*> (?:\S+)$", readme, re.M)
    (tmp_path / "values.yaml").write_text(json.dumps(GIVEN))
    (tmp_path / "helm").symlink_to(CHART)
    line = re.sub("^helm", shlex.quote(helm_binary()), command)

    subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=tmp_path, check=True)

    file = command.rpartition("> ")[2]
    written = yaml.safe_load((tmp_path / file).read_text())["groups"]
    assert [rule.keys() for group in written for rule in group["rules"]] == [
        rule.keys() for group in groups() for rule in group["rules"]
    ]
    assert 'service="serving-gpt-oss-serving-metrics"' in (tmp_path / file).read_text()
    assert promtool("check", "rules", file, folder=tmp_path).returncode == 0


def test_dashboards_are_config_maps() -> None:
    """Each file of dashboards/ whole, with the labels by which Grafana's sidecar finds it."""
    boards = [it for it in of_kind(render(WATCHED), "ConfigMap") if "grafana_dashboard" in it["metadata"]["labels"]]

    assert len(DASHBOARDS) == 6
    assert [it["data"] for it in boards] == [{path.name: path.read_text()} for path in DASHBOARDS]


def test_monitors_select_what_they_scrape() -> None:
    """The gateways' Service by its port's name, Ray pods by theirs, directories at heads, engines among the engines' pods."""
    objects = render(WATCHED)
    (monitor,) = of_kind(objects, "ServiceMonitor")
    services = [
        it for it in of_kind(objects, "Service") if _matches(monitor["spec"]["selector"], it["metadata"]["labels"])
    ]
    ray, directory, engine = (_monitor(objects, name) for name in ("ray", "directory", "engine"))

    assert [it["metadata"]["name"] for it in services] == ["test-gpt-oss-serving-metrics"]
    assert [it["port"] for it in monitor["spec"]["endpoints"]] == ["metrics"]
    for pod in pods(objects):
        component = pod.labels["app.kubernetes.io/component"]
        ports = {it["name"]: it["containerPort"] for it in pod.spec["containers"][0].get("ports", []) if "name" in it}
        assert _matches(ray["selector"], pod.labels) == (component in {"head", "directory", "engine"})
        assert _matches(directory["selector"], pod.labels) == (component == "head")
        assert _matches(engine["selector"], pod.labels) == (component == "engine")
        if component in {"head", "directory", "engine"}:
            # The operator makes a target of a declared port only.
            assert ports["metrics"] == 6386 and ports["serve"] == 8000, pod.owner
    assert [it["port"] for it in engine["podMetricsEndpoints"]] == ["metrics"]
    assert [it["port"] for it in directory["podMetricsEndpoints"]] == ["serve"]
    assert ("GET", engine["podMetricsEndpoints"][0]["path"]) in ENGINE_ROUTES
    assert directory["podMetricsEndpoints"][0]["path"] == f"{DIRECTORY_ROUTE}/metrics"


@pytest.mark.parametrize("name", ["directory", "engine"])
def test_scrapes_behind_the_secret(name: str) -> None:
    """Directories and engines are shown the plane secret, and spoken to in TLS where the planes are, by the one name all have."""
    tls = {"acknowledgePlaintextBetweenPlanes": False, "planeTls": {"secretName": "planes"}}
    (plain,) = _monitor(render(WATCHED), name)["podMetricsEndpoints"]
    (secured,) = _monitor(render(WATCHED | tls), name)["podMetricsEndpoints"]

    assert plain["authorization"]["credentials"] == {"name": "test-gpt-oss-serving-plane", "key": "plane.secret"}
    assert "scheme" not in plain
    assert secured["authorization"] == plain["authorization"] and secured["scheme"] == "https"
    assert secured["tlsConfig"]["serverName"] == "engine.gpt-oss-serving"
    assert secured["tlsConfig"]["ca"]["secret"]["name"] == "planes"


ENGINES: dict[str, tuple[Object, dict[str, int]]] = {
    "an engine as large as its pod": ({}, {"a;h100x2": 1}),
    "a smaller one fits twice": (
        {
            "models": [{"name": "gpt-oss-120b"}, {"name": "gpt-oss-20b"}],
            "groups": {"h100x8": {"pods": 1}},
        },
        {"a;h100x8": 8, "a;h100x2": 2, "a;h100x1": 1},
    ),
    "cells differ": (
        {"cells": {"a": {}, "b": {"models": [{"name": "gpt-oss-20b"}], "groups": {"h100x2": {"pods": 1}}}}},
        {"a;h100x2": 1, "b;h100x2": 2, "b;h100x1": 1},
    ),
    "a kind of GPU that no model asks for": (
        {"groups": {"h200x8": {"pods": 1}}},
        {"a;h100x2": 1, "a;h200x8": 0},
    ),
    "all on one CPU pod": (
        {
            "profile": "cpu",
            "images": {"engine": {"repository": "engine-cpu"}},
            "models": [{"name": "smollm2-135m-instruct", "max_replicas": 3}],
        },
        {"a;cpu": 3},
    ),
}


@pytest.mark.parametrize("title", ENGINES)
def test_engines_are_scraped_on_every_port_they_can_have(title: str) -> None:
    """A pod has as many targets as engines fit into it, on the first ports of the range: none that can never answer."""
    values, expected = ENGINES[title]
    monitor = _monitor(render(WATCHED | values), "engine")
    groups_there = {f"{name};{group}" for name, cell in cells(WATCHED | values).items() for group in cell.engine_groups}

    assert expected.keys() == groups_there
    for place, engines in expected.items():
        assert _ports(monitor, place) == list(range(8100, 8100 + engines)), place


def test_nothing_foreign_is_on_by_default() -> None:
    """A cluster without Prometheus' operator takes the defaults, and so does one without cert-manager."""
    assert {it["kind"] for it in render({}) if "." in it["apiVersion"].partition("/")[0]} <= {
        "Ingress", "NetworkPolicy", "RayService", "Role", "RoleBinding",
    }  # fmt: skip


def test_every_values_file_that_watches_is_watched() -> None:
    """The files for production install monitors and alerts."""
    for name in {"dgx-2", "production", "air-gapped", "openshift"} & FILES.keys():
        assert {"ServiceMonitor", "PrometheusRule"} <= {it["kind"] for it in shipped(name)}


def _monitor(objects: list[Object], name: str) -> Object:
    return named(objects, "PodMonitor", f"test-gpt-oss-serving-{name}")["spec"]  # type: ignore[no-any-return]


def _ports(monitor: Object, place: str) -> list[int]:
    """Ports on which a pod of this cell and group is scraped, as its endpoints relabel it."""
    found = []
    for endpoint in monitor["podMetricsEndpoints"]:
        keep, address = endpoint["relabelings"]
        assert keep["action"] == "keep" and keep["sourceLabels"] == [
            "__meta_kubernetes_pod_label_gpt_oss_serving_cell",
            "__meta_kubernetes_pod_label_ray_io_group",
        ]
        assert address["sourceLabels"] == ["__address__"] and address["targetLabel"] == "__address__"
        if re.fullmatch(keep["regex"], place):
            target = re.sub(f"^{address['regex']}$", address["replacement"].replace("$1", r"\1"), "[fd00::7]:6386")
            assert target.startswith("[fd00::7]:")
            found.append(int(target.rpartition(":")[2]))
    return found


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    return bool(selector["matchLabels"].items() <= labels.items()) and all(
        labels.get(it["key"]) in it["values"] for it in expressions
    )
