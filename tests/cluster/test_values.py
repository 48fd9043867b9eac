"""The values of every step, through real helm: the chart takes them, Kubernetes and KubeRay what comes out. No cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from loadtest.__main__ import parser
from tests.cluster import loadjob, values
from tests.cluster.commands import Object
from tests.cluster.installation import FULLNAME, RELEASE
from tests.cluster.parameters import Parameters
from tests.helm.cells import CHART, Cell, container, environment
from tests.helm.chart import helm, named, read
from tests.helm.schemas import kuberay_problems
from tests.helm.test_render import CUSTOM, KUBERNETES, problem

#: Of the suite, as a given one would be.
NAMESPACE = "somewhere"
GIVEN = Parameters(registry="registry.example.com/serving", tag="7", gateway_tag="8", pull_policy="Never")
BOTH = frozenset(values.CELLS)
#: Every state that the suite brings the release to.
STEPS: dict[str, Object] = {
    "one cell": values.step(paused=frozenset({"b"})),
    "two engines": values.step(paused=frozenset({"b"}), engines=2),
    "both cells": values.step(),
    "a is emptied": values.step(paused=frozenset({"a"})),
    "a is upgraded by its template": values.step(upgraded=frozenset({"a"})),
    "a is upgraded by its tag": values.step(upgraded=frozenset({"a"}), tag="9"),
    "b is emptied": values.step(paused=frozenset({"b"}), upgraded=frozenset({"a"}), tag="9"),
    "both are upgraded": values.step(upgraded=BOTH, tag="9"),
}


def rendered(tmp_path: Path, step: Object, operator: str = "ray-system") -> list[Object]:
    """Every object, with values stacked as Installation.apply stacks them."""
    own = tmp_path / "own.json"
    own.write_text(json.dumps(values.base(GIVEN, operator, NAMESPACE)))
    files = ("--values", str(values.DEMO), "--values", str(own))
    result = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *files, values=step)
    assert not result.returncode, result.stderr
    return [it for it in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if it]


def cells(objects: list[Object]) -> dict[str, Cell]:
    """The cells among them, by name."""
    services = [it for it in objects if it["kind"] == "RayService"]
    return {it["metadata"]["labels"]["gpt-oss-serving/cell"]: Cell(it, (it,), {}) for it in services}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_taken(tmp_path: Path, name: str) -> None:
    """Rendered without a refusal; each object is one of Kubernetes' own, each RayService one of KubeRay's."""
    objects = rendered(tmp_path, STEPS[name])

    for it in objects:
        found = None if it["kind"] in CUSTOM else problem(it, KUBERNETES[-1])
        assert found is None, f"{it['kind']} {it['metadata']['name']}: {found}"
    assert [it for cell in cells(objects).values() for it in kuberay_problems(cell.service)] == []
    assert cells(objects).keys() == set(values.CELLS)


def test_objects_have_the_names_that_the_suite_asks_for(tmp_path: Path) -> None:
    """The gateway's Deployment and Service; what the suite looks for after an uninstall begins alike."""
    objects = rendered(tmp_path, STEPS["one cell"])

    assert named(objects, "Deployment", f"{FULLNAME}-gateway")
    assert named(objects, "Service", FULLNAME)["spec"]["ports"][0]["port"] == 80
    assert all(it["metadata"]["name"].startswith(FULLNAME) for it in objects)


def test_images_and_the_operator_are_those_given(tmp_path: Path) -> None:
    """Every image has its tag and pull policy; heads let in the operator from where it runs."""
    objects = rendered(tmp_path, STEPS["both cells"])

    gateway = container(named(objects, "Deployment", f"{FULLNAME}-gateway")["spec"]["template"])
    assert (gateway["image"], gateway["imagePullPolicy"]) == ("registry.example.com/serving/gateway:8", "Never")
    for template in cells(objects)["a"].templates.values():
        ray = container(template)
        assert (ray["image"], ray["imagePullPolicy"]) == ("registry.example.com/serving/engine-cpu:7", "Never")
    (policy,) = [it for it in objects if it["kind"] == "NetworkPolicy" and it["metadata"]["name"].endswith("a-head")]
    assert "ray-system" in json.dumps(policy["spec"]["ingress"])


