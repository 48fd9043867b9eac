"""`serving status`: one screen from Kubernetes' objects and a gateway's own answers, whole and half-broken."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from serving.config import GatewaySettings
from serving.gateway.api.health import StateOfModels
from serving.gateway.fleet.fleet import Model
from serving.gateway.observe.metrics import Metrics, Snapshot
from serving.operate.cluster import Cluster
from serving.operate.commands import watch
from serving.operate.status import Status
from serving.wire import ReplicaState
from tests.operate import fixtures
from tests.operate.api_server import ApiServer
from tests.operate.conftest import Command
from tests.operate.fixtures import RELEASE, TIME

METRICS = f"http:{RELEASE}-metrics:metrics"
SERVICES = (METRICS,)
PINNED = "registry.example.com/team/gateway@sha256:" + "0" * 64


def metrics(*models: Model) -> bytes:
    """What a gateway that knows these models writes: its own registry's text."""
    return asyncio.run(Metrics(lambda: Snapshot(models), GatewaySettings().slo_of).render())


def model(name: str = "gpt-oss-120b", wanted: int = 2, waiting: int = 3, **states: int) -> Model:
    counts = {ReplicaState(state): count for state, count in (states or {"ready": 1, "loading": 1}).items()}
    return Model(name, 1, 131072, counts, wanted=wanted, waiting_requests=waiting)


def installation(api: ApiServer, *, image: str = PINNED) -> ApiServer:
    """Two gateways, a cell with a head and two engines, one of them loading."""
    labels = fixtures.OURS | {"app.kubernetes.io/component": "gateway"}
    api.add(
        fixtures.node("dgx-1"),
        fixtures.deployment(RELEASE, image, labels=labels, available=2, replicas=2),
        fixtures.pod("gateway-1", "cpu-1", component="gateway", image=image),
        fixtures.pod("gateway-2", "cpu-1", component="gateway", image=image),
        fixtures.pod("head-1", "cpu-1", component="head", cell="a", image=image),
        fixtures.pod("engine-1", "dgx-1", 2, component="engine", cell="a", image=image),
        fixtures.pod(
            "engine-2",
            "dgx-1",
            2,
            component="engine",
            cell="a",
            image=image,
            status=fixtures.container_status(ready=False),
        ),
        *fixtures.gateway_services(),
        fixtures.ray_service(has_fault_tolerance=True, has_tls=True),
    )
    api.proxied[METRICS, "/health/models"] = (200, msgspec.json.encode(StateOfModels({"gpt-oss-120b": "ready"})))
    api.proxied[METRICS, "/metrics"] = (200, metrics(model()))
    return api


def screen(serving: Command) -> dict[str, Any]:
    result = serving("status", "--release", RELEASE, "--json")
    assert result.exit_code == 0, result.exception
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


def test_a_whole_installation_is_on_one_screen(api: ApiServer, serving: Command) -> None:
    """Models with states, wanted and waiting; gateways; the cell; GPUs held of those there are; nothing to note."""
    installation(api)
    seen = screen(serving)
    (served,) = seen["models"]
    assert served["state"] == "ready"
    assert (served["wanted"], served["waiting"], served["replicas"]) == (2, 3, {"ready": 1, "loading": 1})
    assert seen["gateways"] == "2 of 2 ready"
    (cell,) = seen["cells"]
    assert (cell["name"], cell["state"], cell["engine_pods"], cell["gpus"]) == ("a", "ready", [1, 2], 4)
    assert cell["applications"] == {"directory": "running", "model-gpt-oss-120b": "running"}
    assert (seen["gpus_held"], seen["gpus_total"]) == (4, 8)
    assert seen["notes"] == seen["unknowns"] == seen["troubles"] == []
    page = serving("status", "--release", RELEASE).stdout
    assert "gpt-oss-120b" in page and "4 held here of 8" in page
    assert len(page.splitlines()) <= 24


def test_a_model_that_does_not_answer_is_still_told(api: ApiServer, serving: Command) -> None:
    """`/health/models` says 503 while nothing is ready: that is the gateway's answer, not its absence."""
    installation(api)
    api.proxied[METRICS, "/health/models"] = (503, msgspec.json.encode(StateOfModels({"gpt-oss-120b": "loading"})))
    seen = screen(serving)
    assert seen["models"][0]["state"] == "loading"
    assert seen["unknowns"] == []


def test_what_cells_warn_of_is_told(api: ApiServer, serving: Command) -> None:
    """A GPU that is suspect, an engine that was taken out: the cells' own sentences, first among the notes."""
    installation(api)
    said = StateOfModels({"gpt-oss-120b": "ready"}, ["An engine of gpt-oss-120b was taken out: it talks nonsense."])
    api.proxied[METRICS, "/health/models"] = (200, msgspec.json.encode(said))
    assert screen(serving)["notes"][0] == "An engine of gpt-oss-120b was taken out: it talks nonsense."


def test_a_gateway_that_cannot_be_reached_is_unknown(api: ApiServer, serving: Command) -> None:
    """A NetworkPolicy, or no pod behind the service: unknown, with a port-forward; the rest is on the screen."""
    installation(api).proxied.clear()
    seen = screen(serving)
    assert len(seen["unknowns"]) == 2
    assert f"port-forward service/{RELEASE}" in seen["unknowns"][0]["command"]
    assert seen["cells"] and seen["gateways"] == "2 of 2 ready"


