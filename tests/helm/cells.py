"""Cells as real helm renders them: what tests/helm/test_cells_*.py share."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.unpacked import ROOT, unpacked

CHART = ROOT / "helm"
#: Where KubeRay's own custom resource definitions are; beside a checkout of the whole workspace.
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "data" / "kuberay"))

Object = dict[str, Any]

#: What any values must say before the chart takes them.
GIVEN: Object = {"images": {"registry": "registry.example.com/serving"}, "acknowledgePlaintextBetweenPlanes": True}


class Refused(Exception):
    """helm did not render; the text is what it said."""


def helm_binary() -> str:
    """The real helm, the same everywhere whatever is installed."""
    return unpacked("helm")


def render(values: Object, *value_files: Path) -> list[Object]:
    """Every object of a release called `test`; raises Refused with helm's words."""
    return list(_render(json.dumps(_over(GIVEN, values)), value_files))


def refusal(values: Object) -> str:
    """What the chart says of values that it must not take."""
    try:
        render(values)
    except Refused as refused:
        return str(refused)
    raise AssertionError("the chart took these values")


def cell(values: Object, name: str = "a", *value_files: Path) -> Cell:
    """One cell of the release."""
    return cells(values, *value_files)[name]


class Cell(NamedTuple):
    """The objects of one cell."""

    service: Object
    """The RayService."""
    objects: tuple[Object, ...]
    """Everything with the cell's label, the RayService too."""
    values: Object
    """What the release was rendered with: the chart's values and what was given over them."""

    @property
    def spec(self) -> Object:
        return self.service["spec"]  # type: ignore[no-any-return]

    @property
    def cluster(self) -> Object:
        return self.spec["rayClusterConfig"]  # type: ignore[no-any-return]

    @property
    def serve(self) -> Object:
        """What Serve is told."""
        return yaml.load(self.spec["serveConfigV2"], Loader=yaml.CSafeLoader)  # type: ignore[no-any-return]

    @property
    def applications(self) -> dict[str, Object]:
        return {it["name"]: it for it in self.serve["applications"]}

    @property
    def groups(self) -> dict[str, Object]:
        """Worker groups by name, the directory's among them, in KubeRay's order."""
        return {it["groupName"]: it for it in self.cluster["workerGroupSpecs"]}

    @property
    def engine_groups(self) -> dict[str, Object]:
        return {name: group for name, group in self.groups.items() if name != "directory"}

    @property
    def templates(self) -> dict[str, Object]:
        """Pod templates, by group; the head's as `head`."""
        return {"head": self.cluster["headGroupSpec"]["template"]} | {
            name: group["template"] for name, group in self.groups.items()
        }

    def of_kind(self, kind: str) -> list[Object]:
        return [it for it in self.objects if it["kind"] == kind]


def cells(values: Object, *value_files: Path) -> dict[str, Cell]:
    """All cells of the release, by name."""
    objects, whole = render(values, *value_files), read(CHART / "values.yaml")
    for given in (*map(read, value_files), GIVEN, values):
        whole = _over(whole, given)
    found: dict[str, Cell] = {}
    for it in objects:
        if it["kind"] == "RayService":
            name = it["metadata"]["labels"]["gpt-oss-serving/cell"]
            own = tuple(o for o in objects if o["metadata"].get("labels", {}).get("gpt-oss-serving/cell") == name)
            found[name] = Cell(it, own, whole)
    return found


def container(template: Object) -> Object:
    """The Ray container of a pod template: KubeRay wants it first."""
    return template["spec"]["containers"][0]  # type: ignore[no-any-return]


def environment(template: Object) -> dict[str, str | None]:
    """Its variables; None where the value comes from elsewhere."""
    return {it["name"]: it.get("value") for it in container(template)["env"]}


def read(path: Path) -> Object:
    """A values file; each caller gets a copy of its own."""
    return copy.deepcopy(_parsed(path))


@cache
def _parsed(path: Path) -> Object:
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader) or {}


