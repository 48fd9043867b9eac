"""Checks: is a cluster ready for an installation? Pure functions over what was read; each answers yes, no or unknown.

An unknown carries the command that settles it. Each limit names its source.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from serving.catalog import GPUS
from serving.catalog.gpus import CUDA, DRIVER_MIN
from serving.operate.cluster import Access
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
from serving.operate.values import Claim, EnginePods, Wanted

#: The oldest Kubernetes that the chart is tested against (helm/Chart.yaml `kubeVersion`); `preStop.sleep` needs 1.30.
KUBERNETES_MIN = (1, 31)
#: The operator the chart's RayServices are written for (helm/Chart.yaml).
KUBERAY = "1.7.0"
#: Fields of RayService v1 that the chart writes or that came with 1.7; an older definition drops them silently, and
#: helm never upgrades definitions.
RAYSERVICE_FIELDS = (
    ("spec", "rayClusterDeletionDelaySeconds"),
    ("spec", "rayClusterConfig", "authOptions"),
    ("spec", "rayClusterConfig", "networkPolicy"),
    ("spec", "rayClusterConfig", "workerGroupSpecs", "labels"),
)
OPERATOR_LABELS = "app.kubernetes.io/name=kuberay-operator"
#: The taint of GPU nodes that the chart's GPU pods tolerate.
TOLERATED = frozenset({"nvidia.com/gpu"})
#: Provisioners of volumes that several nodes can mount at once, and of volumes that only one can; from their own
#: documents.
SHARED_PROVISIONERS = (
    "cephfs", "nfs", "efs.csi", "filestore", "file.csi.azure", "lustre", "weka", "spectrumscale", "beegfs", "gcsfuse",
    "blob.csi.azure", "vast", "trident",
)  # fmt: skip
SINGLE_PROVISIONERS = (
    "ebs.csi", "pd.csi", "disk.csi.azure", "rbd.csi", "local-path", "no-provisioner", "topolvm", "hostpath", "openebs.io/local",
    "cinder",
)  # fmt: skip
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


class Answer(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Check(msgspec.Struct, frozen=True):
    """One question and its answer."""

    name: str
    answer: Answer
    #: One sentence or two.
    says: str
    #: The command that settles or fixes it; empty for a yes.
    command: str = ""


def yes(name: str, says: str) -> Check:
    return Check(name, Answer.YES, says)


def no(name: str, says: str, command: str = "") -> Check:
    return Check(name, Answer.NO, says, command)


def unknown(name: str, what: Unknown) -> Check:
    return Check(name, Answer.UNKNOWN, what.reason, what.command)


def kubernetes_version(version: Version) -> Check:
    least = ".".join(str(it) for it in KUBERNETES_MIN)
    if version.number >= KUBERNETES_MIN:
        return yes("Kubernetes version", f"{version.git_version}, at least {least} is needed.")
    return no("Kubernetes version", f"{version.git_version}, and the chart needs {least}.", "kubectl version")


def rayservice(found: CustomResourceDefinition | None | Unknown) -> Check:
    """Is KubeRay's definition there, and new enough for what the chart writes?"""
    name = "RayService definition"
    install = f"kubectl apply --server-side -k 'github.com/ray-project/kuberay/ray-operator/config/crd?ref=v{KUBERAY}'"
    if isinstance(found, Unknown):
        return unknown(name, found)
    if found is None:
        return no(name, f"The cluster has no RayService: install KubeRay {KUBERAY}, its definitions first.", install)
    missing = [".".join(path) for path in RAYSERVICE_FIELDS if not found.has("v1", path)]
    if missing:
        return no(
            name,
            f"It is older than KubeRay {KUBERAY}: it lacks {', '.join(missing)}, which would be dropped silently. Helm"
            " never upgrades definitions.",
            install,
        )
    return yes(name, f"ray.io/v1 with every field the chart writes, as of KubeRay {KUBERAY}.")


