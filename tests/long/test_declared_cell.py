"""A cell as KubeRay makes it: Ray's own head, and Serve's declarative configuration handed to it over HTTP.

Two models in one cell: the default one on real vLLM, encrypted to a real gateway; another on a scripted vLLM, which is
changed while the first one runs.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import yaml

from serving import secret
from serving.engine import processes
from serving.plane_tls import SERVER_NAME, client_context
from serving.wire import DirectoryAnswer, ReplicaReport, ReplicaState
from tests.certificates import issue
from tests.long import trees
from tests.stack.conftest import SMOLLM2
from tests.stack.running import CACHE, NO_COMPILER, free_port
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "engine" / "scripted_vllm.py"
OTHER = "random-gpt-oss"
BIN = Path(sys.executable).parent
FIRST_PORT = 18100
ENGINE_NODE = {"gpt-oss-serving/role": "engine"}
#: Seconds running streams may take when their engine goes.
DRAIN_S = 60
#: Tokens of a stream that runs for some ten seconds on two cores.
LONG = 400


class Cell:
    """A Ray head with Serve's configuration API, and a gateway before what runs on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "models").symlink_to(CACHE / "models")
        (home / "records").mkdir()
        self.secret_file = secret.create_if_absent(home)
        token = secret.create_if_absent(home, "ray.token")
        self.tls = issue(home, SERVER_NAME, "127.0.0.1")
        self.serve_port, self.dashboard_port, self.gateway_port = free_port(), free_port(), free_port()
        gcs_port = free_port()
        self.environment = (
            dict(os.environ)
            | NO_COMPILER
            | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_ADDRESS": f"127.0.0.1:{gcs_port}",
                "SCRIPTED_VLLM_RECORDS": str(home / "records"),
                "PYTHONPATH": str(ROOT),
            }
        )
        head = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs_port}", "--num-cpus=4"]
        head += [f"--labels={next(iter(ENGINE_NODE))}=engine"]
        head += ["--include-dashboard=true", f"--dashboard-port={self.dashboard_port}", f"--temp-dir={_short(home)}"]
        head += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=80000000"]
        self.processes = [self._started("ray", str(BIN / "ray"), *head)]
        self.config = self.first_config()

    def first_config(self) -> dict[str, Any]:
        tls = self.tls.model_dump(mode="json")
        plane = {"home": str(self.home), "secret_file": str(self.secret_file), "plane_tls": tls, "labels": ENGINE_NODE}
        engine = {"host": None, "port_range": [FIRST_PORT, FIRST_PORT + 99], "kv_cache_gib": 1}
        scripted = engine | {"program": [sys.executable, str(SCRIPT)]}
        live = {"engine": {"drain_timeout_s": DRAIN_S}}
        return {
            "proxy_location": "HeadOnly",
            "http_options": {
                "host": "127.0.0.1",
                "port": self.serve_port,
                "ssl_certfile": tls["certificate_file"],
                "ssl_keyfile": tls["key_file"],
            },
            "applications": [
                {
                    "name": "directory",
                    "route_prefix": "/directory",
                    "import_path": "serving.engine.cluster:directory",
                    "args": {"cell": "a", "secret_file": str(self.secret_file)},
                    "deployments": [
                        {"name": "Directory", "user_config": {"models": [{"name": SMOLLM2}, {"name": OTHER}]}}
                    ],
                },
                self.application(SMOLLM2, plane | {"engine": engine}, live),
                self.application(OTHER, plane | {"engine": scripted, "plane_tls": None}, live),
            ],
        }

    def application(self, name: str, arguments: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
        hook = {"model": name, "members": 1, "directory": f"https://127.0.0.1:{self.serve_port}"}
        hook |= {"secret_file": str(self.secret_file), "ca_file": str(self.tls.ca_file)}
        return {
            "name": f"model-{name}",
            "route_prefix": None,
            "import_path": "serving.engine.cluster:model",
            "args": arguments | {"model": {"name": name}},
            "deployments": [
                {
                    "name": "Replica",
                    "user_config": live,
                    "graceful_shutdown_timeout_s": DRAIN_S + 5,
                    "autoscaling_config": {
                        "min_replicas": 1,
                        "max_replicas": 1,
                        "upscale_delay_s": 0,
                        "downscale_delay_s": 0,
                        "policy": {"policy_function": "serving.engine.hook:Wanted", "policy_kwargs": hook},
                    },
                }
            ],
        }

    def apply(self) -> None:
        """Hand the configuration to Serve, as KubeRay does."""
        token = (self.home / "ray.token").read_text().strip()
        url = f"http://127.0.0.1:{self.dashboard_port}/api/serve/applications/"

        def is_taken() -> bool:
            try:
                headers = {"Authorization": f"Bearer {token}"}
                answer = httpx.put(url, json=self.config, headers=headers, timeout=30)
            except httpx.TransportError:
                return False  # the head is still starting
            return answer.is_success

        until(is_taken, 120, 1)

    def change(self, model: str, **arguments: Any) -> None:
        """Another value of one application's arguments."""
        self.config = deepcopy(self.config)
        (found,) = [it for it in self.config["applications"] if it["name"] == f"model-{model}"]
        found["args"] |= arguments
        self.apply()

    def ready(self, model: str) -> list[ReplicaReport]:
        try:
            answer = httpx.get(
                f"https://127.0.0.1:{self.serve_port}/directory",
                headers={"Authorization": f"Bearer {self.secret_file.read_text().strip()}"},
                verify=client_context(self.tls.ca_file),
                timeout=20,
            )
        except httpx.TransportError:
            return []
        if not answer.is_success:
            return []
        listed = msgspec.json.decode(answer.content, type=DirectoryAnswer)
        reports = [it.report for it in listed.replicas if it.heard_ago_s < 3]
        return [it for it in reports if it.model == model and it.state is ReplicaState.READY]

    def until_ready(self, model: str, but: str = "") -> ReplicaReport:
        return until(lambda: [it for it in self.ready(model) if it.replica_id != but], 300, 0.5)[0]

    def leave(self) -> subprocess.Popen[bytes]:
        """What the preStop hook of a pod runs."""
        within = ("--within-s", str(2 * DRAIN_S))
        return self._started("leave", sys.executable, "-m", "serving.engine.leave", *within)

    def start_gateway(self) -> openai.OpenAI:
        """A gateway that knows the engine plane by its authority, and shows clients the same certificate."""
        settings = self.home / "settings.yaml"
        tls = self.tls.model_dump(mode="json")
        gateway = {
            "port": self.gateway_port,
            "directories": [f"https://127.0.0.1:{self.serve_port}"],
            "tls": {name: tls[name] for name in ("certificate_file", "key_file")},
        }
        settings.write_text(yaml.safe_dump({"home": str(self.home), "plane_tls": tls, "gateway": gateway}))
        self.processes.append(
            self._started("gateway", sys.executable, "-m", "serving", "--settings", str(settings), "gateway")
        )
        url = f"https://127.0.0.1:{self.gateway_port}"
        verify = ssl.create_default_context(cafile=self.tls.ca_file)
        until(lambda: _answers(f"{url}/health/models", verify), 60, 0.2)
        key = (self.home / "admin.key").read_text().strip()
        return openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=httpx.Client(verify=verify), max_retries=0)

    def _started(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.out").open("wb") as output:
            return subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, cwd=self.home, start_new_session=True
            )

    def close(self) -> None:
        for process in reversed(self.processes):
            trees.kill(process)
        processes.kill_all(processes.orphans)


