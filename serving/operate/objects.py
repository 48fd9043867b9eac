"""Objects: what these tools read of Kubernetes' and KubeRay's objects, as the API server writes them.

Only the fields that something here looks at; others are ignored, so that a newer server can talk. Go writes `null` for
an empty list, hence the unions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

#: The resource that NVIDIA's device plugin offers.
GPU_RESOURCE = "nvidia.com/gpu"


class Unknown(msgspec.Struct, frozen=True):
    """Something could not be read: why, and the command that settles it for a user with the rights."""

    reason: str
    command: str


class _Object(msgspec.Struct, frozen=True, rename="camel"):
    pass


class Metadata(_Object, frozen=True):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class _Named(_Object, frozen=True):
    metadata: Metadata

    @property
    def name(self) -> str:
        return self.metadata.name

    def label(self, key: str) -> str | None:
        return (self.metadata.labels or {}).get(key)


class Condition(_Object, frozen=True):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None


def _is_ready(conditions: list[Condition] | None) -> bool:
    return any(it.type == "Ready" and it.status == "True" for it in conditions or ())


class Taint(_Object, frozen=True):
    key: str
    effect: str
    value: str = ""


class NodeSpec(_Object, frozen=True):
    unschedulable: bool = False
    taints: list[Taint] | None = None


class NodeStatus(_Object, frozen=True):
    allocatable: dict[str, str] | None = None
    conditions: list[Condition] | None = None


class Node(_Named, frozen=True):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def gpu_product(self) -> str:
        """As GPU feature discovery names it; empty where it does not run."""
        return self.label("nvidia.com/gpu.product") or ""

    @property
    def driver(self) -> str:
        """The version of NVIDIA's driver, empty without its labels; GPU feature discovery renamed them in 0.15."""
        full = self.label("nvidia.com/cuda.driver-version.full") or self.label("nvidia.com/cuda.driver-version.major")
        parts = [self.label(f"nvidia.com/cuda.driver.{part}") for part in ("major", "minor", "rev")]
        return full or ".".join(it for it in parts if it)

    @property
    def gpus(self) -> int:
        """GPUs that pods may ask for."""
        return int((self.status.allocatable or {}).get(GPU_RESOURCE, "0"))

    @property
    def memory_gib(self) -> float:
        """GiB of memory that pods may ask for."""
        return _gib(self.status.allocatable)

    @property
    def is_ready(self) -> bool:
        return _is_ready(self.status.conditions)


class Resources(_Object, frozen=True):
    requests: dict[str, str] | None = None
    limits: dict[str, str] | None = None


class Container(_Object, frozen=True):
    name: str
    image: str = ""
    args: list[str] | None = None
    resources: Resources = Resources()


class Waiting(_Object, frozen=True):
    reason: str | None = None
    message: str | None = None


class Terminated(_Object, frozen=True):
    exit_code: int = 0
    reason: str | None = None
    message: str | None = None
    finished_at: str | None = None


class ContainerState(_Object, frozen=True):
    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Object, frozen=True):
    name: str
    ready: bool = False
    restart_count: int = 0
    image: str = ""
    image_id: str = msgspec.field(default="", name="imageID")
    state: ContainerState | None = None
    last_state: ContainerState | None = None