def _over(base: Object, values: Object) -> Object:
    merged = dict(base)
    for key, value in values.items():
        merged[key] = (
            _over(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


@cache
def _render(values: str, value_files: tuple[Path, ...]) -> tuple[Object, ...]:
    line = [helm_binary(), "template", "test", str(CHART), "--namespace", "serving"]
    for path in value_files:
        line += ["--values", str(path)]
    result = subprocess.run([*line, "--values", "-"], input=values, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Refused(result.stderr)
    return tuple(it for it in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if it)


def value_files() -> Iterator[Path]:
    """Every values file that ships beside the chart's own."""
    yield from sorted(path for path in (*CHART.glob("values-*.yaml"), *(CHART / "ci").glob("*.yaml")))


CPU_DEMO: Object = {
    "profile": "cpu",
    "models": [{"name": "smollm2-135m-instruct"}],
    "images": {"engine": {"repository": "engine-cpu"}},
}
#: Values that between them take every branch of the cells' templates.
SCENARIOS: dict[str, Object] = {
    "defaults": {},
    "cpu": CPU_DEMO,
    "two cells, one of them paused": {"cells": {"a": {}, "b": {"paused": True}}},
    "several models": {
        "models": [
            {"name": "gpt-oss-120b", "min_replicas": 2, "max_replicas": 6, "priority": 10},
            {"name": "gpt-oss-20b", "min_replicas": 0, "max_replicas": 4, "sleep_after_s": 60},
            {"name": "qwen3-32b", "lora": {"max_adapters": 1}, "adapters": [{"name": "law", "path": "/adapters/law"}]},
            {"name": "kimi-k2-instruct", "gpu": "h200"},
        ],
        "groups": {"h100x2": {"pods": 8}, "h100x8": {"pods": 0}},
    },
    "nodes grow": {
        "engine": {"settings": {"nodes_may_grow": True}},
        "models": [{"name": "gpt-oss-120b", "min_replicas": 1, "max_replicas": 4}],
    },
    "fault tolerance, TLS, RDMA, a node's folder": {
        "ray": {
            "gcsFaultTolerance": {"redisAddress": "redis:6379", "redisUsername": "ray", "passwordSecretName": "redis"},
            "authSecretName": "ray-token",
        },
        "planeTls": {"secretName": "planes"},
        "engine": {
            "rdma": {"enabled": True, "resources": {"rdma/hca": 1}},
            "podSecurityExemptions": ["hostPath", "IPC_LOCK"],
            "runtimeClassName": "nvidia",
            "priorityClassName": "engines",
            "nodeSelector": {"pool": "gpu"},
            "env": {"NCCL_DEBUG": "WARN"},
        },
        "modelVolume": {"hostPath": "/mnt/models"},
        "weights": {"job": "none"},
        "cacheVolume": {"existingClaim": "cache"},
        "head": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "x"},
        "directory": {"pods": 1, "nodeSelector": {"pool": "cpu"}},
        "images": {"pullSecrets": ["registry"], "engine": {"digest": "sha256:" + "0" * 64}},
    },
    "any user id": {"openshift": True, "security": {"runAsUser": 0, "fsGroup": 0}},
    "one cell's own": {
        "cells": {
            "a": {"hold": True},
            "b": {
                "models": [{"name": "gpt-oss-20b"}],
                "images": {"engine": {"tag": "9.9.9"}},
                "groups": {"h100x1": {"pods": 3}},
            },
        },
    },
}


def every_cell() -> Iterator[tuple[str, Cell]]:
    """All cells of all scenarios and of all values files that ship, each with a name."""
    for title, values in SCENARIOS.items():
        yield from ((f"{title}: {name}", it) for name, it in cells(values).items())
    for path in value_files():
        yield from ((f"{path.name}: {name}", it) for name, it in cells({}, path).items())


#: A model of the values' own, without facts of its architecture.
OWN_MODEL: Object = {
    "name": "mine",
    "summary": "A model of ours.",
    "source": {"kind": "mounted", "path": "/models/mine"},
    "context_tokens": 8192,
    "download_mib": 0,
    "disk_mib": 20_480,
    "license": "proprietary",
    "profiles": [{"name": "balanced", "gpu": "h100", "reason": "It fits.", "source": "computed"}],
}
