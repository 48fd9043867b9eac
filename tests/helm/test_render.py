"""Rendering: every values file lints and renders, and a cluster of either end of the supported range takes every object."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from tests.helm.cells import CHART, Object, render
from tests.helm.chart import CLUSTER_SCOPED, EXAMPLES, FILES, helm, of_kind, pods, read, shipped

#: The oldest Kubernetes that Chart.yaml takes, and the newest with schemas.
KUBERNETES = ("1.31", "1.37")
#: Kinds that are not Kubernetes' own, and whose they are. RayServices are held against KubeRay's schema elsewhere.
CUSTOM = {
    "Certificate": "cert-manager.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "RayService": "ray.io/v1",
    "Route": "route.openshift.io/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
}
#: Fields of their specs that this chart may use, written down from their API references; no schema of them is at hand.
KNOWN_FIELDS = {
    "Certificate": {"secretName", "duration", "renewBefore", "issuerRef", "privateKey", "usages", "dnsNames"},
    "HTTPRoute": {"parentRefs", "hostnames", "rules"},
    "PodMonitor": {"selector", "podTargetLabels", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
    "Route": {"host", "to", "port", "tls", "wildcardPolicy"},
    "ServiceMonitor": {"selector", "endpoints"},
}
#: A manifest in `extraObjects` of the every-key file: it gets commonLabels alone.
EXTRA = "llm-owners"
#: Ways in that exclude each other, so that no one values file has them all.
WAYS_IN: dict[str, Object] = {
    "route": {
        "openshift": True,
        "security": {"runAsUser": 0, "fsGroup": 0},
        "gateway": {
            "tls": {"secretName": "api-tls"},
            "route": {
                "enabled": True,
                "termination": "reencrypt",
                "destinationCACertificate": "PEM",
                "host": "llm.example.com",
            },
        },
    },
    "httpRoute": {
        "gateway": {
            "httpRoute": {"enabled": True, "hostnames": ["llm.example.com"], "parentRefs": [{"name": "public"}]}
        }
    },
}


@pytest.mark.parametrize("name", FILES)
def test_values_file_lints(name: str) -> None:
    """`helm lint --strict` has nothing to say of any values file."""
    result = helm("lint", "--strict", str(CHART), "--values", str(FILES[name]))

    assert not result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", FILES)
def test_kubernetes_takes_every_object(name: str, version: str) -> None:
    """Each built-in object has the fields of its kind and no other."""
    for it in shipped(name):
        if it["kind"] not in CUSTOM:
            assert problem(it, version) is None, f"{it['kind']} {it['metadata']['name']}: {problem(it, version)}"


@pytest.mark.parametrize("way", WAYS_IN)
def test_kubernetes_takes_every_way_in(way: str) -> None:
    """The same, for what stands before the gateway."""
    objects = render(WAYS_IN[way])

    assert [
        problem(it, KUBERNETES[-1]) for it in objects if it["kind"] not in CUSTOM and problem(it, KUBERNETES[-1])
    ] == []
    assert any(it["kind"].lower() == way.lower() for it in objects)


def test_the_schemas_refuse_unknown_fields() -> None:
    """What the last tests lean on: a field that does not exist fails, deep inside too."""
    assert problem({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}, "1.37")
    assert problem({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": [{"nam": "x"}]}}, "1.31")


def test_custom_kinds_have_known_shapes() -> None:
    """Foreign kinds have their API group and no field that nobody looked up; all of them are rendered somewhere."""
    objects = [it for name in FILES for it in shipped(name)]
    objects += [it for way in WAYS_IN.values() for it in render(way)]
    seen = set()
    for it in objects:
        if it["kind"] in CUSTOM:
            seen.add(it["kind"])
            assert it["apiVersion"] == CUSTOM[it["kind"]]
        if it["kind"] in KNOWN_FIELDS:
            assert it["spec"].keys() <= KNOWN_FIELDS[it["kind"]], it["metadata"]["name"]

    assert seen == CUSTOM.keys()


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_cluster_scoped(name: str) -> None:
    """Whoever owns one namespace can install the chart: every object is in it."""
    for it in shipped(name):
        assert it["kind"] not in CLUSTER_SCOPED
        assert it["metadata"].get("namespace", "serving") == "serving"


def test_namespaced_only_makes_no_role() -> None:
    """That values file needs no right to hand out rights, and no foreign kind but KubeRay's."""
    kinds = {it["kind"] for it in shipped("namespaced-only")}

    assert not kinds & {"Role", "RoleBinding"}
    assert kinds & CUSTOM.keys() == {"RayService"}


