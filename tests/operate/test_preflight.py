"""`serving preflight` against clusters of fixtures: whole ones, half-broken ones, and ones that show little."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from typer.testing import Result

from serving.errors import Refusal
from serving.operate import permissions
from serving.operate.checks import GpuNode, fit
from serving.operate.cluster import PAGE
from serving.operate.values import EnginePods
from tests.operate import fixtures
from tests.operate.api_server import NAMESPACE, ApiServer, kubeconfig, plain
from tests.operate.conftest import Command
from tests.operate.fixtures import fit_cluster

#: The chart's own values but for SQLite's claim, which not every test's cluster has a class for.
ROOM = "Room for gpt-oss-120b in cell a"


def answers(result: Result) -> dict[str, str]:
    """Check → its answer."""
    return {check["name"]: check["answer"] for check in json.loads(result.stdout)["checks"]}


def says(result: Result, name: str) -> str:
    (check,) = (it for it in json.loads(result.stdout)["checks"] if it["name"] == name)
    return f"{check['says']} {check['command']}"


def values(folder: Path, **content: Any) -> str:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_fit_cluster_gets_a_yes_to_everything(api: ApiServer, serving: Command) -> None:
    """Nothing is missing: every answer is yes, and the exit code 0."""
    fit_cluster(api)
    result = serving("preflight", "--json")
    assert set(answers(result).values()) == {"yes"}, result.stdout
    assert result.exit_code == 0


def test_it_changes_nothing(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """Only reads reach the server, and no Secret's content leaves it."""
    fit_cluster(api).add(fixtures.secret("db"))
    result = serving("preflight", "--json", "-f", values(tmp_path, store={"postgresql": {"secretName": "db"}}))
    assert answers(result)["Secret db"] == "yes"
    assert {it.verb for it in api.asked} <= {"get", "list"}
    assert not api.has_leaked


def test_a_page_shows_the_command_that_mends(api: ApiServer, serving: Command) -> None:
    """What says no is followed by a command; the exit code is 1."""
    fit_cluster(api).remove("Deployment", "kuberay-operator")
    result = serving("preflight")
    assert result.exit_code == 1
    assert "helm install kuberay-operator" in result.stdout


@pytest.mark.parametrize(("minor", "answer"), [("30", "no"), ("31", "yes"), ("31+", "yes"), ("37", "yes")])
def test_kubernetes_has_a_lowest_version(api: ApiServer, serving: Command, minor: str, answer: str) -> None:
    """The chart's kubeVersion is the limit; clouds write a plus behind their minor."""
    fit_cluster(api).minor = minor
    assert answers(serving("preflight", "--json"))["Kubernetes version"] == answer


@pytest.mark.parametrize(
    ("found", "answer", "word"),
    [
        (None, "no", "No operator is installed"),
        (fixtures.operator("1.4.2"), "no", "1.4.2"),
        (fixtures.operator(available=0), "no", "none of its pods"),
        (fixtures.operator(watch="elsewhere"), "no", "does not watch"),
        (fixtures.operator(watch=f"other,{NAMESPACE}"), "yes", "1.7.0"),
        (fixtures.operator("1.7.3"), "yes", "1.7.3"),
    ],
)
def test_the_operator_must_run_be_new_enough_and_look_here(
    api: ApiServer, serving: Command, found: object, answer: str, word: str
) -> None:
    """No operator, an old one, one whose pods crash, and one for other namespaces all start nothing here."""
    fit_cluster(api).remove("Deployment", "kuberay-operator")
    if found:
        api.add(found)
    result = serving("preflight", "--json")
    assert answers(result)["KubeRay operator"] == answer
    assert word in says(result, "KubeRay operator")


def test_an_old_definition_is_found_by_its_fields(api: ApiServer, serving: Command) -> None:
    """Helm never upgrades definitions, so a new operator may run beside an old one, which drops fields in silence."""
    fit_cluster(api).remove("CustomResourceDefinition", "rayservices.ray.io")
    api.add(fixtures.definition(without="authOptions"))
    result = serving("preflight", "--json")
    assert answers(result)["RayService definition"] == "no"
    assert "spec.rayClusterConfig.authOptions" in says(result, "RayService definition")


