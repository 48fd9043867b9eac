"""`serving preflight --probe`: it makes two things and takes both away, whatever happens in between."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.errors import Refusal
from serving.operate import permissions, probe
from serving.operate.cluster import Cluster, connect
from serving.operate.permissions import Rule, Scope
from serving.operate.values import Claim
from tests.clock import Clock
from tests.operate.api_server import NAMESPACE, ApiServer
from tests.operate.conftest import Command
from tests.operate.fixtures import fit_cluster

IMAGE = ("--probe", "--probe-image", "registry.example.com/gateway:0.1.0")


def found(stdout: str) -> dict[str, Any]:
    (check,) = (it for it in json.loads(stdout)["checks"] if it["name"] == "Probe")
    return dict(check)


def test_a_probe_that_works_leaves_nothing(api: ApiServer, serving: Command) -> None:
    """The pod and the claim were really made, strictly valid and "restricted", and both are gone."""
    api.grant([*permissions.preflight(NAMESPACE), *permissions.PROBE])
    result = serving("preflight", "--json", *IMAGE)
    assert found(result.stdout)["answer"] == "yes"
    assert {it.resource for it in api.asked if it.verb == "create"} == {"pods", "persistentvolumeclaims"}
    assert api.names("Pod") == api.names("PersistentVolumeClaim") == set()


@pytest.mark.parametrize(("code", "word"), [(3, "write to the volume"), (4, "resolve"), (1, "its program failed")])
def test_the_exit_code_says_what_failed(api: ApiServer, serving: Command, code: int, word: str) -> None:
    """A volume that cannot be written to and a name that is not resolved are told apart; nothing is left."""
    terminated = {"terminated": {"exitCode": code, "reason": "Error"}}
    status = {"name": "probe", "ready": False, "restartCount": 0, "image": "", "imageID": "", "state": terminated}
    api.created_pod_status = {"phase": "Failed", "containerStatuses": [status]}
    result = serving("preflight", "--json", *IMAGE)
    assert found(result.stdout)["answer"] == "no"
    assert word in found(result.stdout)["says"]
    assert api.names("Pod") == api.names("PersistentVolumeClaim") == set()


def test_a_pod_that_never_runs_is_taken_away_and_explained(api: ApiServer, config: Any) -> None:
    """When time is up the reason it waits for is told, the image here; pod and claim are gone."""
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such host"}}
    status = {"name": "probe", "ready": False, "restartCount": 0, "image": "", "imageID": "", "state": waiting}
    api.created_pod_status = {"phase": "Pending", "containerStatuses": [status]}
    clock = Clock()
    check = probe.run(connect(config), "image", Claim("weights", "", ("ReadWriteMany",)), 3, clock, clock.advance)
    assert check.answer == "no"
    assert "ImagePullBackOff" in check.says
    assert api.names("Pod") == api.names("PersistentVolumeClaim") == set()


def test_an_interrupted_probe_leaves_nothing(api: ApiServer, config: Any) -> None:
    """Ctrl-C while it waits takes both away too."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    api.created_pod_status = {"phase": "Pending"}
    with pytest.raises(KeyboardInterrupt):
        probe.run(connect(config), "image", Claim("weights", "", ()), 300, sleep=interrupt)
    assert api.names("Pod") == api.names("PersistentVolumeClaim") == set()


def test_without_the_right_to_create_it_is_unknown(api: ApiServer, serving: Command) -> None:
    """A claim that may be made and a pod that may not: unknown, and the claim is gone again."""
    api.grant([it for it in permissions.PROBE if it.resource != "pods"])
    result = serving("preflight", "--json", *IMAGE)
    assert found(result.stdout)["answer"] == "unknown"
    assert 'cannot create resource "pods"' in found(result.stdout)["says"]
    assert api.names("PersistentVolumeClaim") == set()


def test_what_cannot_be_taken_away_is_told(api: ApiServer, serving: Command) -> None:
    """Who may create and not delete hears what is left, and the command that removes it."""
    claims = Rule("persistentvolumeclaims", ("create",), Scope.RELEASE, "")
    api.grant([*(it for it in permissions.PROBE if it.resource == "pods"), claims])
    told = found(serving("preflight", "--json", *IMAGE).stdout)
    assert told["answer"] == "no"
    assert "left behind" in told["says"]
    assert "kubectl -n llm delete persistentvolumeclaims serving-probe-" in told["command"]


def test_it_needs_an_image(api: ApiServer, serving: Command) -> None:
    """Nobody else's registry is trusted: without one in the values or by hand it is refused, and nothing is made."""
    fit_cluster(api)
    refused = serving("preflight", "--probe").exception
    assert isinstance(refused, Refusal) and "--probe-image" in str(refused)
    assert not [it for it in api.asked if it.verb == "create"]


def test_its_namespace_is_the_installations(config: Any) -> None:
    """Where nothing is said, it is the context's."""
    cluster = connect(config)
    assert isinstance(cluster, Cluster) and cluster.namespace == NAMESPACE
    assert connect(config, namespace="other").namespace == "other"