def operator(found: Sequence[Deployment] | Unknown, namespace: str) -> Check:
    """Does a KubeRay operator of the right version run, and does it watch this namespace?"""
    name = "KubeRay operator"
    install = f"helm install kuberay-operator kuberay/kuberay-operator --version {KUBERAY}"
    if isinstance(found, Unknown):
        return unknown(name, found)
    watching = [it for it in found if _watches(it, namespace)]
    if not found:
        return no(name, "No operator is installed, so no cell would be started.", install)
    if not watching:
        return no(
            name, f"An operator runs, but it does not watch the namespace {namespace}.", "kubectl get deployment -A"
        )
    running = next((it for it in watching if it.available), None)
    if running is None:
        first = watching[0].metadata
        command = f"kubectl -n {first.namespace} describe deployment {first.name}"
        return no(name, "The operator is installed and none of its pods is available.", command)
    versions = {tag for image in running.images if (tag := _tag(image))}
    if not versions:
        command = f"kubectl -n {running.metadata.namespace} get deployment {running.name} -o wide"
        return Check(name, Answer.UNKNOWN, "It runs; its image names no version.", command)
    if _release(KUBERAY)[:2] not in {_release(it)[:2] for it in versions}:
        return no(name, f"Version {', '.join(versions)} runs, and the chart is written for {KUBERAY}.", install)
    return yes(name, f"Version {', '.join(versions)} runs in {running.metadata.namespace}.")


def _watches(found: Deployment, namespace: str) -> bool:
    for container in found.spec.template.spec.containers or ():
        for argument in container.args or ():
            key, _, value = argument.lstrip("-").partition("=")
            if key == "watch-namespace" and value:
                return namespace in value.split(",")
    return True


def _tag(image: str) -> str:
    name = image.partition("@")[0].rpartition("/")[2]
    return name.partition(":")[2].removeprefix("v")


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.removeprefix("v").split("."))


def optional_apis(wanted: Wanted, groups: Mapping[str, Sequence[str]] | Unknown) -> Iterator[Check]:
    """Do the API groups exist that the enabled values need?"""
    asked = (
        (wanted.monitors or wanted.alerts, "Prometheus operator", "monitoring.coreos.com", "monitoring"),
        (wanted.certificates, "cert-manager", "cert-manager.io", "certManager.issuer"),
        (wanted.http_route, "Gateway API", "gateway.networking.k8s.io", "gateway.httpRoute"),
        (wanted.openshift_route, "OpenShift routes", "route.openshift.io", "gateway.route"),
    )
    for is_wanted, name, group, key in asked:
        if not is_wanted:
            continue
        if isinstance(groups, Unknown):
            yield unknown(name, groups)
        elif group in groups:
            yield yes(name, f"{group} is served.")
        else:
            yield no(
                name, f"The values ask for it ({key}) and the cluster does not serve {group}.", "kubectl api-versions"
            )


# --- GPUs ---------------------------------------------------------------------------------------------------------------


class GpuNode(msgspec.Struct, frozen=True):
    """A node with GPUs, and how many are free, with its memory."""

    name: str
    product: str
    total: int
    free: int
    driver: int | None
    memory_gib: float = 0.0
    free_memory_gib: float = 0.0
    #: Why no engine can be placed there; empty where one can.
    barred: str = ""

    def is_kind(self, gpu: str) -> bool:
        """`NVIDIA-H100-80GB-HBM3` is an H100; a slice of one (`-MIG-1g.10gb`), or a shared one, is not."""
        parts = self.product.upper().split("-")
        return GPUS[gpu].ray_label in parts and "MIG" not in parts and "SHARED" not in parts


def gpu_nodes(nodes: Sequence[Node], pods: Sequence[Pod] | Unknown) -> list[GpuNode]:
    """Free is what is allocatable less the requests of these pods, all still running; with pods unknown, nothing counts as held."""
    held: Counter[str] = Counter()
    held_gib: dict[str, float] = defaultdict(float)
    for pod in () if isinstance(pods, Unknown) else pods:
        if pod.spec.node_name:
            held[pod.spec.node_name] += pod.gpus
            held_gib[pod.spec.node_name] += pod.memory_gib
    return [
        GpuNode(
            name=node.name,
            product=node.gpu_product,
            total=node.gpus,
            free=max(0, node.gpus - held[node.name]),
            driver=_driver(node),
            memory_gib=node.memory_gib,
            free_memory_gib=max(0.0, node.memory_gib - held_gib[node.name]),
            barred=_barred(node),
        )
        for node in nodes
        if node.gpus or node.gpu_product
    ]


def _driver(node: Node) -> int | None:
    """The driver's branch."""
    branch = node.driver.partition(".")[0]
    return int(branch) if branch.isdigit() else None


