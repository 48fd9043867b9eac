"""Pods of a cell carry what they need: memory, ports, time to start and to leave, and nothing said to anybody."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from itertools import pairwise
from math import ceil
from typing import Any

import pytest

from serving import catalog
from serving.catalog import Model
from serving.config import EngineSettings, Timeouts
from tests.helm.cells import CHART, SCENARIOS, Cell, Object, cell, container, environment, every_cell

MIB = 2**20
#: The agreed ranges of pod-to-pod ports (helm/templates/network/_openings.tpl).
RANGES = {
    "gcs": (6379, 6379),
    "ray": (6380, 6389),
    "serve": (8000, 8000),
    "engines": (8100, 8199),
    "dashboard": (8265, 8265),
    "client": (10001, 10001),
    "workers": (11000, 12999),
    "inside engines": (20000, 29999),
    "agent": (52365, 52365),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every cell of every scenario and values file."""
    if "one" in metafunc.fixturenames:
        found = list(every_cell())
        metafunc.parametrize("one", [it for _, it in found], ids=[name for name, _ in found])


def _gpu_templates(one: Cell) -> dict[str, Object]:
    return {name: one.templates[name] for name in one.engine_groups if name != "cpu"}


def _within(command: Object) -> int:
    line: list[str] = command["preStop"]["exec"]["command"]
    return int(line[line.index("--within-s") + 1])


# --- time -----------------------------------------------------------------------------------------------------------


def test_leaving_takes_longer_the_further_out(one: Cell) -> None:
    """A request's limit < drain < Serve's wait < preStop < Ray's own drain < kill; and heads and directories outlast engines."""
    live = one.applications["directory"]["deployments"][0]["user_config"]["engine"]
    drain = live["drain_timeout_s"]
    serve = [
        it["deployments"][0]["graceful_shutdown_timeout_s"]
        for name, it in one.applications.items()
        if name != "directory"
    ]

    assert drain >= Timeouts().request_total_s
    assert all(it > drain for it in serve)
    assert one.spec["rayClusterDeletionDelaySeconds"] > drain
    for name in one.engine_groups:
        template = one.templates[name]
        grace = template["spec"]["terminationGracePeriodSeconds"]
        ray = int(environment(template)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] or 0)
        assert drain < max(serve, default=drain + 1) < _within(container(template)["lifecycle"]) < ray < grace
        for last in ("head", "directory"):
            lasting = one.templates[last]
            assert grace < _within(container(lasting)["lifecycle"]) < lasting["spec"]["terminationGracePeriodSeconds"]


def test_redis_is_cleaned_after_the_head_has_left() -> None:
    """KubeRay gives up cleaning Redis after a time that must hold the head's leaving and its own cleaning Job of 300 s."""
    one = cell(SCENARIOS["fault tolerance, TLS, RDMA, a node's folder"])

    allowed = int(one.service["metadata"]["annotations"]["ray.io/gcs-ft-deletion-timeout"])

    assert allowed >= one.templates["head"]["spec"]["terminationGracePeriodSeconds"] + 300


def test_a_pod_may_take_as_long_as_the_largest_checkpoint(one: Cell) -> None:
    """A pod's start probe is at least as patient as the slowest start its models are allowed."""
    settings = one.applications["directory"]["deployments"][0]["user_config"]
    for entry in settings["models"]:
        model = _model(one, entry)
        limit = settings["engine"]["start_timeout_s"] + model.disk_mib / settings["engine"]["load_mib_per_s"]
        for name in one.engine_groups:
            if name != _group_of(one, entry):
                continue
            probe = container(one.templates[name])["startupProbe"]
            assert probe["periodSeconds"] * probe["failureThreshold"] >= limit


def _model(one: Cell, entry: Object) -> Model:
    own = one.applications["directory"]["deployments"][0]["user_config"]["own_models"]
    return catalog.find(entry["name"], [Model.model_validate(it) for it in own])


