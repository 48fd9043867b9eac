"""The cluster that kubectl reaches, or the one sentence that says why there is none to test on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tests.cluster.commands import REACH_TIMEOUT_S, CommandFailed, Kubectl, Object
from tests.cluster.parameters import Parameters

OPERATOR = "kuberay-operator"


class NoCluster(Exception):
    """Why the suite cannot run here."""


def reach(kubectl: Kubectl) -> None:
    """Raises NoCluster without a cluster, or where it does not know RayServices."""
    try:
        kubectl("get", "--raw", "/version", f"--request-timeout={REACH_TIMEOUT_S}s")
    except CommandFailed as failed:
        raise NoCluster(f"kubectl reaches no cluster (KUBECONFIG, CLUSTER_TEST_CONTEXT): {failed.said}") from None
    kinds = kubectl("api-resources", "--api-group", "ray.io", "--output", "name").split()
    if "rayservices.ray.io" not in kinds:
        raise NoCluster("The cluster has no RayService: install KubeRay 1.7 with its custom resource definitions.")


def operator_namespace(kubectl: Kubectl, parameters: Parameters) -> str:
    """Where KubeRay's operator runs. Raises NoCluster where none does, or none can be seen."""
    if parameters.operator_namespace:
        return parameters.operator_namespace
    try:
        found = operators(kubectl.list("deployments", "--all-namespaces"))
    except CommandFailed:
        raise NoCluster(
            "Whoever runs this may not look for KubeRay's operator in other namespaces: name its own in "
            "CLUSTER_TEST_OPERATOR_NAMESPACE."
        ) from None
    if not found:
        raise NoCluster(
            "No KubeRay operator is ready in the cluster: start it, or name its namespace in "
            "CLUSTER_TEST_OPERATOR_NAMESPACE where it runs under another name or outside."
        )
    return found[0]


def operators(deployments: Iterable[Object]) -> list[str]:
    """Namespaces in which a KubeRay operator is ready, as its chart and its manifests name it."""
    return [
        it["metadata"]["namespace"]
        for it in deployments
        if OPERATOR in {it["metadata"]["name"], (it["metadata"].get("labels") or {}).get("app.kubernetes.io/name")}
        and it.get("status", {}).get("readyReplicas", 0) > 0
    ]


class Place(NamedTuple):
    """Where an engine's pod is."""

    pod: str
    node: str


def drainable_node(leaving: Place, staying: Iterable[Place], nodes: Iterable[Object]) -> str | None:
    """The node to drain so that one engine leaves and the others serve on; None where only the pod can be evicted.

    A drain needs another node for the engine that leaves, and none of those that stay may be on the drained one.
    """
    is_alone = all(it.node != leaving.node for it in staying)
    has_other = any(it["metadata"]["name"] != leaving.node and is_schedulable(it) for it in nodes)
    return leaving.node if is_alone and has_other else None


def is_schedulable(node: Object) -> bool:
    """Whether ordinary pods may be placed there."""
    spec = node.get("spec", {})
    taints = [it for it in spec.get("taints", []) if it["effect"] in {"NoSchedule", "NoExecute"}]
    conditions = node.get("status", {}).get("conditions", [])
    is_ready = any(it["type"] == "Ready" and it["status"] == "True" for it in conditions)
    return is_ready and not spec.get("unschedulable") and not taints
