"""Engines on GPUs that are only counted: several logical nodes in this machine, the production deployment, a scripted vLLM.

Ray hands out logical GPUs exactly as it does real ones, CUDA_VISIBLE_DEVICES included; no kernel runs.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import psutil
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from serving import catalog, secret
from serving.config import EngineSettings, ModelSettings, Settings
from serving.engine import app, leave, processes, specs
from serving.engine.directory import SILENCE_MAX_S
from serving.engine.engine import free_port
from serving.wire import DirectoryAnswer, GatewayReport, ReplicaReport, ReplicaState, Traffic
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[1] / "engine" / "scripted_vllm.py"
NODES = 4
GPUS = 8
DIRECTORY_NODE = {"role": "directory"}
BIG = "gpt-oss-120b"
SMALL = "gpt-oss-20b"


class Record(msgspec.Struct):
    """What a scripted engine was given."""

    devices: str | None
    line: list[str]
    pid: int


class Cell:
    """A Ray cluster of counted GPUs with a directory on it."""

    def __init__(self, home: Path, gpus_per_node: int = GPUS, drain_timeout_s: float = 1, nodes: int = NODES) -> None:
        self.records = home / "records"
        self.records.mkdir(parents=True)
        (home / "logs").mkdir()
        (home / "checkpoint").mkdir()
        self.home = home
        os.environ |= app.SERVE_ENVIRONMENT | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "SCRIPTED_VLLM_RECORDS": str(self.records),
        }
        self.secret_file = secret.create_if_absent(home)
        program = (sys.executable, str(SCRIPT))
        self.settings = Settings(
            home=home,
            engine=EngineSettings(
                program=program,
                gpus_per_node=gpus_per_node,
                drain_timeout_s=drain_timeout_s,
                directory_labels=DIRECTORY_NODE,
            ),
        )
        head = {"num_cpus": 4, "num_gpus": 0, "labels": DIRECTORY_NODE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.gpus_per_node = gpus_per_node
        self.nodes = [self.add_node() for _ in range(nodes)]
        ray.init(address=self.cluster.address, log_to_driver=False)
        port = free_port("127.0.0.1")
        self.directory = f"http://127.0.0.1:{port}"
        self.wanted: dict[str, specs.Deployment] = {}
        #: What the gateway that a test stands in for tells the directory each time it asks.
        self.traffic: dict[str, Traffic] = {}
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        app.deploy("cell", self.directory, self.settings, [])

    def add_node(self) -> Any:
        """Ray's own handle of a node, which has no public type."""
        labels = {"ray.io/accelerator-type": "H100"}
        return self.cluster.add_node(num_cpus=16, num_gpus=self.gpus_per_node, labels=labels)

    def want(self, model: str, engines: int, **knobs: object) -> None:
        """Set a model's fleet, as a change of settings does."""
        wanted = ModelSettings.model_validate(
            {"name": model, "gpu": "h100", "min_replicas": engines, "max_replicas": engines} | knobs
        )
        self.wanted[model] = specs.deployment_of(catalog.find(model), wanted, self.settings, self.home / "checkpoint")
        self.deploy()

    def remove(self, model: str) -> None:
        """Take a model out of the settings."""
        del self.wanted[model]
        self.deploy()

    def deploy(self) -> None:
        app.deploy("cell", self.directory, self.settings, list(self.wanted.values()))

    def answer(self) -> DirectoryAnswer:
        headers = {"Authorization": f"Bearer {self.secret_file.read_text().strip()}"}
        said = msgspec.json.encode(GatewayReport("test", traffic=self.traffic))
        request = urllib.request.Request(f"{self.directory}/directory", data=said, headers=headers)
        # A node that dies in the middle of a report holds the directory up until Ray gives it up.
        with urllib.request.urlopen(request, timeout=SILENCE_MAX_S) as response:
            return msgspec.json.decode(response.read(), type=DirectoryAnswer)

    def in_state(self, model: str, state: ReplicaState) -> list[ReplicaReport]:
        reports = [it.report for it in self.answer().replicas if it.heard_ago_s < 3]
        return [it for it in reports if it.model == model and it.state is state]

    def ready(self, model: str) -> list[ReplicaReport]:
        return self.in_state(model, ReplicaState.READY)

    def until_ready(self, model: str, members: int) -> list[ReplicaReport]:
        """Wait until so many are ready and Serve has nothing left to change."""
        app_name = f"model-{model}"
        until(
            lambda: len(self.ready(model)) == members and serve.status().applications[app_name].status == "RUNNING",
            240,
            0.5,
        )
        return self.ready(model)

    def record(self, report: ReplicaReport) -> Record:
        """What the engine of a replica was given."""
        written = self.records / f"{report.url.rpartition(':')[2]}.json"
        return msgspec.json.decode(written.read_bytes(), type=Record)

    def looks(self, report: ReplicaReport) -> int:
        """How often a replica's engine was asked for its figures."""
        return (self.records / f"{report.url.rpartition(':')[2]}.looks").stat().st_size

    def pids(self, model: str) -> set[int]:
        return {self.record(it).pid for it in self.ready(model)}

    def shortage(self, model: str) -> str:
        """Why there are fewer engines of a model than are needed."""
        return next(it.shortage for it in self.answer().models if it.name == model) or ""

    def drain_node(self, node_id: str) -> None:
        """Tell Ray that a node is about to go, as a pod that is stopped does."""
        leave.drain(node_id, within_s=600)

    @property
    def busy(self) -> Path:
        """While this file is there every engine says that a stream runs."""
        return self.records / "busy"

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        processes.kill_all(processes.orphans)


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    it = Cell(tmp_path)
    yield it
    it.close()