def test_without_a_definition_it_says_what_to_install(api: ApiServer, serving: Command) -> None:
    """A cluster without KubeRay's kinds is a no, with the command that brings them."""
    fit_cluster(api).remove("CustomResourceDefinition", "rayservices.ray.io")
    result = serving("preflight", "--json")
    assert answers(result)["RayService definition"] == "no"
    assert "kubectl apply --server-side" in says(result, "RayService definition")


# --- GPUs ---------------------------------------------------------------------------------------------------------------


def test_free_gpus_are_those_nobody_asked_for(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """Running pods of every namespace hold theirs, finished ones do not; the answer counts what would not fit."""
    fit_cluster(api).add(
        fixtures.pod("train-1", "dgx-1", 7, namespace="research"),
        fixtures.pod("train-2", "dgx-2", 7, namespace="research"),
        fixtures.pod("done", "dgx-2", 8, namespace="research", phase="Succeeded"),
    )
    result = serving("preflight", "--json")
    assert answers(result)[ROOM] == "no"
    assert "dgx-1 has 1 free; dgx-2 has 1 free" in says(result, ROOM)


def test_pods_are_counted_over_several_pages(api: ApiServer, serving: Command) -> None:
    """A cluster with more pods than a page holds is counted whole: the last page's GPUs are held too."""
    fit_cluster(api).add(fixtures.pod("web", "cpu-1", namespace="web"))
    api.objects["", "pods"] *= PAGE
    api.add(
        fixtures.pod("z-1", "dgx-1", 8, namespace="research"), fixtures.pod("z-2", "dgx-2", 8, namespace="research")
    )
    assert answers(serving("preflight", "--json"))[ROOM] == "no"


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (fixtures.node("dgx-1", cordoned=True), "cordoned"),
        (fixtures.node("dgx-1", ready=False), "not ready"),
        (fixtures.node("dgx-1", taint="team/research"), "tainted team/research"),
    ],
)
def test_a_node_that_takes_no_pods_has_no_room(
    api: ApiServer, serving: Command, tmp_path: Path, changed: client.V1Node, word: str
) -> None:
    """Cordoned, not ready or tainted, a node's GPUs count for nothing; NVIDIA's own taint is tolerated."""
    fit_cluster(api).remove("Node", "dgx-1")
    api.remove("Node", "dgx-2")
    api.add(changed)
    result = serving("preflight", "--json")
    assert word in says(result, "GPU nodes")
    assert answers(result)[ROOM] == "no"
    assert "no node may take it" in says(result, ROOM)


@pytest.mark.parametrize(
    ("product", "answer"),
    [
        ("NVIDIA-H100-80GB-HBM3", "yes"),
        ("NVIDIA-A100-SXM4-80GB", "no"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "no"),
        ("NVIDIA-H100-80GB-HBM3-SHARED", "no"),
        ("NVIDIA-H200", "no"),
    ],
)
def test_only_whole_gpus_of_the_right_kind_count(api: ApiServer, serving: Command, product: str, answer: str) -> None:
    """Another kind, a slice or a shared GPU is not the one that the profile's memory was computed for."""
    fit_cluster(api).remove("Node", "dgx-1")
    api.remove("Node", "dgx-2")
    api.add(fixtures.node("gpu-1", product))
    result = serving("preflight", "--json")
    assert answers(result)["GPU nodes"] == answer
    assert answers(result)[ROOM] == answer


def test_nodes_without_labels_are_unknown(api: ApiServer, serving: Command) -> None:
    """Without GPU feature discovery nobody knows which GPUs these are: unknown, and what to install."""
    fit_cluster(api).remove("Node", "dgx-1")
    api.add(fixtures.node("dgx-1", product=""))
    result = serving("preflight", "--json")
    assert answers(result)["GPU nodes"] == "unknown"
    assert "GPU feature discovery" in says(result, "GPU nodes")


@pytest.mark.parametrize(("driver", "answer"), [(535, "no"), (580, "yes"), (None, "unknown")])
def test_the_driver_must_be_of_the_images_cuda(
    api: ApiServer, serving: Command, driver: int | None, answer: str
) -> None:
    """CUDA 13 needs driver 580; one old node is enough for a no, and a node without the label for an unknown."""
    fit_cluster(api).remove("Node", "dgx-2")
    api.add(fixtures.node("dgx-2", driver=driver))
    assert answers(serving("preflight", "--json"))["GPU driver"] == answer