@pytest.mark.parametrize("name", FILES)
def test_every_object_says_whose_it_is(name: str) -> None:
    """Name, instance, version, part-of and managed-by on every object; a component on every pod; names not used twice."""
    objects = [it for it in shipped(name) if it["metadata"]["name"] != EXTRA]
    for it in objects:
        labels = it["metadata"]["labels"]
        wanted = {"name", "instance", "version", "part-of", "managed-by"}
        assert {f"app.kubernetes.io/{key}" for key in wanted} <= labels.keys(), it["metadata"]["name"]
        assert all(re.fullmatch(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", value) for value in labels.values())
        assert len(it["metadata"]["name"]) <= 63
    for pod in pods(objects):
        assert pod.labels["app.kubernetes.io/component"] in {"gateway", "head", "directory", "engine", "job"}, pod.owner
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    assert len(set(names)) == len(names)


def test_long_and_odd_release_names_fit() -> None:
    """Names stay in KubeRay's limit of 47 characters however long the release's is, and a given name is taken."""
    long = helm("template", "a" * 53, str(CHART), "--values", str(EXAMPLES["dgx-2"]))
    given = helm("template", "x", str(CHART), "--values", str(EXAMPLES["dgx-2"]), "--set", "fullnameOverride=llm")

    names = re.findall(r"^kind: RayService\nmetadata:\n  name: (\S+)", long.stdout, re.M)
    assert len(names) == 2 and all(len(name) <= 47 for name in names)
    assert "name: llm-cell-a\n" in given.stdout


def test_long_names_that_begin_alike_stay_two() -> None:
    """What is cut ends in a hash of the whole: two releases in one namespace share no object, whatever they are called."""
    begun = "the-language-models-of-the-research-department"
    first, second = (_names(f"{begun}-{end}") for end in ("one", "two"))
    given = [_names("x", "--set", f"fullnameOverride={begun}-{end}") for end in ("one", "two")]

    assert first and not first & second
    assert given[0] and not given[0] & given[1]


def test_names_that_fit_are_whole() -> None:
    """Thirty characters of a release's name are taken as they are, and the thirty-first makes a hash of its own."""
    thirty = "a" * 14 + "-gpt-oss-serving"

    assert ("ConfigMap", f"{thirty}-gateway") in _names(thirty)
    assert ("ConfigMap", f"{thirty}-gateway") not in _names(f"{thirty}a")


def _names(release: str, *arguments: str) -> set[tuple[str, str]]:
    """Kind and name of every object of a release."""
    result = helm("template", release, str(CHART), "--values", str(EXAMPLES["dgx-2"]), *arguments)
    assert not result.returncode, result.stderr
    return {(it["kind"], it["metadata"]["name"]) for it in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if it}


def test_the_chart_carries_the_packages_version() -> None:
    """appVersion, which is the images' tag, is the version in pyproject.toml."""
    project = tomllib.loads((CHART.parent / "pyproject.toml").read_text())["project"]

    assert read(CHART / "Chart.yaml")["appVersion"] == project["version"]


def test_no_template_is_defined_twice() -> None:
    """Helm takes the last of two definitions without a word."""
    names = [
        name
        for path in sorted((CHART / "templates").rglob("*.tpl"))
        for name in re.findall(r'define "([^"]+)"', path.read_text())
    ]

    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", sorted((CHART / "templates").rglob("*.yaml")), ids=lambda path: path.name)
def test_a_file_holds_one_kind(path: Path) -> None:
    """One kind per file, in the folder of its component."""
    kinds = set(re.findall(r"^kind: (\w+)$", path.read_text(), re.M))

    assert len(kinds) <= 1


def problem(it: Object, version: str) -> str | None:
    """What this version of Kubernetes would not take in an object, by its own strict schema."""
    group, _, api = it["apiVersion"].rpartition("/")
    kind = f"{it['kind'].lower()}-{group.split('.')[0]}{'-' if group else ''}{api}"
    error = jsonschema.exceptions.best_match(_validator(kind, version).iter_errors(it))
    return error and f"{error.json_path}: {error.message}"


@cache
def _validator(kind: str, version: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_schema(f"{kind}.json", version), registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    contents = Resource.from_contents(_schema("_definitions.json", version))
    return contents @ Registry()


def _schema(name: str, version: str) -> Object:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    contents: Object = json.loads((folder / name).read_text())
    return contents


def test_the_page_names_every_values_file() -> None:
    """helm/README.md has a line for each file that ships, and none for another."""
    page = (CHART / "README.md").read_text()

    assert set(re.findall(r"^\| `(values-[\w-]+\.yaml)`", page, re.M)) == {path.name for path in EXAMPLES.values()}


def test_the_page_has_every_opening() -> None:
    """Every port that a policy opens with the default values stands in the page's table."""
    page = (CHART / "README.md").read_text()
    for policy in of_kind(render({}), "NetworkPolicy"):
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
            for port in rule["ports"]:
                text = f"{port['port']}–{port['endPort']}" if "endPort" in port else str(port["port"])
                assert text in page or policy["metadata"]["name"].endswith("-weights"), policy["metadata"]["name"]