def _barred(node: Node) -> str:
    if not node.is_ready:
        return "not ready"
    if node.spec.unschedulable:
        return "cordoned"
    taints = [it.key for it in node.spec.taints or () if it.effect != "PreferNoSchedule" and it.key not in TOLERATED]
    return f"tainted {', '.join(taints)}" if taints else ""


class Fit(msgspec.Struct, frozen=True):
    """Where pods would be placed: pods placed of pods wanted, and the GPUs and GiB of memory left on each node."""

    placed: int
    wanted: int
    left: Mapping[str, int]
    left_gib: Mapping[str, float]


def fit(nodes: Sequence[GpuNode], groups: Sequence[tuple[EnginePods, int]]) -> dict[EnginePods, Fit]:
    """Place this many pods of each group, largest first, each on the node with the fewest free GPUs that has room, as Serve packs them."""
    free = {node.name: node.free for node in nodes if not node.barred}
    free_gib = {node.name: node.free_memory_gib for node in nodes if not node.barred}
    result: dict[EnginePods, Fit] = {}
    for group, count in sorted(groups, key=lambda it: (-it[0].gpus, -it[0].memory_gib)):
        of_kind = [node.name for node in nodes if not node.barred and node.is_kind(group.gpu)]
        placed = 0
        for _ in range(count):
            roomy = [it for it in of_kind if free[it] >= group.gpus and free_gib[it] >= group.memory_gib]
            if not roomy:
                break
            chosen = min(roomy, key=lambda name: free[name])
            free[chosen] -= group.gpus
            free_gib[chosen] -= group.memory_gib
            placed += 1
        left = {name: free[name] for name in of_kind}
        result[group] = Fit(placed, count, left, {name: free_gib[name] for name in of_kind})
    return result


def gpus(wanted: Wanted, nodes: Sequence[Node] | Unknown, pods: Sequence[Pod] | Unknown) -> Iterator[Check]:
    """GPU nodes, their drivers, and room for the engines."""
    yield from (no("Spread over GPUs", sentence) for sentence in wanted.impossible)
    if not wanted.engine_pods:
        if not wanted.impossible:
            yield yes("GPU nodes", "None is needed: every model runs on the CPU.")
        return
    if isinstance(nodes, Unknown):
        yield from (unknown(name, nodes) for name in ("GPU nodes", "GPU driver", "Room for engines"))
        return
    found = gpu_nodes(nodes, pods)
    kinds = sorted({it.gpu for it in wanted.engine_pods})
    yield _gpu_nodes(found, kinds)
    # Nodes with other kinds of GPU are not checked.
    if usable := [it for it in found if not it.product or any(it.is_kind(kind) for kind in kinds)]:
        yield _drivers(usable)
    yield from _room(wanted.engine_pods, found, pods)


def _gpu_nodes(found: Sequence[GpuNode], kinds: Sequence[str]) -> Check:
    name, command = "GPU nodes", "kubectl get nodes -L nvidia.com/gpu.product,nvidia.com/gpu.count"
    if not found:
        return no(name, "No node offers nvidia.com/gpu: install NVIDIA's GPU operator or device plugin.", command)
    listed = "; ".join(_described(it) for it in found)
    if unlabelled := [it.name for it in found if not it.product]:
        return Check(
            name,
            Answer.UNKNOWN,
            f"{', '.join(unlabelled)} carry no nvidia.com/gpu.product: install GPU feature discovery, by whose labels engines"
            " are placed.",
            command,
        )
    missing = [GPUS[kind].title for kind in kinds if not any(it.is_kind(kind) for it in found)]
    if missing:
        return no(name, f"No node has {' or '.join(missing)}; there are: {listed}.", command)
    return yes(name, f"{listed}.")


def _described(node: GpuNode) -> str:
    barred = f", {node.barred}" if node.barred else ""
    return f"{node.name} {node.free} of {node.total} {node.product or 'GPUs without a label'} free{barred}"


def _drivers(found: Sequence[GpuNode]) -> Check:
    name, command = (
        "GPU driver",
        "kubectl get nodes -L nvidia.com/cuda.driver-version.full,nvidia.com/cuda.driver.major",
    )
    if old := [f"{it.name} has {it.driver}" for it in found if it.driver is not None and it.driver < DRIVER_MIN]:
        return no(
            name,
            f"The engine image brings CUDA {CUDA}, which needs driver {DRIVER_MIN} or newer: {'; '.join(old)}.",
            command,
        )
    if silent := [it.name for it in found if it.driver is None]:
        says = f"{', '.join(silent)} carry no label of their driver; CUDA {CUDA} needs {DRIVER_MIN} or newer."
        return Check(name, Answer.UNKNOWN, says, command)
    versions = sorted({str(it.driver) for it in found})
    return yes(name, f"{', '.join(versions)}; CUDA {CUDA} needs {DRIVER_MIN} or newer.")


