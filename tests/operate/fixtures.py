"""Objects of a cluster, made with the Kubernetes client's own model classes: nodes of several kinds, an installation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from kubernetes import client

from serving.operate.checks import DEFAULT_CLASS, RAYSERVICE_FIELDS
from tests.operate.api_server import NAMESPACE, ApiServer

RELEASE = "gpt-oss-serving"
#: Labels of whatever is of that release.
OURS = {"app.kubernetes.io/part-of": "gpt-oss-serving", "app.kubernetes.io/instance": RELEASE}
TIME = datetime(2026, 11, 20, 10, tzinfo=UTC)
STAMP = "2026-11-20T10:00:00Z"


def metadata(name: str, namespace: str | None = NAMESPACE, **fields: Any) -> client.V1ObjectMeta:
    return client.V1ObjectMeta(name=name, namespace=namespace, **fields)


def node(
    name: str,
    product: str = "NVIDIA-H100-80GB-HBM3",
    gpus: int = 8,
    driver: int | None = 580,
    *,
    cordoned: bool = False,
    ready: bool = True,
    taint: str | None = None,
    memory: str = "1000Gi",
) -> client.V1Node:
    """A node, labelled as GPU feature discovery does it; `gpus` 0 for one without."""
    labels = {"kubernetes.io/hostname": name}
    if gpus and product:
        labels |= {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": product}
    if gpus and driver is not None:
        labels |= {
            "nvidia.com/cuda.driver-version.major": str(driver),
            "nvidia.com/cuda.driver-version.full": f"{driver}.95.05",
        }
    taints = [client.V1Taint(key=taint, effect="NoSchedule")] if taint else []
    taints += [client.V1Taint(key="nvidia.com/gpu", effect="NoSchedule", value="present")] if gpus else []
    return client.V1Node(
        api_version="v1",
        kind="Node",
        metadata=metadata(name, None, labels=labels),
        spec=client.V1NodeSpec(unschedulable=cordoned or None, taints=taints or None),
        status=client.V1NodeStatus(
            allocatable={"cpu": "96", "memory": memory} | ({"nvidia.com/gpu": str(gpus)} if gpus else {}),
            conditions=[client.V1NodeCondition(type="Ready", status="True" if ready else "False")],
        ),
    )


def pod(
    name: str,
    on: str | None = None,
    gpus: int = 0,
    *,
    namespace: str = NAMESPACE,
    component: str | None = None,
    cell: str | None = None,
    image: str = "registry.example.com/team/gateway:0.1.0",
    phase: str = "Running",
    status: client.V1ContainerStatus | None = None,
    unschedulable: str = "",
    memory: str = "",
) -> client.V1Pod:
    labels = OURS | {"app.kubernetes.io/component": component} if component else {}
    labels |= {"gpt-oss-serving/cell": cell} if cell else {}
    amount = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    requests = amount | ({"memory": memory} if memory else {})
    is_ready = phase == "Running" and (status is None or status.ready)
    conditions = [client.V1PodCondition(type="Ready", status="True" if is_ready else "False")]
    if unschedulable:
        conditions.append(
            client.V1PodCondition(type="PodScheduled", status="False", reason="Unschedulable", message=unschedulable)
        )
    return client.V1Pod(
        api_version="v1",
        kind="Pod",
        metadata=metadata(name, namespace, labels=labels, creation_timestamp=TIME),
        spec=client.V1PodSpec(
            node_name=on,
            containers=[
                client.V1Container(
                    name="main", image=image, resources=client.V1ResourceRequirements(requests=requests, limits=amount)
                )
            ],
        ),
        status=client.V1PodStatus(
            phase=phase, conditions=conditions, container_statuses=[status or container_status()]
        ),
    )


def container_status(
    ready: bool = True, restarts: int = 0, waiting: str = "", exit_code: int | None = None, reason: str = "Error"
) -> client.V1ContainerStatus:
    ended = None
    if exit_code is not None:
        ended = client.V1ContainerState(
            terminated=client.V1ContainerStateTerminated(
                exit_code=exit_code, reason=reason, finished_at=TIME + timedelta(hours=1)
            )
        )
    state = client.V1ContainerState(waiting=client.V1ContainerStateWaiting(reason=waiting, message="back-off 5m0s"))
    return client.V1ContainerStatus(
        name="main",
        image="main",
        image_id="",
        ready=ready,
        restart_count=restarts,
        state=state if waiting else client.V1ContainerState(running=client.V1ContainerStateRunning(started_at=TIME)),
        last_state=ended,
    )


def deployment(
    name: str,
    image: str,
    namespace: str = NAMESPACE,
    labels: dict[str, str] | None = None,
    available: int = 1,
    replicas: int = 1,
    args: list[str] | None = None,
) -> client.V1Deployment:
    container = client.V1Container(name="main", image=image, args=args)
    return client.V1Deployment(
        api_version="apps/v1",
        kind="Deployment",
        metadata=metadata(name, namespace, labels=labels),
        spec=client.V1DeploymentSpec(
            replicas=replicas,
            selector=client.V1LabelSelector(match_labels={"app": name}),
            template=client.V1PodTemplateSpec(
                metadata=client.V1ObjectMeta(labels={"app": name}), spec=client.V1PodSpec(containers=[container])
            ),
        ),
        status=client.V1DeploymentStatus(available_replicas=available or None),
    )


def operator(version: str = "1.7.0", available: int = 1, watch: str = "") -> client.V1Deployment:
    """KubeRay's, as its chart labels it."""
    return deployment(
        "kuberay-operator",
        f"quay.io/kuberay/operator:v{version}",
        "kuberay-operator",
        {"app.kubernetes.io/name": "kuberay-operator"},
        available,
        args=[f"--watch-namespace={watch}"] if watch else ["--enable-leader-election"],
    )