class PodSpec(_Object, frozen=True):
    node_name: str | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodStatus(_Object, frozen=True):
    phase: str = ""
    message: str | None = None
    conditions: list[Condition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None


class Pod(_Named, frozen=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_over(self) -> bool:
        """It holds nothing any more."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def is_ready(self) -> bool:
        return _is_ready(self.status.conditions)

    @property
    def gpus(self) -> int:
        """GPUs it holds while it runs: its containers' together, or the greediest of those that run before them."""
        together = sum(_gpus(it) for it in self.spec.containers or ())
        return max([together, *(_gpus(it) for it in self.spec.init_containers or ())])

    @property
    def memory_gib(self) -> float:
        """GiB of memory that it asks for, counted as GPUs are."""
        together = sum(_gib(it.resources.requests) for it in self.spec.containers or ())
        return max([together, *(_gib(it.resources.requests) for it in self.spec.init_containers or ())])

    @property
    def containers(self) -> list[ContainerStatus]:
        return [*(self.status.init_container_statuses or ()), *(self.status.container_statuses or ())]

    @property
    def restarts(self) -> int:
        return sum(it.restart_count for it in self.containers)


def _gpus(container: Container) -> int:
    # Kubernetes copies the limit of an extended resource into the request; an object not yet admitted may lack it.
    asked = (container.resources.requests or {}) | (container.resources.limits or {})
    return int(asked.get(GPU_RESOURCE, "0"))


def _gib(amounts: Mapping[str, str] | None) -> float:
    from kubernetes.utils.quantity import parse_quantity  # imported late, as in `cluster`

    amount = (amounts or {}).get("memory", "0")
    return float(parse_quantity(amount)) / 2**30  # type: ignore[no-untyped-call]  # the client has no types


class InvolvedObject(_Object, frozen=True):
    kind: str = ""
    name: str = ""


class Event(_Named, frozen=True):
    involved_object: InvolvedObject
    type: str = ""
    reason: str = ""
    message: str = ""
    count: int | None = None
    last_timestamp: str | None = None
    event_time: str | None = None

    @property
    def at(self) -> str:
        """When it was seen last, as the server writes times; they sort as text."""
        return self.last_timestamp or self.event_time or self.metadata.creation_timestamp or ""


class ServicePort(_Object, frozen=True):
    port: int
    name: str = ""


class ServiceSpec(_Object, frozen=True):
    ports: list[ServicePort] | None = None


class Service(_Named, frozen=True):
    spec: ServiceSpec = ServiceSpec()


class PodTemplate(_Object, frozen=True):
    spec: PodSpec = PodSpec()


class DeploymentSpec(_Object, frozen=True):
    replicas: int = 1
    template: PodTemplate = PodTemplate()


class DeploymentStatus(_Object, frozen=True):
    available_replicas: int | None = None


class Deployment(_Named, frozen=True):
    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()

    @property
    def available(self) -> int:
        return self.status.available_replicas or 0

    @property
    def images(self) -> list[str]:
        return [it.image for it in self.spec.template.spec.containers or ()]


class EndpointConditions(_Object, frozen=True):
    ready: bool | None = None


class Endpoint(_Object, frozen=True):
    conditions: EndpointConditions = EndpointConditions()


class EndpointSlice(_Named, frozen=True):
    endpoints: list[Endpoint] | None = None

    @property
    def is_ready(self) -> bool:
        """Is any endpoint ready? Kubernetes reads an unset condition as yes."""
        return any(it.conditions.ready is not False for it in self.endpoints or ())


class StorageClass(_Named, frozen=True):
    provisioner: str = ""


class Namespace(_Named, frozen=True):
    pass


class CrdVersion(_Object, frozen=True):
    name: str
    served: bool = False
    schema: dict[str, Any] | None = None


class CrdSpec(_Object, frozen=True):
    versions: list[CrdVersion] | None = None


class CustomResourceDefinition(_Named, frozen=True):
    spec: CrdSpec = CrdSpec()

    def has(self, version: str, path: tuple[str, ...]) -> bool:
        """Does its schema of that version, served, know this field? A path goes through lists as if they were not there."""
        found = next((it for it in self.spec.versions or () if it.name == version and it.served), None)
        field: Any = ((found.schema if found else None) or {}).get("openAPIV3Schema", {})
        for name in path:
            field = field.get("items", field).get("properties", {}).get(name)
            if field is None:
                return False
        return found is not None


class ApiGroupVersion(_Object, frozen=True):
    version: str


class ApiGroup(_Object, frozen=True):
    name: str
    versions: list[ApiGroupVersion] | None = None


class Version(_Object, frozen=True):
    major: str
    minor: str
    git_version: str

    @property
    def number(self) -> tuple[int, int]:
        """Some clouds write the minor as `31+`."""
        return int(self.major), int("".join(it for it in self.minor if it.isdigit()))


class ServeDeploymentStatus(_Object, frozen=True):
    status: str = ""
    message: str | None = None


class ApplicationStatus(_Object, frozen=True):
    status: str = ""
    message: str | None = None
    serve_deployment_statuses: dict[str, ServeDeploymentStatus] | None = None


class ServiceStatus(_Object, frozen=True):
    ray_cluster_name: str | None = None
    application_statuses: dict[str, ApplicationStatus] | None = None


class HeadGroup(_Object, frozen=True):
    template: PodTemplate = PodTemplate()


class WorkerGroup(_Object, frozen=True):
    group_name: str = ""
    template: PodTemplate = PodTemplate()


class RayClusterConfig(_Object, frozen=True):
    head_group_spec: HeadGroup = HeadGroup()
    worker_group_specs: list[WorkerGroup] | None = None
    gcs_fault_tolerance_options: dict[str, Any] | None = None


class RayServiceSpec(_Object, frozen=True):
    #: YAML in a string: Serve's own configuration.
    serve_config: str = msgspec.field(default="", name="serveConfigV2")
    ray_cluster_config: RayClusterConfig = RayClusterConfig()


class RayServiceStatus(_Object, frozen=True):
    conditions: list[Condition] | None = None
    active_service_status: ServiceStatus | None = None
    pending_service_status: ServiceStatus | None = None


class RayService(_Named, frozen=True):
    spec: RayServiceSpec = RayServiceSpec()
    status: RayServiceStatus = RayServiceStatus()