def _room(groups: Sequence[EnginePods], found: Sequence[GpuNode], pods: Sequence[Pod] | Unknown) -> Iterator[Check]:
    at_least = fit(found, [(it, it.least) for it in groups])
    at_most = fit(found, [(it, it.most) for it in groups])
    for group in groups:
        name = f"Room for {group.model} in cell {group.cell}"
        asked = f"{group.least} pod{'s' if group.least != 1 else ''} of {group.gpus} {GPUS[group.gpu].title}"
        least, most = at_least[group], at_most[group]
        command = "kubectl describe nodes -l nvidia.com/gpu.present=true"
        if says := _too_large(group, found):
            yield no(name, says, command)
        elif least.placed < least.wanted:
            left = "; ".join(_left(group, least, node) for node in least.left) or "no node may take it"
            yield no(name, f"{asked}: {least.wanted - least.placed} would not fit ({left} beside the others).", command)
        elif isinstance(pods, Unknown):
            yield Check(
                name, Answer.UNKNOWN, f"{asked} fit if no other pod holds GPUs or memory; {pods.reason}", pods.command
            )
        elif most.placed < most.wanted:
            yield yes(name, f"{asked} fit; of at most {most.wanted} there is room for {most.placed}.")
        else:
            yield yes(name, f"{asked} fit" + (f", and {most.wanted} at most." if most.wanted > least.wanted else "."))


def _too_large(group: EnginePods, found: Sequence[GpuNode]) -> str:
    """Why a pod fits the memory of no node with its GPUs, however empty; empty where it does, or where there is no such node."""
    there = [it for it in found if it.is_kind(group.gpu) and not it.barred]
    largest = max(there, key=lambda it: it.memory_gib, default=None)
    if largest is None or largest.memory_gib >= group.memory_gib:
        return ""
    kept = f", {group.host_kv_gib:,.0f} of them for KV," if group.host_kv_gib else ""
    change = (
        "lower the largest `kv_offloading_gib` of the models that share its pods, or use nodes with more"
        if group.host_kv_gib
        else "use nodes with more"
    )
    return (
        f"A pod asks for {group.memory_gib:,} GiB of memory{kept} and the largest node with {GPUS[group.gpu].title},"
        f" {largest.name}, has {largest.memory_gib:,.0f}: {change}."
    )


def _left(group: EnginePods, fit: Fit, node: str) -> str:
    """What a node has left: its GPUs, and its memory where they are enough."""
    if fit.left[node] < group.gpus:
        return f"{node} has {fit.left[node]} free"
    return f"{node} has {fit.left[node]} free with {fit.left_gib[node]:,.0f} GiB of memory, and a pod asks for {group.memory_gib:,}"


# --- Storage, DNS, namespace, Secrets, rights ---------------------------------------------------------------------------


def storage(claims: Sequence[Claim], classes: Sequence[StorageClass] | Unknown) -> Iterator[Check]:
    for claim in claims:
        name = f"Storage for {claim.what}"
        yield unknown(name, classes) if isinstance(classes, Unknown) else _storage(name, claim, classes)


def _storage(name: str, claim: Claim, classes: Sequence[StorageClass]) -> Check:
    command = "kubectl get storageclass"
    if claim.storage_class:
        chosen = next((it for it in classes if it.name == claim.storage_class), None)
        absent = f"There is no StorageClass {claim.storage_class}"
    else:
        chosen = next((it for it in classes if _is_default(it)), None)
        absent = "No StorageClass is the default one"
    if chosen is None:
        there = ", ".join(it.name for it in classes) or "none"
        return no(name, f"{absent}; there are: {there}.", command)
    described = f"{chosen.name} ({chosen.provisioner})"
    if "ReadWriteMany" not in claim.access_modes:
        return yes(name, f"{described}.")
    if any(it in chosen.provisioner for it in SHARED_PROVISIONERS):
        return yes(name, f"{described} gives volumes that several nodes can write.")
    if any(it in chosen.provisioner for it in SINGLE_PROVISIONERS):
        return no(
            name,
            f"{described} gives volumes to one node at a time, and ReadWriteMany is needed: choose another class, or"
            " modelVolume.existingClaim.",
            command,
        )
    says = f"Whether {described} gives volumes that several nodes can write is unknown."
    return Check(name, Answer.UNKNOWN, says, "serving preflight --probe")