def held(reports: list[ReplicaReport]) -> dict[str, list[str]]:
    """Node → the GPUs held on it."""
    result: dict[str, list[str]] = {}
    for report in reports:
        result.setdefault(report.node, []).extend(report.devices)
    return result


def test_four_nodes_hold_sixteen_engines_and_their_gpus_are_disjoint(cell: Cell) -> None:
    """TP=2 fills 32 GPUs and nobody shares; a lost node costs what it held; TP=8 waits for a node rather than straddle."""
    cell.want(SMALL, NODES * GPUS // 2, profile="balanced", tensor=2)
    reports = cell.until_ready(SMALL, NODES * GPUS // 2)
    every_gpu = sorted(str(index) for index in range(GPUS))
    assert {node: sorted(gpus) for node, gpus in held(reports).items()} == {it.node_id: every_gpu for it in cell.nodes}
    for report in reports:  # the engine sees exactly the GPUs that Ray gave to its replica
        assert sorted((cell.record(report).devices or "").split(",")) == sorted(report.devices)

    cell.want(BIG, 1, profile="latency", tensor=8)
    until(lambda: "waits for a node with 8 free H100s; the freest has 0" in cell.shortage(BIG), 60, 0.5)
    before, victim = cell.pids(SMALL), cell.nodes.pop()
    lost = {cell.record(it).pid for it in reports if it.node == victim.node_id}
    cell.cluster.remove_node(victim, allow_graceful=False)
    until(lambda: len(cell.ready(SMALL)) == len(before - lost), 60, 0.5)
    cell.nodes.append(cell.add_node())
    cell.until_ready(SMALL, NODES * GPUS // 2)
    assert len(lost) == GPUS // 2 and cell.pids(SMALL) > before - lost
    # Whoever of the lost engines outlived their node was swept before these started.
    assert not any(psutil.pid_exists(pid) for pid in lost)

    assert cell.ready(BIG) == []
    cell.want(SMALL, (NODES - 1) * GPUS // 2, profile="balanced", tensor=2)
    (big,) = cell.until_ready(BIG, 1)
    assert len(big.devices) == GPUS


def test_changing_one_model_leaves_the_others_processes_alone(cell: Cell) -> None:
    """Adding, changing and removing a model: every other engine keeps its process."""
    cell.want(SMALL, 2, profile="balanced", tensor=2)
    cell.until_ready(SMALL, 2)
    before = cell.pids(SMALL)
    cell.want(BIG, 1, profile="balanced")
    cell.until_ready(BIG, 1)
    first = cell.pids(BIG)
    cell.want(BIG, 1, profile="latency", tensor=4)
    until(lambda: cell.pids(BIG) and cell.pids(BIG) != first, 120, 0.5)
    cell.remove(BIG)
    until(lambda: not cell.ready(BIG), 60, 0.5)
    assert cell.pids(SMALL) == before
    cell.want(SMALL, 3, profile="balanced", tensor=2)  # more of the same: none of those that run restarts
    cell.until_ready(SMALL, 3)
    assert before < cell.pids(SMALL)


def test_a_setting_that_restarts_nobody_reaches_those_who_run(cell: Cell) -> None:
    """A slower heartbeat shows in how long ago replicas were heard, and their engines keep their processes."""
    cell.want(SMALL, 2, profile="balanced", tensor=2)
    cell.until_ready(SMALL, 2)
    before = cell.pids(SMALL)
    slower = cell.settings.engine.model_copy(update={"heartbeat_s": 2.0})
    cell.settings = cell.settings.model_copy(update={"engine": slower})
    cell.want(SMALL, 2, profile="balanced", tensor=2)
    until(lambda: min(it.heard_ago_s for it in cell.answer().replicas) > 1.2, 60, 0.05)  # both at once is no hiccup
    assert cell.pids(SMALL) == before


def test_after_fifty_random_steps_a_whole_node_is_still_found(cell: Cell) -> None:
    """Small engines come and go; Serve fills one node before the next, so a TP=8 engine finds one that is free."""
    random = Random(7)
    for _ in range(50):
        count = random.randint(1, 8)
        cell.want(SMALL, count, profile="balanced", tensor=2)
        if random.random() < 0.3:
            cell.until_ready(SMALL, count)
    cell.want(SMALL, 8, profile="balanced", tensor=2)
    cell.until_ready(SMALL, 8)
    cell.want(BIG, 1, profile="latency", tensor=8)
    (big,) = cell.until_ready(BIG, 1)
    assert len(big.devices) == GPUS


def test_models_share_the_gpus_by_priority(tmp_path: Path) -> None:
    """Four kinds at once: 20b takes what is free until 120b comes, which is served first; models on the CPU need none."""
    cell = Cell(tmp_path, nodes=1)
    try:
        for name in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
            cell.want(name, 1, gpu=None)  # on the CPU
            cell.until_ready(name, 1)
        cell.traffic = {SMALL: Traffic(arrived_prompt_tokens=1e9)}  # more than any fleet can do
        cell.want(SMALL, 1, profile="balanced", max_replicas=GPUS)
        cell.until_ready(SMALL, GPUS)
        cell.want(BIG, 1, profile="latency", tensor=4, priority=1)
        cell.until_ready(BIG, 1)
        until(lambda: len(cell.ready(SMALL)) == GPUS // 2, 60, 0.5)
        assert f"{GPUS // 2} of {GPUS} engines granted" in cell.shortage(SMALL) and BIG in cell.shortage(SMALL)
        cell.remove(BIG)
        cell.until_ready(SMALL, GPUS)
        assert cell.pids("smollm2-135m-instruct") and cell.pids("all-minilm-l6-v2")
    finally:
        cell.close()


def test_an_engine_over_two_nodes_lands_as_a_gang(tmp_path: Path) -> None:
    """DP=8 with EP on nodes of four GPUs: two members, each with a node's GPUs, that know the same head."""
    cell = Cell(tmp_path, gpus_per_node=4)
    try:
        cell.want(BIG, 1, profile="dp8-ep")
        members = cell.until_ready(BIG, 2)
        assert Counter(it.rank for it in members) == {0: 1, 1: 1}
        assert len({it.node for it in members}) == 2 and all(len(it.devices) == 4 for it in members)
        lines = [cell.record(it).line for it in members]
        heads = {" ".join(line[line.index("--master-addr") + 1 : line.index("--master-port") + 2]) for line in lines}
        assert len(heads) == 1 and sum("--headless" in line for line in lines) == 1
    finally:
        cell.close()


@pytest.mark.parametrize("way", ["scale-in", "upgrade", "node drain"])
def test_a_replica_that_goes_lets_its_streams_finish(tmp_path: Path, way: str) -> None:
    """It takes no more requests, stays as long as a stream runs, and is gone when none does, whyever it has to go."""
    cell = Cell(tmp_path, drain_timeout_s=120)
    try:
        cell.want(SMALL, 2 if way == "scale-in" else 1, profile="balanced", tensor=2)
        before = cell.until_ready(SMALL, 2 if way == "scale-in" else 1)
        cell.busy.touch()
        if way == "scale-in":
            cell.want(SMALL, 1, profile="balanced", tensor=2)
        elif way == "upgrade":
            cell.want(SMALL, 1, profile="balanced", tensor=4)
        else:
            cell.drain_node(before[0].node)
        (going,) = until(lambda: cell.in_state(SMALL, ReplicaState.DRAINING), 60, 0.5)
        pid = cell.record(going).pid
        if way == "node drain":  # a replacement serves before the old one goes
            assert [it.node != before[0].node for it in cell.ready(SMALL)] == [True]
        looks = cell.looks(going)
        until(lambda: cell.looks(going) > looks + 3, 30, 0.1)  # it has looked for streams, and seen one
        assert psutil.pid_exists(pid) and [it.replica_id for it in cell.in_state(SMALL, ReplicaState.DRAINING)] == [
            going.replica_id
        ]
        cell.busy.unlink()
        until(lambda: not psutil.pid_exists(pid), 60, 0.5)
        cell.until_ready(SMALL, 1)
    finally:
        cell.close()
