"""Status: one installation on one screen, from Kubernetes' objects and the gateway's answers, read through the API server.

What cannot be read is reported as unknown, with the command that settles it; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import yaml

from serving.errors import Refusal
from serving.operate import exposition
from serving.operate.checks import gpu_nodes
from serving.operate.cluster import Cluster
from serving.operate.exposition import Sample
from serving.operate.objects import Deployment, Event, Node, Pod, RayService, Service, Unknown
from serving.wire import ReplicaState

#: Objects of any installation of the chart.
OURS = "app.kubernetes.io/part-of=gpt-oss-serving"
INSTANCE, COMPONENT, CELL = "app.kubernetes.io/instance", "app.kubernetes.io/component", "gpt-oss-serving/cell"
#: Newest first.
ERRORS_MAX = 12
#: Waiting reasons of a container that are normal.
_PATIENT = frozenset({"ContainerCreating", "PodInitializing"})
#: Prefix of a model's Serve application.
MODEL_PREFIX = "model-"


class Facts(msgspec.Struct, frozen=True):
    """All that was read."""

    release: str
    namespace: str
    pods: list[Pod] | Unknown
    gateways: list[Deployment] | Unknown
    ray_services: list[RayService] | Unknown
    nodes: list[Node] | Unknown
    events: list[Event] | Unknown
    health: bytes | Unknown
    metrics: bytes | Unknown


class ModelStatus(msgspec.Struct, frozen=True):
    """A model as a gateway sees it; None where unknown."""

    name: str
    #: Its best state.
    state: str
    wanted: int | None = None
    replicas: Mapping[str, int] = {}
    #: Calls in the waiting room.
    waiting: int | None = None

    @property
    def ready(self) -> int:
        return self.replicas.get(ReplicaState.READY, 0)


class CellStatus(msgspec.Struct, frozen=True):
    """A Ray cluster."""

    name: str
    #: KubeRay's word or ours.
    state: str
    applications: Mapping[str, str]
    paused: bool
    head: str
    #: Engine pods: ready, and in all; below, the GPUs that they hold.
    engine_pods: tuple[int, int]
    gpus: int


class Trouble(msgspec.Struct, frozen=True):
    """Something that went wrong, as Kubernetes reports it."""

    at: str
    where: str
    what: str


class Status(msgspec.Struct, frozen=True):
    """The screen."""

    release: str
    namespace: str
    gateways: str
    gateway_restarts: int | None
    open_requests: int | None
    models: tuple[ModelStatus, ...]
    cells: tuple[CellStatus, ...]
    gpus_held: int | None
    gpus_total: int | None
    troubles: tuple[Trouble, ...]
    #: What an operator should know though nothing is broken.
    notes: tuple[str, ...]
    unknowns: tuple[Unknown, ...]


def release_in(cluster: Cluster) -> str:
    """The one installation of a namespace. Raises Refusal when there is none, several, or no right to list pods."""
    cluster.version()
    found = cluster.pods(OURS)
    if isinstance(found, Unknown):
        raise Refusal(f"Which installation is meant cannot be seen ({found.reason}): name it with --release.")
    names = sorted({it.label(INSTANCE) or "" for it in found})
    if not names:
        raise Refusal(f"Nothing is installed in namespace {cluster.namespace}: name another one with --namespace.")
    if len(names) > 1:
        raise Refusal(f"Namespace {cluster.namespace} has {' and '.join(names)}: name one with --release.")
    return names[0]


def gather(cluster: Cluster, release: str) -> Facts:
    """Read everything. Raises Refusal when the cluster does not answer at all."""
    cluster.version()
    of_release = f"{INSTANCE}={release}"
    of_gateway = f"{of_release},{COMPONENT}=gateway"
    services = cluster.services(of_gateway)
    return Facts(
        release=release,
        namespace=cluster.namespace,
        pods=cluster.pods(of_release),
        gateways=cluster.deployments(of_gateway),
        ray_services=cluster.ray_services(of_release),
        nodes=cluster.nodes(),
        events=cluster.warnings(),
        health=_through(cluster, services, "/health/models"),
        metrics=_through(cluster, services, "/metrics"),
    )


def _through(cluster: Cluster, services: list[Service] | Unknown, path: str) -> bytes | Unknown:
    """What a gateway says on the port of its metrics, which asks for no key."""
    if isinstance(services, Unknown):
        return services
    named = next(iter(proxied(services)), None)
    if named is None:
        command = f"kubectl -n {cluster.namespace} port-forward deployment/GATEWAY 9090 & curl localhost:9090{path}"
        return Unknown("no service of the gateway has a port called metrics", command)
    return cluster.through(named, path)


def proxied(services: Sequence[Service], ports: Sequence[str] = ("metrics",)) -> Iterator[str]:
    """The gateway's ports as a proxy request names them, and as a role must: `https:name:port`."""
    for service in services:
        for port in service.spec.ports or ():
            if port.name in ports:
                yield f"{'https' if port.name == 'https' else 'http'}:{service.name}:{port.name}"