def test_drivers_of_other_kinds_do_not_matter(api: ApiServer, serving: Command) -> None:
    """An old driver on nodes that no engine would go to stops nobody."""
    fit_cluster(api).add(fixtures.node("old-1", "NVIDIA-A100-SXM4-80GB", driver=535))
    assert answers(serving("preflight", "--json"))["GPU driver"] == "yes"


def test_the_fullest_node_that_has_room_is_taken() -> None:
    """So that whole nodes stay whole."""
    nodes = [GpuNode(name, "NVIDIA-H100-80GB-HBM3", 8, free, 580) for name, free in (("a", 8), ("b", 4))]
    pods = EnginePods("a", "m", "h100", 2, 1, 1)
    assert fit(nodes, [(pods, 1)])[pods].left == {"a": 8, "b": 2}


def test_pods_that_want_more_memory_are_placed_first() -> None:
    """Whichever the values name first: the small one would take the only node with room for the large one."""
    nodes = [
        GpuNode(name, "NVIDIA-H100-80GB-HBM3", 8, free, 580, 1000, memory)
        for name, free, memory in (("a", 8, 500), ("b", 4, 700))
    ]
    small, large = (EnginePods("a", name, "h100", 4, 1, 1, memory) for name, memory in (("s", 300), ("l", 600)))
    for groups in ([small, large], [large, small]):
        assert [it.placed for it in fit(nodes, [(group, 1) for group in groups]).values()] == [1, 1]


@pytest.mark.parametrize(
    ("entry", "memory", "sentence"),
    [
        (
            {"kv_offloading_gib": 1500},
            "1000Gi",
            r"[\d,]+ GiB of memory, 1,500 of them for KV, .* lower the largest `kv_offloading_gib`",
        ),
        ({}, "64Gi", r"\d+ GiB of memory and the largest node with H100-80GB, dgx-\d, has 64: use nodes with more\."),
    ],
)
def test_a_pod_that_no_node_has_the_memory_for_is_a_no(
    api: ApiServer, serving: Command, tmp_path: Path, entry: dict[str, Any], memory: str, sentence: str
) -> None:
    """However many GPUs are free: what a pod asks for, what the largest node has, and what to change."""
    fit_cluster(api)
    for name in ("dgx-1", "dgx-2"):
        api.remove("Node", name)
        api.add(fixtures.node(name, memory=memory))
    result = serving("preflight", "--json", "-f", values(tmp_path, models=[{"name": "gpt-oss-120b", **entry}]))
    assert answers(result)[ROOM] == "no"
    assert re.match(rf"A pod asks for {sentence}", says(result, ROOM)), says(result, ROOM)