def _is_default(found: StorageClass) -> bool:
    return (found.metadata.annotations or {}).get(DEFAULT_CLASS) == "true"


def dns(found: Sequence[EndpointSlice] | Unknown) -> Check:
    name = "DNS"
    if isinstance(found, Unknown):
        return unknown(name, found)
    if any(it.is_ready for it in found):
        return yes(name, "The cluster's DNS has ready pods.")
    if not found:
        says = "There is no service kube-dns in kube-system; another one may resolve names, as on OpenShift."
        return Check(name, Answer.UNKNOWN, says, "serving preflight --probe")
    return no(name, "No pod of the cluster's DNS is ready.", "kubectl -n kube-system get pods -l k8s-app=kube-dns")


def pod_security(found: Namespace | None | Unknown, namespace: str, exemptions: Sequence[str]) -> Check:
    """Pods conform to "restricted"; exemptions in the values need a namespace that permits them."""
    name = "Pod Security"
    if isinstance(found, Unknown):
        return unknown(name, found)
    if found is None:
        return no(name, f"The namespace {namespace} does not exist.", f"kubectl create namespace {namespace}")
    level = found.label("pod-security.kubernetes.io/enforce") or ""
    if exemptions and level in ("restricted", "baseline"):
        command = f"kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged"
        return no(name, f"The namespace enforces {level}, which forbids {', '.join(exemptions)}.", command)
    enforced = f"the namespace enforces {level}" if level else "the namespace enforces no level"
    return yes(name, f"Pods keep to {'what is exempt' if exemptions else 'restricted'}; {enforced}.")


def secret(name: str, key: str, found: bool | Unknown, namespace: str) -> Check:
    title = f"Secret {name}"
    if isinstance(found, Unknown):
        return unknown(title, found)
    if found:
        return yes(title, f"It exists, as {key} asks.")
    return no(
        title, f"{key} names it and {namespace} has none.", f"kubectl -n {namespace} create secret generic {name}"
    )


def install_rights(wanted: Wanted, namespace: str) -> list[Access]:
    """What `helm install` creates; each is checked with a SelfSubjectAccessReview."""
    kinds = [
        ("", "configmaps"), ("", "services"), ("", "serviceaccounts"), ("", "secrets"), ("apps", "deployments"),
        ("batch", "jobs"), ("policy", "poddisruptionbudgets"), ("networking.k8s.io", "networkpolicies"),
        ("rbac.authorization.k8s.io", "roles"), ("rbac.authorization.k8s.io", "rolebindings"), ("ray.io", "rayservices"),
    ]  # fmt: skip
    optional = (
        (bool(wanted.claims), "", "persistentvolumeclaims"),
        (wanted.autoscaled_gateways, "autoscaling", "horizontalpodautoscalers"),
        (wanted.monitors, "monitoring.coreos.com", "servicemonitors"),
        (wanted.monitors, "monitoring.coreos.com", "podmonitors"),
        (wanted.alerts, "monitoring.coreos.com", "prometheusrules"),
        (wanted.certificates, "cert-manager.io", "certificates"),
        (wanted.http_route, "gateway.networking.k8s.io", "httproutes"),
        (wanted.ingress, "networking.k8s.io", "ingresses"),
        (wanted.openshift_route, "route.openshift.io", "routes"),
    )
    kinds += [(group, resource) for is_wanted, group, resource in optional if is_wanted]
    return [Access("create", resource, group, namespace) for group, resource in kinds]


def rights(answers: Mapping[Access, bool | Unknown], namespace: str) -> Check:
    name = "Rights to install"
    refused = [it.resource for it, answer in answers.items() if answer is False]
    unsettled = [answer for answer in answers.values() if isinstance(answer, Unknown)]
    if refused:
        command = f"kubectl auth can-i --list -n {namespace}"
        return no(name, f"In {namespace} you may not create {', '.join(refused)}.", command)
    if unsettled:
        return unknown(name, unsettled[0])
    return yes(name, f"In {namespace} you may create all {len(answers)} kinds of objects.")
