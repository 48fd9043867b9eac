"""Permissions: least privilege for each command, as data: the chart grants it, the documents print it, tests enforce it.

Reviews of one's own access, the server's version and its list of API groups need nothing: Kubernetes grants them to
every user who has signed in (`system:basic-user`, `system:discovery`).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec


class Scope(StrEnum):
    """Where a rule applies."""

    CLUSTER = "cluster"
    #: The installation's namespace.
    RELEASE = "release"
    KUBE_SYSTEM = "kube-system"


class Rule(msgspec.Struct, frozen=True):
    """One permission of a command, and what is unknown without it."""

    resource: str
    verbs: tuple[str, ...]
    scope: Scope
    why: str
    group: str = ""
    #: Only these objects; empty for all.
    names: tuple[str, ...] = ()


#: The definition whose fields preflight checks; for others, the list of API groups suffices.
DEFINITIONS = ("rayservices.ray.io",)


def preflight(namespace: str, secrets: Iterable[str] = ()) -> tuple[Rule, ...]:
    """What `serving preflight` reads; `secrets` are those that the values name, of which only the metadata is read."""
    rules = (
        Rule("nodes", ("list",), Scope.CLUSTER, "GPUs, memory, drivers, taints"),
        Rule("pods", ("list",), Scope.CLUSTER, "GPUs and memory that others hold"),
        Rule("deployments", ("list",), Scope.CLUSTER, "the KubeRay operator", group="apps"),
        Rule(
            "customresourcedefinitions",
            ("get",),
            Scope.CLUSTER,
            "which fields KubeRay's definition knows",
            group="apiextensions.k8s.io",
            names=DEFINITIONS,
        ),
        Rule("storageclasses", ("list",), Scope.CLUSTER, "where volumes come from", group="storage.k8s.io"),
        Rule("namespaces", ("get",), Scope.CLUSTER, "its Pod Security level", names=(namespace,)),
        Rule("endpointslices", ("list",), Scope.KUBE_SYSTEM, "the cluster's DNS", group="discovery.k8s.io"),
    )
    named = tuple(sorted(set(secrets)))
    if not named:
        return rules
    return (*rules, Rule("secrets", ("get",), Scope.RELEASE, "whether those the values name exist", names=named))


#: What `serving preflight --probe` needs in addition: it creates and deletes one claim and one pod.
PROBE = (
    Rule("pods", ("create", "get", "delete"), Scope.RELEASE, "the probe's pod"),
    Rule("persistentvolumeclaims", ("create", "get", "delete"), Scope.RELEASE, "the probe's claim"),
)


def status(services: Iterable[str]) -> tuple[Rule, ...]:
    """What `serving status` reads; `services` are the gateway's, as a proxy request names them (`http:name:port`)."""
    return (
        Rule("pods", ("list",), Scope.RELEASE, "gateways, heads, engines and their restarts"),
        Rule("events", ("list",), Scope.RELEASE, "the last errors"),
        Rule("deployments", ("list",), Scope.RELEASE, "gateways wanted", group="apps"),
        Rule("rayservices", ("list",), Scope.RELEASE, "cells", group="ray.io"),
        Rule("services", ("list",), Scope.RELEASE, "where the gateway answers"),
        Rule(
            "services/proxy",
            ("get",),
            Scope.RELEASE,
            "models and waiting rooms, from the gateway itself",
            names=tuple(sorted(set(services))),
        ),
        Rule("nodes", ("list",), Scope.CLUSTER, "GPUs in all"),
    )


#: What `serving accept --namespace` reads, besides calling the API as a client; without --namespace it needs nothing.
ACCEPT = (
    Rule("pods", ("list",), Scope.RELEASE, "images, engines and where they run"),
    Rule("nodes", ("list",), Scope.CLUSTER, "kinds of GPU and drivers for the report"),
)
#: And `serving accept --disrupt`.
DISRUPT = (Rule("pods", ("delete",), Scope.RELEASE, "one engine's pod, twice"),)


def manifests(name: str, rules: Iterable[Rule], namespace: str, subject: dict[str, str]) -> list[dict[str, Any]]:
    """Roles and bindings that grant `subject` exactly `rules`; a ClusterRole only where one is needed."""
    objects: list[dict[str, Any]] = []
    for scope, place in ((Scope.CLUSTER, None), (Scope.RELEASE, namespace), (Scope.KUBE_SYSTEM, "kube-system")):
        of_scope = [_policy(rule) for rule in rules if rule.scope is scope]
        if of_scope:
            kind = "ClusterRole" if place is None else "Role"
            objects += _role(kind, name, place, of_scope, subject)
    return objects


def _policy(rule: Rule) -> dict[str, Any]:
    policy: dict[str, Any] = {"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)}
    return policy | ({"resourceNames": list(rule.names)} if rule.names else {})


def _role(
    kind: str, name: str, namespace: str | None, rules: list[dict[str, Any]], subject: dict[str, str]
) -> list[dict[str, Any]]:
    group = "rbac.authorization.k8s.io"
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    role = {"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": rules}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": f"{kind}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": kind, "name": name},
        "subjects": [subject],
    }
    return [role, binding]


def markdown() -> str:
    """The table in deploy/README.md."""
    groups = {
        "preflight": preflight("NAMESPACE", ["SECRET"]),
        "preflight --probe, besides": PROBE,
        "status": status(["http:RELEASE:http", "http:RELEASE-metrics:metrics"]),
        "accept --namespace": ACCEPT,
        "accept --disrupt, besides": DISRUPT,
    }
    lines = ["| command | may | where | for |", "|---|---|---|---|"]
    for command, rules in groups.items():
        lines += [f"| `{command}` | {_may(rule)} | {rule.scope} | {rule.why} |" for rule in rules]
    return "\n".join(lines)


def _may(rule: Rule) -> str:
    resource = f"{rule.resource}.{rule.group}" if rule.group else rule.resource
    names = f" ({', '.join(f'`{name}`' for name in rule.names)})" if rule.names else ""
    return f"{', '.join(rule.verbs)} `{resource}`{names}"