def _short(home: Path) -> Path:
    """Ray's sockets lie below it, and their paths must stay under 108 bytes."""
    return Path("/tmp") / f"rc-{home.parent.name[-8:]}-{os.getpid()}"


def _answers(url: str, verify: Any) -> bool:
    try:
        return httpx.get(url, verify=verify, timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    it = Cell(tmp_path)
    yield it
    it.close()


def test_a_declared_cell_answers_over_tls_and_a_change_restarts_its_own_model_alone(cell: Cell) -> None:
    """Paris by way of TLS from end to end; one model's arguments change, live settings change, the other's pid stays."""
    cell.apply()
    first, other = cell.until_ready(SMOLLM2), cell.until_ready(OTHER)
    assert first.url.startswith("https://") and other.url.startswith("http://")
    assert FIRST_PORT <= int(first.url.rpartition(":")[2]) <= FIRST_PORT + 99
    client = cell.start_gateway()
    question: Any = [{"role": "user", "content": "Name the capital of France."}]
    answer = client.chat.completions.create(model=SMOLLM2, messages=question)
    assert "Paris" in (answer.choices[0].message.content or "")

    engine = {"host": None, "port_range": [FIRST_PORT, FIRST_PORT + 99], "program": [sys.executable, str(SCRIPT)]}
    cell.change(OTHER, engine=engine | {"kv_cache_gib": 2})
    replaced = cell.until_ready(OTHER, but=other.replica_id)
    for application in cell.config["applications"][1:]:
        (deployment,) = application["deployments"]
        deployment["user_config"] = {"engine": {"drain_timeout_s": DRAIN_S - 1}}
        deployment["autoscaling_config"] |= {"max_replicas": 2}
    cell.apply()
    streamed = client.chat.completions.create(model=SMOLLM2, messages=question, stream=True)
    assert "Paris" in "".join(it.choices[0].delta.content or "" for it in streamed)
    assert [it.replica_id for it in cell.ready(SMOLLM2)] == [first.replica_id]
    assert [it.replica_id for it in cell.ready(OTHER)] == [replaced.replica_id]

    stream = client.completions.create(
        model=SMOLLM2, prompt="Once upon a time", max_tokens=LONG, extra_body={"min_tokens": LONG}, stream=True
    )
    next(iter(stream))  # it runs
    leaving = cell.leave()
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert leaving.wait(2 * DRAIN_S) == 0 and not processes.members()