def test_the_suites_pods_may_read_metrics(tmp_path: Path) -> None:
    """On a cluster that enforces policies the load test sees replicas too; Prometheus is let in as before."""
    policy = named(rendered(tmp_path, STEPS["one cell"]), "NetworkPolicy", f"{FULLNAME}-gateway")

    (metrics,) = [it for it in policy["spec"]["ingress"] if {"port": 9090} in it["ports"]]
    selectors = [it["namespaceSelector"] for it in metrics["from"] if "namespaceSelector" in it]
    namespaces = [it["matchLabels"]["kubernetes.io/metadata.name"] for it in selectors]
    assert namespaces == ["monitoring", NAMESPACE]


def test_a_paused_cell_has_no_pods_and_every_cell_is_held(tmp_path: Path) -> None:
    """What the upgrade leans on: KubeRay takes a paused cell's pods away, and changes those of none that runs."""
    found = cells(rendered(tmp_path, STEPS["a is emptied"]))

    assert found["a"].spec["suspend"] is True and "suspend" not in found["b"].spec
    assert all(it.spec["upgradeStrategy"]["type"] == "None" for it in found.values())


def test_a_tag_upgrades_one_cell_and_a_template_all_that_were_paused(tmp_path: Path) -> None:
    """With a tag the other cell's values stay; without one its pods' template changes too, and only `hold` keeps it."""

    def images(cell: Cell) -> set[str]:
        return {container(it)["image"].rpartition(":")[2] for it in cell.templates.values()}

    by_tag = cells(rendered(tmp_path, STEPS["a is upgraded by its tag"]))
    assert (images(by_tag["a"]), images(by_tag["b"])) == ({"9"}, {"7"})

    by_template = cells(rendered(tmp_path, STEPS["a is upgraded by its template"]))
    assert {environment(it.templates["cpu"])[values.REVISION] for it in by_template.values()} == {"2"}


def test_scaling_changes_no_pod(tmp_path: Path) -> None:
    """One engine and two differ in what Serve and the directory are told: pods would be another Ray cluster."""
    one, two = (cells(rendered(tmp_path, STEPS[name]))["a"] for name in ("one cell", "two engines"))

    assert one.cluster == two.cluster
    application = f"model-{values.MODEL}"
    arguments = [it.applications[application]["args"] for it in (one, two)]
    assert arguments[0] == arguments[1]
    bounds = [it.applications[application]["deployments"][0]["autoscaling_config"] for it in (one, two)]
    assert [(it["min_replicas"], it["max_replicas"]) for it in bounds] == [(1, 1), (2, 2)]


def test_nothing_that_serves_restarts_a_gateway(tmp_path: Path) -> None:
    """Under load only cells change: a gateway on SQLite that is replaced answers nobody meanwhile."""
    templates = [
        named(rendered(tmp_path, step), "Deployment", f"{FULLNAME}-gateway")["spec"]["template"]
        for step in STEPS.values()
    ]

    assert all(it == templates[0] for it in templates)


def test_the_load_test_is_the_manifests_with_what_was_given() -> None:
    """Its image under the suite's registry; options that the command takes, and of two the suite's; as many workers as
    it awaits."""
    service, master, workers = loadjob.manifest(GIVEN, "--url=http://gateway", "--model=m")

    containers = [container(it["spec"]["template"]) for it in (master, workers)]
    assert {it["image"] for it in containers} == {"registry.example.com/serving/loadtest:7"}
    assert {it["imagePullPolicy"] for it in containers} == {"Never"}
    asked = parser().parse_args(containers[0]["args"])
    assert (asked.url, asked.model, asked.rate) == ("http://gateway", "m", 0.5)
    assert asked.await_workers == workers["spec"]["parallelism"] == workers["spec"]["completions"]
    assert [problem(it, KUBERNETES[-1]) for it in (service, master, workers)] == [None, None, None]


def test_the_load_test_has_the_tag_that_all_images_have() -> None:
    """The chart's appVersion where none is given, whatever the manifest says."""
    images = [container(it["spec"]["template"])["image"] for it in loadjob.manifest(Parameters())[1:]]

    tag = read(CHART / "Chart.yaml")["appVersion"]
    assert images == [f"localhost/gpt-oss-serving/loadtest:{tag}"] * 2
