"""What the suite decides by itself, without a cluster: these tests run with all others."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import fields
from pathlib import Path

import pytest

from serving.wire import DirectoryAnswer, Listed, ReplicaReport, ReplicaState
from tests.cluster import conftest
from tests.cluster.cluster import Place, drainable_node, operators
from tests.cluster.commands import CommandFailed, Object, run
from tests.cluster.installation import ready
from tests.cluster.leftovers import of_release
from tests.cluster.load import Load
from tests.cluster.parameters import PREFIX, Parameters, WrongParameter, parameters


def node(name: str, *, is_ready: bool = True, **spec: object) -> Object:
    conditions = [{"type": "Ready", "status": str(is_ready)}]
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": conditions}}


def test_parameters_are_read_by_their_kind(tmp_path: Path) -> None:
    """Each variable becomes its field; what is not given is the default, and other programs' variables are left alone."""
    extra = tmp_path / "extra.yaml"
    extra.touch()
    environment = {"VALUES": f"{extra}:", "KEEP": "1", "REQUIRED": "0", "READY_TIMEOUT_S": "60", "ENGINE_TAG": "2"}

    found = parameters({f"{PREFIX}{name}": text for name, text in environment.items()} | {"HOME": "/root", "KEEP": "2"})

    assert found == Parameters(values=(extra,), keep=True, required=False, ready_timeout_s=60.0, engine_tag="2")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("REGISTY", "x", "There is no CLUSTER_TEST_REGISTY"),
        ("KEEP", "yes", "neither 1 nor 0"),
        ("READY_TIMEOUT_S", "soon", "could not convert"),
        ("VALUES", "/nowhere.yaml", "there is no file /nowhere.yaml"),
    ],
)
def test_a_wrong_parameter_is_refused(name: str, text: str, says: str) -> None:
    """A slip of the pen is a sentence that names the variable, not a suite that tests something else."""
    with pytest.raises(WrongParameter, match=says) as refused:
        parameters({PREFIX + name: text})

    assert PREFIX + name in str(refused.value)


def test_every_parameter_is_explained() -> None:
    """The page at the top of conftest.py has each variable once, and no other."""
    explained = re.findall(rf"^({PREFIX}\w+)", conftest.__doc__ or "", re.M)

    assert sorted(explained) == sorted(f"{PREFIX}{it.name.upper()}" for it in fields(Parameters))


def test_one_tag_serves_all_images_but_those_with_their_own() -> None:
    """Nothing is set that was not given, so that the demo's values stand."""
    given = Parameters(tag="1", engine_tag="2", head_repository="ray", pull_policy="Never")

    assert given.image("engine") == {"tag": "2", "pullPolicy": "Never"}
    assert given.image("head") == {"repository": "ray", "tag": "1", "pullPolicy": "Never"}
    assert Parameters().image("gateway") == {}


def test_an_operator_counts_when_it_is_ready() -> None:
    """By its chart's label or its own name, wherever it runs; one that is not ready would leave everything undone."""

    def deployment(name: str, namespace: str, replicas: int, label: str = "") -> Object:
        labels = {"app.kubernetes.io/name": label}
        return {
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "status": {"readyReplicas": replicas},
        }

    found = operators(
        [
            deployment("web", "default", 1),
            deployment("kuberay-operator", "stopped", 0),
            deployment("kuberay-operator", "ray-system", 1),
            deployment("ops-kuberay", "ops", 2, "kuberay-operator"),
        ]
    )

    assert found == ["ray-system", "ops"]