def judge(facts: Facts) -> Status:
    """The screen's content; pure."""
    pods = [] if isinstance(facts.pods, Unknown) else facts.pods
    cells = [] if isinstance(facts.ray_services, Unknown) else facts.ray_services
    gateways = [it for it in pods if it.label(COMPONENT) == "gateway"]
    unknowns: list[Unknown] = [
        it
        for it in (
            facts.pods,
            facts.gateways,
            facts.ray_services,
            facts.nodes,
            facts.events,
            facts.health,
            facts.metrics,
        )
        if isinstance(it, Unknown)
    ]
    found, garbled = _samples(facts.metrics)
    health, misread = _health(facts.health)
    unknowns += [it for it in (garbled, misread) if it]
    has_pods = not isinstance(facts.pods, Unknown)
    return Status(
        release=facts.release,
        namespace=facts.namespace,
        gateways=_gateways(facts.gateways, gateways if has_pods else None),
        gateway_restarts=sum(it.restarts for it in gateways) if has_pods else None,
        open_requests=_whole(exposition.by_label(found, "serving_gateway_open_requests", "").get("")),
        models=tuple(_models(found, health.models)),
        cells=tuple(_cell(it, pods) for it in cells),
        gpus_held=sum(it.gpus for it in pods if not it.is_over and it.spec.node_name) if has_pods else None,
        gpus_total=_gpus_total(facts.nodes),
        troubles=_newest([*_pod_troubles(pods), *_cell_troubles(cells), *_event_troubles(facts.events, facts)]),
        notes=(*health.warnings, *_notes(cells, pods)),
        unknowns=tuple(unknowns),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _gpus_total(nodes: list[Node] | Unknown) -> int | None:
    return None if isinstance(nodes, Unknown) else sum(it.total for it in gpu_nodes(nodes, []))


def _gateways(deployments: list[Deployment] | Unknown, pods: Sequence[Pod] | None) -> str:
    if isinstance(deployments, Unknown):
        ready = None if pods is None else sum(it.is_ready for it in pods)
        return "unknown" if ready is None else f"{ready} ready"
    if not deployments:
        return "none installed"
    return ", ".join(f"{it.available} of {it.spec.replicas} ready" for it in deployments)


# --- Models -------------------------------------------------------------------------------------------------------------


def _samples(metrics: bytes | Unknown) -> tuple[list[Sample], Unknown | None]:
    if isinstance(metrics, Unknown):
        return [], None
    try:
        return list(exposition.samples(metrics.decode())), None
    except ValueError:
        return [], Unknown("the metrics port does not answer with metrics", "kubectl get services")


class _Health(msgspec.Struct, frozen=True):
    models: dict[str, str]
    warnings: tuple[str, ...] = ()


def _health(page: bytes | Unknown) -> tuple[_Health, Unknown | None]:
    if isinstance(page, Unknown):
        return _Health({}), None
    try:
        return msgspec.json.decode(page, type=_Health), None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Health({}), Unknown("the gateway's port does not answer like a gateway", "kubectl get services")


def _models(found: Sequence[Sample], states: Mapping[str, str]) -> Iterator[ModelStatus]:
    """Every model in either source; the metrics are those of the gateway that happened to answer."""
    wanted = exposition.by_label(list(found), "serving_gateway_wanted_replicas", "model")
    waiting = exposition.by_label(list(found), "serving_gateway_waiting_requests", "model")
    replicas: dict[str, dict[str, int]] = {}
    for it in found:
        if it.name == "serving_gateway_replicas":
            replicas.setdefault(it.labels["model"], {})[it.labels["state"]] = round(it.value)
    for name in sorted({*states, *wanted, *replicas}):
        yield ModelStatus(
            name=name,
            state=states.get(name, "unknown"),
            wanted=_whole(wanted.get(name)),
            replicas=replicas.get(name, {}),
            waiting=_whole(waiting.get(name)),
        )


# --- Cells --------------------------------------------------------------------------------------------------------------


def cell_of(service: RayService) -> str:
    return service.label(CELL) or service.name


def serve_config(service: RayService) -> Mapping[str, object]:
    try:
        content = yaml.safe_load(service.spec.serve_config)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_paused(service: RayService) -> bool:
    """A paused cell serves its directory and no model."""
    applications = serve_config(service).get("applications")
    names = (
        [str(it.get("name")) for it in applications if isinstance(it, dict)] if isinstance(applications, list) else []
    )
    return bool(names) and not any(name.startswith(MODEL_PREFIX) for name in names)


def _cell(service: RayService, pods: Sequence[Pod]) -> CellStatus:
    name = cell_of(service)
    mine = [it for it in pods if it.label(CELL) == name]
    engines = [it for it in mine if it.label(COMPONENT) == "engine"]
    heads = [it for it in mine if it.label(COMPONENT) == "head"]
    return CellStatus(
        name=name,
        state=_state(service),
        applications=dict(_applications(service)),
        paused=_is_paused(service),
        head=f"{sum(it.is_ready for it in heads)} of {len(heads)} ready",
        engine_pods=(sum(it.is_ready for it in engines), len(engines)),
        gpus=sum(it.gpus for it in engines if it.spec.node_name and not it.is_over),
    )


def _state(service: RayService) -> str:
    conditions = {it.type: it for it in service.status.conditions or ()}
    if "UpgradeInProgress" in conditions and conditions["UpgradeInProgress"].status == "True":
        return "upgrading"
    ready = conditions.get("Ready")
    if ready is None:
        return "never seen by an operator"
    return "ready" if ready.status == "True" else ready.reason or "not ready"


def _applications(service: RayService) -> Iterator[tuple[str, str]]:
    active = service.status.active_service_status or service.status.pending_service_status
    for name, application in ((active.application_statuses if active else None) or {}).items():
        yield name, application.status.lower()


def _notes(cells: Sequence[RayService], pods: Sequence[Pod]) -> Iterator[str]:
    for service in cells:
        cell = cell_of(service)
        if service.spec.ray_cluster_config.gcs_fault_tolerance_options is None:
            yield f"cell {cell}: no GCS fault tolerance, so a head restart stops its engines"
        if _is_paused(service):
            yield f"cell {cell}: paused, so it runs no engine"
        options = serve_config(service).get("http_options")
        if not (isinstance(options, dict) and options.get("ssl_certfile")):
            yield f"cell {cell}: no TLS between planes, so prompts cross the cluster's network in the clear"
    images = {image for pod in pods for it in pod.spec.containers or () if "@sha256:" not in (image := it.image)}
    if images:
        yield f"not pinned by digest: {', '.join(sorted(image.rpartition('/')[2] for image in images if image))}"


# --- Troubles -----------------------------------------------------------------------------------------------------------


def _newest(troubles: Sequence[Trouble]) -> tuple[Trouble, ...]:
    return tuple(sorted(troubles, key=lambda it: it.at, reverse=True)[:ERRORS_MAX])


def _pod_troubles(pods: Sequence[Pod]) -> Iterator[Trouble]:
    for pod in pods:
        for status in pod.containers:
            waiting = status.state.waiting if status.state else None
            ended = status.last_state.terminated if status.last_state else None
            if waiting and waiting.reason and waiting.reason not in _PATIENT:
                at = (ended.finished_at if ended else None) or pod.metadata.creation_timestamp or ""
                yield Trouble(at, f"pod {pod.name}", _joined(waiting.reason, waiting.message))
            if ended and (ended.exit_code or ended.reason == "OOMKilled"):
                said = _joined(f"{ended.reason or 'ended'} with {ended.exit_code}", ended.message)
                yield Trouble(ended.finished_at or "", f"pod {pod.name}", f"{said}, {status.restart_count} restarts")
        for condition in pod.status.conditions or ():
            if condition.type == "PodScheduled" and condition.status == "False":
                at = pod.metadata.creation_timestamp or ""
                yield Trouble(at, f"pod {pod.name}", _joined(condition.reason or "unscheduled", condition.message))


def _cell_troubles(cells: Sequence[RayService]) -> Iterator[Trouble]:
    for service in cells:
        for status in (service.status.active_service_status, service.status.pending_service_status):
            for name, application in ((status.application_statuses if status else None) or {}).items():
                if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                    at = service.metadata.creation_timestamp or ""
                    said = _joined(application.status, application.message)
                    yield Trouble(at, f"cell {cell_of(service)}, {name}", said)


def _event_troubles(events: list[Event] | Unknown, facts: Facts) -> Iterator[Trouble]:
    """Warnings about this release's own objects: others may share the namespace."""
    if isinstance(events, Unknown):
        return
    names = {it.name for found in (facts.pods, facts.gateways, facts.ray_services) if not isinstance(found, Unknown) for it in found}  # fmt: skip
    for event in events:
        about = event.involved_object
        if about.name in names or any(about.name.startswith(f"{name}-") for name in names):
            times = f" (×{event.count})" if event.count and event.count > 1 else ""
            yield Trouble(event.at, f"{about.kind.lower()} {about.name}", _joined(event.reason, event.message) + times)


def _joined(reason: str, message: str | None) -> str:
    text = " ".join((message or "").split())[:200]
    return f"{reason}: {text}" if text else reason


# --- The screen ---------------------------------------------------------------------------------------------------------


def page(status: Status, now: float | None = None) -> str:
    """The screen as text."""
    lines = [
        _head(status, now),
        f"gateways   {status.gateways}{_restarts(status)}{_open(status)}",
        f"GPUs       {_gpus(status)}",
    ]
    lines += ["", f"{'MODEL':28}{'STATE':12}{'READY':>6}{'WANTED':>8}{'WAITING':>9}  REPLICAS"]
    lines += [_model_row(it) for it in status.models] or ["(none known)"]
    lines += ["", f"{'CELL':12}{'STATE':24}{'HEAD':14}{'ENGINE PODS':14}{'GPUS':>5}  APPLICATIONS"]
    lines += [_cell_row(it) for it in status.cells] or ["(none known)"]
    for title, rows in (
        ("Last errors", [f"{it.at or '?':20}  {it.where}: {it.what}" for it in status.troubles]),
        ("Note", list(status.notes)),
        ("Unknown", [f"{it.reason}; try: {it.command}" for it in status.unknowns]),
    ):
        if rows:
            lines += ["", title, *(f"  {row}" for row in rows)]
    return "\n".join(lines)


def _head(status: Status, now: float | None) -> str:
    at = "" if now is None else f"   {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{status.release} in {status.namespace}{at}"


def _restarts(status: Status) -> str:
    return f", {status.gateway_restarts} restarts" if status.gateway_restarts else ""


def _open(status: Status) -> str:
    return "" if status.open_requests is None else f"; {status.open_requests} requests open at the one asked"


def _gpus(status: Status) -> str:
    held = "?" if status.gpus_held is None else status.gpus_held
    total = "an unknown number" if status.gpus_total is None else status.gpus_total
    return f"{held} held here of {total} in the cluster"


def _model_row(it: ModelStatus) -> str:
    wanted = "?" if it.wanted is None else it.wanted
    waiting = "?" if it.waiting is None else it.waiting
    ready = it.ready if it.replicas else "?"
    states = ", ".join(f"{count} {state}" for state, count in sorted(it.replicas.items()))
    return f"{it.name:28}{it.state:12}{ready:>6}{wanted:>8}{waiting:>9}  {states}"


def _cell_row(it: CellStatus) -> str:
    state = f"{it.state}, paused" if it.paused else it.state
    engines = f"{it.engine_pods[0]} of {it.engine_pods[1]}"
    applications = ", ".join(f"{name} {state}" for name, state in it.applications.items())
    return f"{it.name:12}{state:24}{it.head:14}{engines:14}{it.gpus:>5}  {applications}"


def as_json(status: Status) -> str:
    return msgspec.json.format(msgspec.json.encode(status)).decode()