def test_another_server_behind_the_service_is_no_gateway(api: ApiServer, serving: Command) -> None:
    """What answers something else is told as unknown and not read into figures."""
    installation(api)
    api.proxied[METRICS, "/health/models"] = (200, b"<html>login</html>")
    api.proxied[METRICS, "/metrics"] = (200, b"\xff{}{}")
    seen = screen(serving)
    assert {
        "the gateway's port does not answer like a gateway",
        "the metrics port does not answer with metrics",
    } == {it["reason"] for it in seen["unknowns"]}


def test_the_last_errors_are_told_newest_first(api: ApiServer, serving: Command) -> None:
    """Crashing, killed and unschedulable pods, failed applications and warning events of this release, and of no other."""
    installation(api).add(
        fixtures.pod(
            "engine-3",
            "dgx-1",
            component="engine",
            cell="a",
            image=PINNED,
            status=fixtures.container_status(False, 7, "CrashLoopBackOff", 137, "OOMKilled"),
        ),
        fixtures.pod(
            "engine-4",
            component="engine",
            cell="a",
            image=PINNED,
            phase="Pending",
            unschedulable="0/3 nodes have 2 GPUs",
        ),
        fixtures.warning("Pod", "engine-1", "Unhealthy", "Readiness probe failed"),
        fixtures.warning("Pod", "engine-1", "FailedMount", "no volume", TIME + timedelta(hours=3)),
        fixtures.warning("Pod", "somebody-else", "Failed", "not ours"),
        fixtures.ray_service("b", failing="the checkpoint lacks config.json"),
    )
    troubles = screen(serving)["troubles"]
    said = [f"{it['where']}: {it['what']}" for it in troubles]
    assert said[0] == "pod engine-1: FailedMount: no volume (×3)"
    assert [it["at"] for it in troubles] == sorted((it["at"] for it in troubles), reverse=True)
    assert "pod engine-3: OOMKilled with 137, 7 restarts" in said
    assert "pod engine-3: CrashLoopBackOff: back-off 5m0s" in said
    assert "pod engine-4: Unschedulable: 0/3 nodes have 2 GPUs" in said
    assert "cell b, model-gpt-oss-120b: DEPLOY_FAILED: the checkpoint lacks config.json" in said
    assert not any("somebody-else" in it for it in said)


def test_what_is_risky_is_noted(api: ApiServer, serving: Command) -> None:
    """No fault tolerance, no TLS between planes, a paused cell and images by tag: none is broken, all are told."""
    installation(api, image="registry.example.com/team/gateway:0.1.0").add(fixtures.ray_service("b", paused=True))
    notes = "\n".join(screen(serving)["notes"])
    assert "cell b: no GCS fault tolerance, so a head restart stops its engines" in notes
    assert "cell b: paused" in notes
    assert "cell b: no TLS between planes" in notes
    assert "not pinned by digest: gateway:0.1.0" in notes
    assert "cell a: " not in notes


@pytest.mark.parametrize("state", ["FailedServiceReady", "Initializing"])
def test_a_cell_that_is_not_ready_says_kuberays_reason(api: ApiServer, serving: Command, state: str) -> None:
    """KubeRay's own reason is the cell's state."""
    installation(api).remove("RayService", f"{RELEASE}-cell-a")
    api.add(fixtures.ray_service(state=state))
    assert screen(serving)["cells"][0]["state"] == state


def test_a_cell_no_operator_has_seen_says_so(api: ApiServer, serving: Command) -> None:
    """A RayService without conditions was never reconciled: the operator is missing."""
    service = fixtures.ray_service()
    del service["status"]
    api.add(service)
    assert screen(serving)["cells"][0]["state"] == "never seen by an operator"


def test_an_empty_namespace_is_an_answer(api: ApiServer, serving: Command) -> None:
    """Nothing installed: the screen says so, and what it could not ask."""
    seen = screen(serving)
    assert seen["gateways"] == "none installed"
    assert seen["models"] == seen["cells"] == []
    assert "(none known)" in serving("status", "--release", RELEASE).stdout


def test_the_only_installation_of_a_namespace_is_meant(api: ApiServer, serving: Command) -> None:
    """Whatever it is called; of two, one has to be named, and of none there is no screen."""
    assert "Nothing is installed in namespace llm" in str(serving("status").exception)
    for name, told in (("blue", "blue in llm"), ("green", "has blue and green: name one with --release")):
        pod = fixtures.pod(f"{name}-1", "cpu-1", component="gateway")
        pod.metadata.labels["app.kubernetes.io/instance"] = name  # type: ignore[union-attr,index]  # it was made with them
        api.add(pod)
        said = serving("status")
        assert told in (said.stdout or str(said.exception))
    api.grant([])
    assert "name it with --release" in str(serving("status").exception)


def test_nothing_is_guessed_without_rights(api: ApiServer, serving: Command) -> None:
    """All 403: every figure is unknown, none is zero."""
    installation(api).grant([])
    seen = screen(serving)
    assert (seen["gpus_held"], seen["gpus_total"], seen["gateway_restarts"], seen["gateways"]) == (
        None,
        None,
        None,
        "unknown",
    )
    assert len(seen["unknowns"]) >= 5


def test_watching_looks_again_until_it_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """`--watch` prints the screen again and again; Ctrl-C ends it without a traceback."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    watch(lambda: f"look {len(waits)}", 0.5, sleep)
    assert waits == [0.5] * 3
    assert capsys.readouterr().out.split("\n")[:3] == ["look 0", "look 1", "look 2"]


def test_the_screen_is_a_struct_of_ours() -> None:
    """Nothing of the client's types gets past the adapter."""
    for kind in (Status, Cluster):
        assert "kubernetes" not in str(kind.__annotations__)