def definition(name: str = "rayservices.ray.io", without: str = "") -> client.V1CustomResourceDefinition:
    """A definition with the fields that are looked for, but for one."""
    schema = client.V1JSONSchemaProps(type="object", properties={})
    for path in RAYSERVICE_FIELDS:
        at = schema
        for field in path:
            if field == without:
                break
            assert at.properties is not None
            at = at.properties.setdefault(field, client.V1JSONSchemaProps(type="object", properties={}))
    plural, _, group = name.partition(".")
    return client.V1CustomResourceDefinition(
        api_version="apiextensions.k8s.io/v1",
        kind="CustomResourceDefinition",
        metadata=metadata(name, None),
        spec=client.V1CustomResourceDefinitionSpec(
            group=group,
            names=client.V1CustomResourceDefinitionNames(kind="RayService", plural=plural),
            scope="Namespaced",
            versions=[
                client.V1CustomResourceDefinitionVersion(
                    name="v1",
                    served=True,
                    storage=True,
                    schema=client.V1CustomResourceValidation(open_apiv3_schema=schema),
                )
            ],
        ),
    )


def storage_class(name: str, provisioner: str, is_default: bool = False) -> client.V1StorageClass:
    annotations = {DEFAULT_CLASS: "true"} if is_default else None
    return client.V1StorageClass(
        api_version="storage.k8s.io/v1",
        kind="StorageClass",
        metadata=metadata(name, None, annotations=annotations),
        provisioner=provisioner,
    )


def namespace(level: str = "restricted") -> client.V1Namespace:
    labels = {"pod-security.kubernetes.io/enforce": level} if level else {}
    return client.V1Namespace(api_version="v1", kind="Namespace", metadata=metadata(NAMESPACE, None, labels=labels))


def dns(ready: bool = True) -> client.V1EndpointSlice:
    return client.V1EndpointSlice(
        api_version="discovery.k8s.io/v1",
        kind="EndpointSlice",
        address_type="IPv4",
        metadata=metadata("kube-dns-x", "kube-system", labels={"kubernetes.io/service-name": "kube-dns"}),
        endpoints=[client.V1Endpoint(addresses=["10.0.0.10"], conditions=client.V1EndpointConditions(ready=ready))],
    )


