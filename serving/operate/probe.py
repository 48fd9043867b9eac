"""Probe: the only part of preflight that creates anything. A claim, and a pod that mounts it, writes to it and resolves a name.

It settles what no list shows: whether the image can be pulled, the volume bound, the name resolved, and the pod
admitted. Whatever happens, both are deleted again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serving.operate.checks import Answer, Check, no, unknown, yes
from serving.operate.cluster import Cluster
from serving.operate.objects import Pod, Unknown
from serving.operate.values import Claim

NAME = "Probe"
POLL_S = 1.0
#: The pod's program; its exit code says which part failed.
_PROGRAM = (
    "import socket, sys\n"
    "try: open('/probe/written', 'w').close()\n"
    "except OSError: sys.exit(3)\n"
    "try: socket.getaddrinfo('kubernetes.default.svc', 443)\n"
    "except OSError: sys.exit(4)\n"
)
_FAILURES = {3: "it could not write to the volume", 4: "it could not resolve kubernetes.default.svc"}
_LABELS = {"app.kubernetes.io/name": "gpt-oss-serving", "app.kubernetes.io/component": "probe"}


def run(
    cluster: Cluster,
    image: str,
    claim: Claim,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Check:
    """Create both, wait for the pod to end, delete both; the answer names what could not be deleted."""
    name, left = f"serving-probe-{secrets.token_hex(3)}", list[Unknown]()
    with _made(cluster, "persistentvolumeclaims", claim_body(name, claim), left) as refused:
        if refused:
            found = unknown(NAME, refused)
        else:
            with _made(cluster, "pods", pod_body(name, image), left) as refused_pod:
                deadline = clock() + timeout_s
                found = unknown(NAME, refused_pod) if refused_pod else _awaited(cluster, name, deadline, clock, sleep)
    if left:
        return no(NAME, f"{found.says} Something was left behind: {left[0].reason}.", left[0].command)
    return found


@contextmanager
def _made(cluster: Cluster, resource: str, body: dict[str, Any], left: list[Unknown]) -> Iterator[Unknown | None]:
    """An object that exists inside the `with`. It is deleted even if its creation failed: only the answer may have been lost."""
    refused: Unknown | None = None
    try:
        refused = cluster.create(resource, body)
        yield refused
    finally:
        kept = cluster.delete(resource, body["metadata"]["name"], grace_s=0)
        if kept and refused is None:
            left.append(kept)


def _awaited(
    cluster: Cluster, name: str, deadline: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Check:
    while True:
        pod = cluster.pod(name)
        if isinstance(pod, Unknown):
            return unknown(NAME, pod)
        if pod is not None and pod.is_over:
            return _verdict(pod)
        if clock() >= deadline:
            return no(NAME, f"The pod did not run in time: {_waits_for(pod)}.", f"kubectl describe pod {name}")
        sleep(POLL_S)


def _verdict(pod: Pod) -> Check:
    if pod.status.phase == "Succeeded":
        return yes(NAME, "A pod was admitted, pulled its image, wrote to its volume and resolved a name; all deleted.")
    codes = [it.state.terminated.exit_code for it in pod.containers if it.state and it.state.terminated]
    why = next((_FAILURES[code] for code in codes if code in _FAILURES), pod.status.message or "its program failed")
    return Check(NAME, Answer.NO, f"The pod ran and failed: {why}.")


def _waits_for(pod: Pod | None) -> str:
    if pod is None:
        return "it is gone"
    for status in pod.containers:
        if status.state and status.state.waiting and status.state.waiting.reason:
            return f"{status.state.waiting.reason} {status.state.waiting.message or ''}".strip()
    for condition in pod.status.conditions or ():
        if condition.status == "False" and condition.message:
            return condition.message
    return f"phase {pod.status.phase}"


def claim_body(name: str, claim: Claim) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": list(claim.access_modes) or ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    if claim.storage_class:
        spec["storageClassName"] = claim.storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": _metadata(name), "spec": spec}


def pod_body(name: str, image: str) -> dict[str, Any]:
    """The pod: conforms to Pod Security "restricted", small, and without credentials for the API server."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "probe",
        "image": image,
        "command": ["python3", "-c", _PROGRAM],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": security,
        "volumeMounts": [{"name": "probe", "mountPath": "/probe"}],
    }
    spec = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": 600,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "probe", "persistentVolumeClaim": {"claimName": name}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _metadata(name), "spec": spec}


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "labels": _LABELS}