def test_a_node_is_drained_only_where_that_leaves_an_engine_serving() -> None:
    """Alone on its node, and with another node to go to: else the pod itself is evicted."""
    leaving = Place("engine-a", "one")
    elsewhere, beside = Place("engine-b", "two"), Place("engine-b", "one")

    assert drainable_node(leaving, [elsewhere], [node("one"), node("two")]) == "one"
    assert drainable_node(leaving, [beside], [node("one"), node("two")]) is None
    assert drainable_node(leaving, [elsewhere], [node("one"), node("two", unschedulable=True)]) is None
    assert drainable_node(leaving, [elsewhere], [node("one"), node("two", is_ready=False)]) is None
    tainted = node("two", taints=[{"key": "control-plane", "effect": "NoSchedule"}])
    assert drainable_node(leaving, [elsewhere], [node("one"), tainted]) is None
    assert drainable_node(leaving, [elsewhere], []) is None


def test_leftovers_are_known_by_label_annotation_or_name() -> None:
    """What helm, the chart, KubeRay and the Job made is the release's; a neighbour with a like name is not."""

    def made(kind: str, name: str, **metadata: object) -> Object:
        return {"kind": kind, "metadata": {"name": name, **metadata}}

    found = of_release(
        [
            made("RayCluster", "demo-gpt-oss-serving-cell-a-x7k2p"),
            made("Secret", "demo-gpt-oss-serving-keys"),
            made("Secret", "sh.helm.release.v1.demo.v1", labels={"owner": "helm", "name": "demo"}),
            made("ConfigMap", "grafana", annotations={"meta.helm.sh/release-name": "demo"}),
            made("PersistentVolumeClaim", "store", labels={"app.kubernetes.io/instance": "demo"}, annotations=None),
            made(
                "PersistentVolumeClaim", "demo-gpt-oss-serving-models", annotations={"helm.sh/resource-policy": "keep"}
            ),
            made("Service", "demo-gpt-oss-servings"),
            made("ConfigMap", "kube-root-ca.crt", labels=None),
        ],
        "demo",
        "demo-gpt-oss-serving",
    )

    assert {str(it): it.is_kept for it in found} == {
        "RayCluster/demo-gpt-oss-serving-cell-a-x7k2p": False,
        "Secret/demo-gpt-oss-serving-keys": True,
        "Secret/sh.helm.release.v1.demo.v1": False,
        "ConfigMap/grafana": False,
        "PersistentVolumeClaim/store": False,
        "PersistentVolumeClaim/demo-gpt-oss-serving-models": True,
    }


def test_engines_are_those_of_their_cell_that_take_requests() -> None:
    """One that drains or loads is no engine to count on, nor is another cell's; a directory adds its Ray cluster's name."""

    def answer(cell: str, **states: ReplicaState) -> DirectoryAnswer:
        listed = [Listed(ReplicaReport(name, "m", "http://e", state), 0.0) for name, state in states.items()]
        return DirectoryAnswer(cell, "1", True, tuple(listed))

    answers = [
        answer("a/demo-cell-a-x2x4z", old=ReplicaState.DRAINING, new=ReplicaState.READY),
        answer("b/demo-cell-b-q7wkm", other=ReplicaState.READY),
    ]

    assert ready(answers, "a").keys() == {"new"}
    assert ready(answers, "b").keys() == {"other"}
    assert ready(answers, "c") == {}


def test_load_keeps_every_failure_and_goes_on() -> None:
    """A call that breaks is counted with its words and its time, and the client asks the next; calls under way end well."""
    done = threading.Event()

    def ask(number: int) -> None:
        if number == 2:
            raise ConnectionError("the engine left")
        if number > 4:
            done.set()

    with Load(ask, clients=1, clock=lambda: 7.0) as load:
        done.wait(10)

    assert [str(it) for it in load.failures] == ["after 0.0 s: call 2: ConnectionError: the engine left"]
    assert load.answered >= 4


def test_a_command_that_fails_says_what_it_was() -> None:
    """Its line and its words, also when it takes too long."""
    with pytest.raises(CommandFailed, match=r"sys.exit\('no such pod'\)` failed: no such pod"):
        run([sys.executable, "-c", "import sys; sys.exit('no such pod')"])
    with pytest.raises(CommandFailed, match=r"took more than 0 s"):
        run([sys.executable, "-c", "import time; time.sleep(9)"], timeout_s=0.1)
