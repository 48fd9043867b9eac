"""What an uninstall leaves: every object of every kind is looked at, and each that is the release's is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.cluster.commands import CommandFailed, Kubectl, Object

#: Kinds that tell of objects and are none: they outlive what they tell of.
PASSING = {"events", "events.events.k8s.io", "componentstatuses"}
LABEL = "app.kubernetes.io/instance"
OWNER = "meta.helm.sh/release-name"
POLICY = "helm.sh/resource-policy"


class Leftover(NamedTuple):
    """An object of the release that is still there."""

    kind: str
    name: str
    is_kept: bool
    """Whether the values, or NOTES, say that it stays."""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def of_release(objects: Iterable[Object], release: str, fullname: str) -> list[Leftover]:
    """Those of these objects that belong to the release: by label, by helm's annotation, or by name.

    The name alone must do for what others made on its behalf: KubeRay's clusters, the Job's Secrets.
    """
    made_once = {f"{fullname}-plane", f"{fullname}-keys"}
    found = []
    for it in objects:
        metadata = it["metadata"]
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        is_helms = labels.get("owner") == "helm" and labels.get("name") == release
        is_named = metadata["name"] == fullname or metadata["name"].startswith(f"{fullname}-")
        if not (is_named or is_helms or labels.get(LABEL) == release or annotations.get(OWNER) == release):
            continue
        is_kept = annotations.get(POLICY) == "keep" or (it["kind"] == "Secret" and metadata["name"] in made_once)
        found.append(Leftover(it["kind"], metadata["name"], is_kept))
    return sorted(found)


class Inventory(NamedTuple):
    """Everything that may be seen."""

    objects: list[Object]
    unseen: list[str]
    """Kinds that whoever runs this may not list."""


def inventory(kubectl: Kubectl, *, is_namespaced: bool) -> Inventory:
    """Every object of every kind of the namespace, or every cluster-scoped one."""
    objects: list[Object] = []
    unseen = []
    for kind in _kinds(kubectl, is_namespaced):
        try:
            objects += kubectl.list(kind)
        except CommandFailed:
            unseen.append(kind)
    return Inventory(objects, unseen)


def _kinds(kubectl: Kubectl, is_namespaced: bool) -> Iterator[str]:
    words = kubectl(
        "api-resources", "--verbs", "list", "--output", "name", f"--namespaced={str(is_namespaced).lower()}"
    ).split()
    yield from sorted(set(words) - PASSING)