def test_memory_is_held_as_gpus_are(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """Other pods' requests count, and each engine's pod takes its own: two of some 480 GiB fill a node of 1,000 that has GPUs left."""
    fit_cluster(api)

    def asked(engines: int) -> Result:
        entry = {"name": "gpt-oss-120b", "kv_offloading_gib": 400, "min_replicas": engines, "max_replicas": engines}
        return serving("preflight", "--json", "-f", values(tmp_path, models=[entry]))

    assert answers(asked(4))[ROOM] == "yes"
    assert answers(asked(5))[ROOM] == "no"
    assert "dgx-1 has 4 free with" in says(asked(5), ROOM)
    api.add(fixtures.pod("database", "dgx-1", namespace="research", memory="600Gi"))
    assert answers(asked(3))[ROOM] == "no"
    assert "dgx-1 has 8 free with 400 GiB of memory, and a pod asks for" in says(asked(3), ROOM)
    assert answers(asked(2))[ROOM] == "yes"


@pytest.mark.parametrize("memory", [0, "", [], {"baseGib": -8}, {"baseGib": math.inf}, {"baseGib": "much"}])
def test_memory_that_is_none_is_refused(serving: Command, tmp_path: Path, memory: object) -> None:
    """What is no mapping, and sizes that are none: by key, before a cluster is asked."""
    refused = serving("preflight", "-f", values(tmp_path, engine={"memory": memory})).exception
    assert isinstance(refused, Refusal) and "engine.memory" in str(refused)


def test_drivers_are_read_from_labels_of_old_and_new(api: ApiServer, serving: Command) -> None:
    """GPU feature discovery renamed its labels; clusters have either."""
    fit_cluster(api).remove("Node", "dgx-2")
    old = plain(fixtures.node("dgx-2", driver=None))
    old["metadata"]["labels"]["nvidia.com/cuda.driver.major"] = "535"
    api.add(old)
    assert answers(serving("preflight", "--json"))["GPU driver"] == "no"


def test_small_pods_leave_room_for_whole_nodes(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """Largest first, and the fullest node first: 4 × 2 GPUs and one whole node fit two DGX, as Serve packs them."""
    fit_cluster(api)
    models = [
        {"name": "gpt-oss-120b", "min_replicas": 4, "max_replicas": 4},
        {"name": "gpt-oss-20b", "profile": "latency", "min_replicas": 0, "max_replicas": 1},
    ]
    eight = {"name": "gpt-oss-120b", "profile": "latency-tp8"}
    result = serving(
        "preflight", "--json", "-f", values(tmp_path, models=models, cells={"a": {}, "b": {"models": [eight]}})
    )
    assert answers(result)[ROOM] == "yes"
    assert answers(result)["Room for gpt-oss-120b in cell b"] == "yes"
    assert "of at most 1 there is room for 0" in says(result, "Room for gpt-oss-20b in cell a")


def test_a_paused_cell_asks_for_nothing(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """A paused cell has no engine pods, so a second one fits where only one would."""
    fit_cluster(api).remove("Node", "dgx-2")
    models = [{"name": "gpt-oss-120b", "min_replicas": 4, "max_replicas": 4}]
    both = values(tmp_path, models=models, cells={"a": {}, "b": {}})
    assert answers(serving("preflight", "--json", "-f", both))["Room for gpt-oss-120b in cell b"] == "no"
    paused = values(tmp_path, models=models, cells={"a": {}, "b": {"paused": True}})
    assert set(answers(serving("preflight", "--json", "-f", paused)).values()) == {"yes"}


def test_the_cpu_demo_needs_no_gpu(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """With the CPU profile no node with GPUs is looked for."""
    fit_cluster(api).remove("Node", "dgx-1")
    api.remove("Node", "dgx-2")
    file = values(tmp_path, profile="cpu", models=[{"name": "smollm2-135m-instruct"}])
    result = serving("preflight", "--json", "-f", file)
    assert set(answers(result).values()) == {"yes"}
    assert "GPU driver" not in answers(result)


def test_a_profile_that_cannot_work_is_a_no(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """What the budget refuses before an engine starts is refused before an installation too."""
    fit_cluster(api)
    file = values(tmp_path, models=[{"name": "gpt-oss-120b", "profile": "balanced", "tensor": 3}])
    result = serving("preflight", "--json", "-f", file)
    assert answers(result)["Spread over GPUs"] == "no"
    assert "attention heads" in says(result, "Spread over GPUs")


# --- Storage, DNS, namespace, Secrets, rights ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provisioner", "answer"),
    [
        ("efs.csi.aws.com", "yes"),
        ("ebs.csi.aws.com", "no"),
        ("rancher.io/local-path", "no"),
        ("csi.example.com", "unknown"),
    ],
)
def test_weights_need_a_volume_that_nodes_share(
    api: ApiServer, serving: Command, provisioner: str, answer: str
) -> None:
    """Provisioners that are known say yes or no; for any other only the probe can tell."""
    fit_cluster(api).remove("StorageClass", "shared")
    api.add(fixtures.storage_class("standard", provisioner, is_default=True))
    result = serving("preflight", "--json")
    assert answers(result)["Storage for weights"] == answer
    assert answers(result)["Storage for tenants, keys and ledger"] == "yes"


def test_a_storage_class_that_is_not_there_is_a_no(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """A class that the values name must exist, and without one there must be a default."""
    fit_cluster(api)
    named = values(tmp_path, modelVolume={"storageClassName": "fast"})
    assert "There is no StorageClass fast" in says(serving("preflight", "--json", "-f", named), "Storage for weights")
    api.remove("StorageClass", "shared")
    assert "is the default one" in says(serving("preflight", "--json"), "Storage for weights")


def test_dns_that_is_down_is_a_no(api: ApiServer, serving: Command) -> None:
    """Without a ready pod behind kube-dns no name is resolved."""
    fit_cluster(api).remove("EndpointSlice", "kube-dns-x")
    assert answers(serving("preflight", "--json"))["DNS"] == "unknown"
    api.add(fixtures.dns(ready=False))
    assert answers(serving("preflight", "--json"))["DNS"] == "no"


def test_a_node_path_needs_an_exempt_namespace(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """hostPath is what "restricted" forbids: a no that names the value, and a yes where nothing is enforced."""
    file = values(tmp_path, modelVolume={"hostPath": "/data/models"})
    fit_cluster(api)
    result = serving("preflight", "--json", "-f", file)
    assert answers(result)["Pod Security"] == "no"
    assert "modelVolume.hostPath" in says(result, "Pod Security")
    api.remove("Namespace", NAMESPACE)
    api.add(fixtures.namespace(level=""))
    assert answers(serving("preflight", "--json", "-f", file))["Pod Security"] == "yes"


def test_secrets_that_the_values_name_must_exist(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """Each named Secret is looked for; one that cert-manager will make is not."""
    file = values(
        tmp_path,
        store={"postgresql": {"secretName": "db"}},
        weights={"envSecretName": "hub"},
        images={"pullSecrets": ["registry"]},
        gateway={"tls": {"secretName": "api-tls", "certManager": {"issuer": "corp"}}},
    )
    fit_cluster(api).groups["cert-manager.io"] = ["v1"]
    api.add(fixtures.secret("db"), fixtures.secret("registry"))
    found = answers(serving("preflight", "--json", "-f", file))
    assert (found["Secret db"], found["Secret hub"], found["Secret registry"]) == ("yes", "no", "yes")
    assert "Secret api-tls" not in found


def test_what_the_values_switch_on_must_be_served(api: ApiServer, serving: Command, tmp_path: Path) -> None:
    """Prometheus' operator, cert-manager and the Gateway API are looked for when asked for, and only then."""
    file = values(
        tmp_path,
        monitoring={"serviceMonitor": {"enabled": True}},
        planeTls={"certManager": {"issuer": "corp"}},
        gateway={"httpRoute": {"enabled": True}},
    )
    fit_cluster(api).groups["cert-manager.io"] = ["v1"]
    found = answers(serving("preflight", "--json", "-f", file))
    assert (found["Prometheus operator"], found["cert-manager"], found["Gateway API"]) == ("no", "yes", "no")
    assert not {"Prometheus operator", "cert-manager", "Gateway API"} & answers(serving("preflight", "--json")).keys()


def test_rights_to_install_are_asked_for(api: ApiServer, serving: Command) -> None:
    """A kind that may not be created is named; the reviews themselves need no rights."""
    fit_cluster(api).refused = {"rayservices", "networkpolicies"}
    assert "may not create networkpolicies, rayservices" in says(serving("preflight", "--json"), "Rights to install")


# --- What may not be seen -----------------------------------------------------------------------------------------------


def test_without_any_rights_everything_is_unknown_or_asked_otherwise(api: ApiServer, serving: Command) -> None:
    """Real 403s: each becomes an unknown with the command that settles it, never a traceback, and the exit code is 0."""
    fit_cluster(api).grant([])
    result = serving("preflight", "--json")
    found = answers(result)
    assert set(found.values()) == {"yes", "unknown"}
    assert {name for name, answer in found.items() if answer == "yes"} == {"Kubernetes version", "Rights to install"}
    assert "is forbidden" in says(result, "GPU nodes")
    assert "kubectl get nodes" in says(result, "GPU nodes")
    assert result.exit_code == 0


def test_unseen_pods_leave_room_unknown(api: ApiServer, serving: Command) -> None:
    """Who may list nodes and no pods cannot know what is free; what does not fit even so is still a no."""
    every = permissions.preflight(NAMESPACE)
    fit_cluster(api).grant([it for it in every if it.resource != "pods"])
    assert answers(serving("preflight", "--json"))[ROOM] == "unknown"
    api.remove("Node", "dgx-1")
    api.remove("Node", "dgx-2")
    assert answers(serving("preflight", "--json"))[ROOM] == "no"


def test_wrong_credentials_are_one_sentence(api: ApiServer, serving: Command, config: Path) -> None:
    """A 401, or nobody there: a Refusal that names kubectl, not a page of unknowns."""
    kubeconfig(config.parent, api.url, token="wrong")
    refused = serving("preflight").exception
    assert isinstance(refused, Refusal) and "kubectl version" in str(refused)
    kubeconfig(config.parent, "http://127.0.0.1:1")
    assert "does not answer" in str(serving("preflight").exception)


def test_no_cluster_is_one_sentence(tmp_path: Path, serving: Command, config: Path) -> None:
    """A kubeconfig that is not there is refused with what to do."""
    config.unlink()
    assert "--kubeconfig" in str(serving("preflight").exception)
