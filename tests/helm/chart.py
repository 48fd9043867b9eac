"""The chart as helm sees it: runs of the real binary, and ways through what it renders. Shared by tests/helm/test_*.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import yaml

from tests.helm.cells import CHART, Object, helm_binary
from tests.helm.cells import read as read

EVERY_KEY = CHART / "ci" / "every-key-values.yaml"
#: Values files that ship, by name.
EXAMPLES = {path.stem.removeprefix("values-"): path for path in sorted(CHART.glob("values-*.yaml"))}
FILES = EXAMPLES | {"every-key": EVERY_KEY}
#: Kinds that belong to no namespace, of those a chart like this might be tempted by.
CLUSTER_SCOPED = {
    "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace", "PersistentVolume", "PriorityClass",
    "RuntimeClass", "StorageClass", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy", "APIService", "ClusterIssuer", "ResourceFlavor", "ClusterQueue", "SecurityContextConstraints",
}  # fmt: skip


def helm(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    """A run of helm, with these values on its standard input. Cached: a chart must not change between two equal runs."""
    return _helm(arguments, None if values is None else json.dumps(values))


@cache
def _helm(arguments: tuple[str, ...], values: str | None) -> subprocess.CompletedProcess[str]:
    given = [] if values is None else ["--values", "-"]
    return subprocess.run(
        [helm_binary(), *arguments, *given], input=values, capture_output=True, text=True, check=False
    )


@cache
def shipped(name: str) -> tuple[Object, ...]:
    """Every object of a release with one values file as it ships; hooks and tests included."""
    result = helm("template", "test", str(CHART), "--namespace", "serving", "--values", str(FILES[name]))
    assert not result.returncode, result.stderr
    return tuple(it for it in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if it)


class Pod(NamedTuple):
    """A pod, or a template of pods, wherever it stands."""

    owner: str
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(objects: list[Object] | tuple[Object, ...]) -> Iterator[Pod]:
    """Every pod that these objects make."""
    for it in objects:
        yield from _pods(f"{it['kind']}/{it['metadata']['name']}", it)


def _pods(owner: str, node: object) -> Iterator[Pod]:
    if isinstance(node, dict):
        spec = node.get("spec")
        if isinstance(spec, dict) and "containers" in spec:
            yield Pod(owner, node.get("metadata", {}).get("labels", {}), spec)
        for child in node.values():
            yield from _pods(owner, child)
    elif isinstance(node, list):
        for child in node:
            yield from _pods(owner, child)


def of_kind(objects: list[Object] | tuple[Object, ...], kind: str) -> list[Object]:
    return [it for it in objects if it["kind"] == kind]


def named(objects: list[Object] | tuple[Object, ...], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = [it for it in of_kind(objects, kind) if it["metadata"]["name"] == name]
    return found


def leaves(values: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all keys of a mapping of mappings."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield (*path, key)
            yield from leaves(value, (*path, key))