def _group_of(one: Cell, entry: Object) -> str:
    if "profile" not in entry:
        return "cpu"
    profile = _model(one, entry).profile(entry["profile"], entry["gpu"])
    return f"{entry['gpu']}x{profile.override(entry.get('tensor'), entry.get('pipeline'), entry.get('data')).pod_gpus}"


def test_nothing_of_kuberays_gives_up_earlier(one: Cell) -> None:
    """KubeRay's limit of a RayService's start ends in a state that only deletion leaves: there is none."""
    annotations = one.service["metadata"].get("annotations", {})
    assert "ray.io/initializing-timeout" not in annotations
    # Deprecated and read by nobody since 1.1.
    assert not one.spec.keys() & {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"}


def test_probes_ask_the_raylet_and_not_serves_proxy(one: Cell) -> None:
    """A node without a replica has no proxy, and would never be ready by KubeRay's own probe (KubeRay issue 4994)."""
    for template in one.templates.values():
        for probe in ("readinessProbe", "livenessProbe"):
            assert container(template)[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}


# --- memory ---------------------------------------------------------------------------------------------------------


def test_shared_memory_holds_the_object_store_and_every_rank(one: Cell) -> None:
    """/dev/shm is a tmpfs of Ray's object store and, for each GPU, vLLM's and NCCL's buffers; the store is capped in it."""
    assumed = one.values["engine"]["shm"]
    groups = {"head": one.cluster["headGroupSpec"]} | one.groups
    for name, template in one.templates.items():
        parameters = groups[name]["rayStartParams"]
        store = int(parameters["object-store-memory"]) // MIB
        (shm,) = (it["emptyDir"] for it in template["spec"]["volumes"] if it["name"] == "shm")
        gpus = int(parameters.get("num-gpus", 0))

        assert shm["medium"] == "Memory"
        assert _mib(shm["sizeLimit"]) >= store + assumed["baseMib"] + gpus * assumed["perGpuMib"]


def test_memory_holds_the_weights_and_what_is_pinned(one: Cell) -> None:
    """A GPU pod asks for the checkpoint it reads, its shared memory and its workers with what they pin; nothing limits it."""
    assumed = one.values["engine"]["memory"]
    models = one.applications["directory"]["deployments"][0]["user_config"]["models"]
    for name, template in _gpu_templates(one).items():
        resources = container(template)["resources"]
        gpus = int(one.groups[name]["rayStartParams"]["num-gpus"])
        weights = max((_model(one, it).disk_mib for it in models if _group_of(one, it) == name), default=0)
        (shm,) = (it["emptyDir"]["sizeLimit"] for it in template["spec"]["volumes"] if it["name"] == "shm")
        workers = gpus * (assumed["perGpuGib"] + assumed["pinnedPerGpuGib"])

        asked = _mib(resources["requests"]["memory"])

        assert asked >= weights + _mib(shm) + (assumed["baseGib"] + workers) * 1024
        assert "memory" not in resources["limits"]
        assert resources["limits"][one.values["engine"]["gpuResource"]] == str(gpus)
        # Placement reserves one core beside each GPU (serving/engine/placement.py).
        assert int(one.groups[name]["rayStartParams"]["num-cpus"]) == int(resources["requests"]["cpu"]) >= gpus


def test_adapters_are_pinned_memory() -> None:
    """Each worker keeps `max_cpu_adapters` whole adapters in pinned memory: 16 of gpt-oss-120b's largest on two ranks are 66 GiB."""
    plain = cell({})
    tuned = cell({"models": [{"name": "gpt-oss-120b", "profile": "lora"}]})

    def asked(one: Cell) -> int:
        return _mib(container(one.templates["h100x2"])["resources"]["requests"]["memory"])

    facts = json.loads((CHART / "files" / "catalog.json").read_text())["models"]["gpt-oss-120b"]
    expected = 2 * facts["lora"]["max_cpu_adapters"] * facts["adapter_gib"]
    assert asked(tuned) - asked(plain) in range(ceil(expected - 1) * 1024, ceil(expected + 1) * 1024)


def test_kv_on_the_host_is_shared_memory() -> None:
    """vLLM keeps it in a file there and does not start without room: /dev/shm and the request grow by it, once for each data rank."""
    sizes = []
    for more in ({}, {"kv_offloading_gib": 100.5}):
        one = cell({"models": [{"name": "gpt-oss-120b", "profile": "dp8-ep", "gpu": "h100", **more}]})
        template = one.templates["h100x8"]
        (shm,) = (it["emptyDir"]["sizeLimit"] for it in template["spec"]["volumes"] if it["name"] == "shm")
        sizes.append((_mib(shm), _mib(container(template)["resources"]["requests"]["memory"])))
    (shm, asked), (more_shm, more_asked) = sizes
    assert more_shm - shm == 8 * 100.5 * 1024
    assert more_asked - asked == 8 * 100.5 * 1024


def test_lmcache_keeps_kv_outside_the_pod() -> None:
    """Its server has memory of its own: vLLM ignores the size then, and the pod asks for none of it."""
    more: Object = {"kv_offloading_gib": 64, "kv_offloading_backend": "lmcache"}
    plain, beside = (cell({"models": [{"name": "qwen3-32b", **it}]}).templates for it in ({}, more))
    assert plain.keys() == beside.keys()
    for name, template in plain.items():
        assert template["spec"]["volumes"] == beside[name]["spec"]["volumes"]
        assert container(template)["resources"] == container(beside[name])["resources"]


def _mib(quantity: str) -> int:
    number, unit = int(quantity[:-2]), quantity[-2:]
    return number * {"Mi": 1, "Gi": 1024, "Ti": 1024**2}[unit]


def test_no_pod_wakes_for_what_no_one_reads(one: Cell) -> None:
    """Ray's log monitor, which sends workers' logs to drivers, is left out, and Serve updates its metrics as often as Ray
    exports them."""
    groups = {"head": one.cluster["headGroupSpec"]} | one.groups
    for name, template in one.templates.items():
        assert groups[name]["rayStartParams"]["include-log-monitor"] == "false"
        assert environment(template)["RAY_SERVE_METRICS_EXPORT_INTERVAL_MS"] == "10000"


# --- ports ----------------------------------------------------------------------------------------------------------


def test_every_port_is_in_its_range(one: Cell) -> None:
    """Ports that pods listen on lie in ranges that do not touch, and Ray is left to choose none of its own."""
    bounds = sorted(RANGES.values())
    assert all(before[1] < after[0] for before, after in pairwise(bounds))
    groups = {"head": one.cluster["headGroupSpec"]} | one.groups
    for name, template in one.templates.items():
        parameters = groups[name]["rayStartParams"]
        services = (
            "node-manager-port",
            "object-manager-port",
            "runtime-env-agent-port",
            "dashboard-agent-grpc-port",
            "metrics-export-port",
        )
        chosen = [int(parameters[it]) for it in services]
        chosen += [int(environment(template)[it] or 0) for it in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")]
        assert len(set(chosen)) == len(chosen)
        assert all(RANGES["ray"][0] <= it <= RANGES["ray"][1] for it in chosen)
        assert (int(parameters["min-worker-port"]), int(parameters["max-worker-port"])) == RANGES["workers"]
        assert int(parameters["dashboard-agent-listen-port"]) == RANGES["agent"][0]
        (sysctl,) = template["spec"]["securityContext"]["sysctls"]
        assert tuple(map(int, sysctl["value"].split())) == RANGES["inside engines"]
        ports = {it["name"]: it["containerPort"] for it in container(template)["ports"]}
        assert (ports["serve"], ports["metrics"]) == (8000, int(parameters["metrics-export-port"]))
    head = one.cluster["headGroupSpec"]["rayStartParams"]
    assert (head["port"], head["dashboard-port"], head["ray-client-server-port"]) == ("6379", "8265", "10001")
    for application in one.serve["applications"][1:]:
        assert tuple(application["args"]["engine"]["port_range"]) == RANGES["engines"]


def test_gateways_find_the_directory_before_models_are_ready(one: Cell) -> None:
    """The cell's Service leads to directory pods, ready or not, at Serve's port."""
    (service,) = one.of_kind("Service")
    labels = one.templates["directory"]["metadata"]["labels"]

    assert service["metadata"]["name"] == one.service["metadata"]["name"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= labels.items()
    assert not service["spec"]["selector"].items() <= one.templates["head"]["metadata"]["labels"].items()
    assert [it["port"] for it in service["spec"]["ports"]] == [8000]


# --- silence --------------------------------------------------------------------------------------------------------


def test_pods_tell_nobody_and_fetch_nothing(one: Cell) -> None:
    """Telemetry is off and the hub out of reach in every pod; none has a hub's token or a proxy, and Ray asks for its own."""
    for template in one.templates.values():
        said = environment(template)
        expected = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        assert expected.items() <= said.items()
        assert not said.keys() & {"HF_TOKEN", "HTTPS_PROXY", "HTTP_PROXY"}
        assert "envFrom" not in container(template)
    assert one.cluster["authOptions"]["mode"] == "token"


def test_gpu_pods_say_where_they_may_run_and_how_they_talk(one: Cell) -> None:
    """GPU pods name their nodes by product label, tolerate their taint, and name the interface of NCCL and Gloo."""
    for name, template in _gpu_templates(one).items():
        spec, said = template["spec"], environment(template)
        (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        (expression,) = term["matchExpressions"]
        wanted = one.values["engine"]
        products = wanted["gpuProducts"][name.split("x")[0]]
        assert (expression["key"], expression["values"]) == (wanted["gpuProductLabel"], products)
        assert spec["tolerations"] == wanted["tolerations"]
        assert said["NCCL_SOCKET_IFNAME"] == said["GLOO_SOCKET_IFNAME"] == wanted["networkInterface"]


def test_gpu_pods_know_nvidias_names() -> None:
    """By default they name the resource, label and taint of NVIDIA's operator, and its product label of an H100 SXM."""
    template = cell({}).templates["h100x2"]

    assert container(template)["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert template["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    (term,) = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    wanted = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-H100-80GB-HBM3"]}
    assert term["matchExpressions"] == [wanted]


def test_ipc_lock_comes_with_rdma_only(one: Cell) -> None:
    """A GPU pod may lock memory exactly when RDMA is on, and then asks for the adapter."""
    for template in one.templates.values():
        capabilities = container(template)["securityContext"]["capabilities"]
        is_on = environment(template).get("NCCL_IB_DISABLE") == "0"
        assert (capabilities.get("add") == ["IPC_LOCK"]) is is_on
        assert any(it.startswith("rdma/") for it in container(template)["resources"]["limits"]) is is_on


# --- numbers --------------------------------------------------------------------------------------------------------


def test_heads_and_directories_hold_no_engine(one: Cell) -> None:
    """Neither offers Serve a core; the directory's nodes carry its Ray label, which no engine's do."""
    assert one.cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert one.groups["directory"]["rayStartParams"]["num-cpus"] == "0"
    wanted = one.applications["directory"]["args"]["labels"]
    assert one.groups["directory"]["labels"] == wanted
    for group in one.engine_groups.values():
        assert group["labels"].items() & wanted.items() == set()


def test_a_group_has_room_for_every_models_least(one: Cell) -> None:
    """A group's pods are at least the sum of its models' fixed fleets and minimums, and a fixed group cannot change."""
    if one.spec.get("suspend"):
        assert all(group["replicas"] == 0 for group in one.groups.values())
        return
    models = one.applications["directory"]["deployments"][0]["user_config"]["models"]
    for name, group in one.engine_groups.items():
        mine = [it for it in models if _group_of(one, it) == name]
        # Engines on CPUs share the pods there are.
        least = 1 if name == "cpu" and mine else sum(_pods(one, it) for it in mine)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] >= least
        if not one.cluster.get("enableInTreeAutoscaling"):
            assert group["minReplicas"] == group["maxReplicas"]


def _pods(one: Cell, entry: dict[str, Any]) -> int:
    nodes = _model(one, entry).profile(entry["profile"], entry["gpu"]).nodes
    return nodes * int(entry.get("min_replicas", 1))


def test_fleets_grow_between_the_sums_of_bounds() -> None:
    """Where nodes may grow, Ray's autoscaler moves a group between its models' minimums and maximums; version 2 knows labels."""
    one = cell(SCENARIOS["nodes grow"])

    group = one.groups["h100x2"]

    assert one.cluster["enableInTreeAutoscaling"] is True
    assert one.cluster["autoscalerOptions"]["version"] == "v2"
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (1, 1, 4)


def test_models_of_one_shape_share_its_pods() -> None:
    """Two models of one shape have one group with pods for both."""
    one = cell({"models": [{"name": "gpt-oss-120b", "max_replicas": 3}, {"name": "qwen3-32b", "max_replicas": 2}]})

    assert {name: group["replicas"] for name, group in one.engine_groups.items()} == {"h100x2": 5}


def test_every_group_has_a_budget_of_disruption(one: Cell) -> None:
    """A node's drain takes one pod of a group at a time, and a head only when a head may restart; each by a whole number."""
    budgets = {
        it["metadata"]["name"].removeprefix(one.service["metadata"]["name"] + "-"): it["spec"]
        for it in one.of_kind("PodDisruptionBudget")
    }
    expected = {name: group["minReplicas"] - 1 for name, group in one.groups.items() if group["minReplicas"]}
    if not one.spec.get("suspend"):
        expected["head"] = 0 if "gcsFaultToleranceOptions" in one.cluster else 1

    assert {name: it["minAvailable"] for name, it in budgets.items()} == expected
    for name, it in budgets.items():
        labels = one.templates[name]["metadata"]["labels"] | {"ray.io/group": name}
        assert it["selector"]["matchLabels"].items() <= labels.items()


def test_fault_tolerance_takes_its_password_from_a_secret() -> None:
    """With a Redis, KubeRay reads its password from the Secret and workers wait longer than a head's restart."""
    one = cell(SCENARIOS["fault tolerance, TLS, RDMA, a node's folder"])

    options = one.cluster["gcsFaultToleranceOptions"]

    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "redis-password"}}}
    for name in one.groups:
        assert int(environment(one.templates[name])["RAY_gcs_rpc_server_reconnect_timeout_s"] or 0) >= 600


def test_the_catalogues_defaults_are_the_settings() -> None:
    """Time-outs that the chart derives from begin with the settings' own defaults."""
    live = cell({}).applications["directory"]["deployments"][0]["user_config"]["engine"]
    defaults = EngineSettings()

    for name in ("start_timeout_s", "load_mib_per_s", "drain_timeout_s", "heartbeat_s"):
        assert live[name] == getattr(defaults, name)


def test_ray_is_the_one_that_is_tested() -> None:
    """KubeRay is told the version of Ray that the lock installs: nodes of another are refused by Ray."""
    assert cell({}).cluster["rayVersion"] == version("ray")


@pytest.mark.parametrize("tag", ["1.2.3", "v" * 70, "2026-11-23_"], ids=["short", "long", "odd end"])
def test_an_images_version_is_a_label(tag: str) -> None:
    """A tag may be longer than a label, and end as none may: the label keeps to its form, and another tag has another."""
    versions = [_version(tag), _version(f"{tag}x")]

    assert all(re.fullmatch(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", it) for it in versions)
    assert versions[0] != versions[1]
    assert tag != "1.2.3" or versions[0] == tag


def _version(tag: str) -> str:
    head = cell({"images": {"head": {"tag": tag}}}).templates["head"]
    return str(head["metadata"]["labels"]["app.kubernetes.io/version"])