def secret(name: str) -> client.V1Secret:
    return client.V1Secret(api_version="v1", kind="Secret", metadata=metadata(name), data={"url": "aGlkZGVu"})


def warning(
    kind: str, name: str, reason: str, message: str, at: datetime = TIME + timedelta(hours=2)
) -> client.CoreV1Event:
    return client.CoreV1Event(
        api_version="v1",
        kind="Event",
        metadata=metadata(f"{name}.1"),
        involved_object=client.V1ObjectReference(kind=kind, name=name, namespace=NAMESPACE),
        type="Warning",
        reason=reason,
        message=message,
        last_timestamp=at,
        count=3,
    )


def gateway_services() -> list[client.V1Service]:
    """The API's, and the one of the metrics, apart from it as in the chart."""
    labels = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "gateway"}

    def one(name: str, port: str, number: int) -> client.V1Service:
        spec = client.V1ServiceSpec(ports=[client.V1ServicePort(name=port, port=number)], selector=labels)
        return client.V1Service(api_version="v1", kind="Service", metadata=metadata(name, labels=labels), spec=spec)

    return [one(RELEASE, "http", 80), one(f"{RELEASE}-metrics", "metrics", 9090)]


def ray_service(
    cell: str = "a",
    *,
    has_fault_tolerance: bool = False,
    has_tls: bool = False,
    paused: bool = False,
    failing: str = "",
    state: str = "Ready",
) -> dict[str, Any]:
    """A cell, as the chart writes it and KubeRay 1.7 reports on it."""
    options: dict[str, Any] = {"host": "0.0.0.0", "port": 8000}
    options |= {"ssl_certfile": "/etc/serving/plane-tls/tls.crt"} if has_tls else {}
    names = ["directory"] if paused else ["directory", "model-gpt-oss-120b"]
    serve = {"http_options": options, "applications": [{"name": it, "import_path": "x:y"} for it in names]}
    cluster: dict[str, Any] = {
        "rayVersion": "2.60.0",
        "headGroupSpec": {"rayStartParams": {}, "template": _template("head")},
        "workerGroupSpecs": [
            {
                "groupName": "gpu",
                "rayStartParams": {},
                "minReplicas": 1,
                "maxReplicas": 1,
                "template": _template("engine"),
            }
        ],
    }
    if has_fault_tolerance:
        cluster["gcsFaultToleranceOptions"] = {"redisAddress": "redis:6379"}
    applications = {it: {"status": "RUNNING"} for it in names}
    if failing:
        applications["model-gpt-oss-120b"] = {"status": "DEPLOY_FAILED", "message": failing}
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "NonZeroServeEndpoints",
        "message": "",
        "lastTransitionTime": STAMP,
    }
    if state != "Ready":
        condition |= {"status": "False", "reason": state}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": f"{RELEASE}-cell-{cell}",
            "namespace": NAMESPACE,
            "creationTimestamp": STAMP,
            "labels": {"app.kubernetes.io/instance": RELEASE, "gpt-oss-serving/cell": cell},
        },
        "spec": {"serveConfigV2": yaml.safe_dump(serve), "rayClusterConfig": cluster},
        "status": {
            "conditions": [condition],
            "activeServiceStatus": {"rayClusterName": f"{RELEASE}-cell-{cell}-x", "applicationStatuses": applications},
        },
    }


def _template(name: str) -> dict[str, Any]:
    image = "registry.example.com/team/engine-gpu@sha256:" + "0" * 64
    return {"spec": {"containers": [{"name": name, "image": image}]}}


def fit_cluster(api: ApiServer) -> ApiServer:
    """A cluster in which the chart's own values run: two DGX H100 and a node without GPUs."""
    api.add(
        node("dgx-1"),
        node("dgx-2"),
        node("cpu-1", gpus=0),
        operator(),
        definition(),
        storage_class("shared", "rook-ceph.cephfs.csi.ceph.com", is_default=True),
        namespace(),
        dns(),
    )
    return api
