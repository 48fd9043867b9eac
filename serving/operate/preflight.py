"""Preflight: would an installation with these values run here? Everything is read first, then judged; nothing is changed.

Only `--probe` creates anything: one claim, and one pod that mounts it and resolves a name; both are deleted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from serving.operate import checks
from serving.operate.checks import Answer, Check
from serving.operate.cluster import Access, Cluster
from serving.operate.objects import (
    CustomResourceDefinition,
    Deployment,
    EndpointSlice,
    Namespace,
    Node,
    Pod,
    StorageClass,
    Unknown,
    Version,
)
from serving.operate.values import Wanted


class Facts(msgspec.Struct, frozen=True):
    """All that was read of a cluster."""

    version: Version
    groups: Mapping[str, Sequence[str]] | Unknown
    rayservice: CustomResourceDefinition | None | Unknown
    operators: list[Deployment] | Unknown
    nodes: list[Node] | Unknown
    pods: list[Pod] | Unknown
    storage_classes: list[StorageClass] | Unknown
    dns: list[EndpointSlice] | Unknown
    namespace: Namespace | None | Unknown
    secrets: Mapping[str, bool | Unknown]
    rights: Mapping[Access, bool | Unknown]


def gather(cluster: Cluster, wanted: Wanted) -> Facts:
    """Read what the checks look at. Raises Refusal when the cluster does not answer at all."""
    return Facts(
        version=cluster.version(),
        groups=cluster.groups(),
        rayservice=cluster.definition("rayservices.ray.io"),
        operators=cluster.deployments_everywhere(checks.OPERATOR_LABELS),
        nodes=cluster.nodes(),
        pods=cluster.pods_everywhere(),
        storage_classes=cluster.storage_classes(),
        dns=cluster.dns(),
        namespace=cluster.own_namespace(),
        secrets={name: cluster.has_secret(name) for name in wanted.secrets},
        rights={access: cluster.may(access) for access in checks.install_rights(wanted, cluster.namespace)},
    )


def judge(facts: Facts, wanted: Wanted, namespace: str) -> list[Check]:
    """Every check, in the order in which to fix things."""
    return [
        checks.kubernetes_version(facts.version),
        checks.rayservice(facts.rayservice),
        checks.operator(facts.operators, namespace),
        *checks.optional_apis(wanted, facts.groups),
        checks.pod_security(facts.namespace, namespace, wanted.exemptions),
        checks.rights(facts.rights, namespace),
        *(checks.secret(name, key, facts.secrets[name], namespace) for name, key in wanted.secrets.items()),
        *checks.gpus(wanted, facts.nodes, facts.pods),
        *checks.storage(wanted.claims, facts.storage_classes),
        checks.dns(facts.dns),
    ]


def is_fit(found: Sequence[Check]) -> bool:
    """Does no check say no? An unknown does not block an installation."""
    return not any(it.answer is Answer.NO for it in found)


def page(found: Sequence[Check]) -> str:
    """The report for a person: each problem in full, with the command that settles it."""
    width = max(len(it.name) for it in found)
    lines: list[str] = []
    for check in found:
        lines.append(f"{check.answer:8}{check.name:{width}}  {check.says}")
        if check.command and check.answer is not Answer.YES:
            lines.append(f"{'':8}{'':{width}}    {check.command}")
    counts = {answer: sum(it.answer is answer for it in found) for answer in Answer}
    lines.append("")
    lines.append(", ".join(f"{count} {answer}" for answer, count in counts.items()) + ".")
    return "\n".join(lines)


def as_json(found: Sequence[Check]) -> str:
    return msgspec.json.format(msgspec.json.encode({"checks": found, "fit": is_fit(found)})).decode()
