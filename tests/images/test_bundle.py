"""From the bundle alone: images and weights go in, and in a place without a network the same stack comes out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.images.conftest import ROOT
from tests.images.podman import SETTINGS, Podman
from tests.images.test_engine_cpu import MODEL, START_TIMEOUT_S, answer, checkpoint, open_to_group
from tests.waiting import until

pytestmark = pytest.mark.images
#: The least a chart can be: what is carried does not depend on what else ours renders.
TEMPLATE = """
kind: List
items:
  - {kind: Deployment, spec: {template: {spec: {containers: [{name: gateway, image: "%(gateway)s"}]}}}}
  - {kind: RayService, spec: {rayClusterConfig: {headGroupSpec: {template: {spec: {containers: [{image: "%(engine)s"}]}}}}}}
"""
#: Everything after the journey happens in a network namespace that has not even a route.
ISOLATED = ("unshare", "--net")


def serving(*arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> str:
    """A `serving` command; what it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "serving", *arguments],
        env=os.environ | {"CONTAINERS_CONF": str(SETTINGS)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def chart(folder: Path, gateway: str, engine: str) -> Path:
    about = {"apiVersion": "v2", "name": "demo", "version": "0.1.0", "appVersion": "test"}
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(yaml.safe_dump(about))
    (folder / "values.yaml").write_text(yaml.safe_dump({"models": [{"name": MODEL}]}))
    (folder / "templates" / "all.yaml").write_text(TEMPLATE % {"gateway": gateway, "engine": engine})
    return folder


def empty_store(folder: Path) -> Path:
    """A storage.conf of a podman that has never seen an image."""
    folder.mkdir()
    path = folder / "storage.conf"
    path.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n')
    return path


def test_stack_starts_from_the_bundle_alone(
    podman: Podman, gateway: str, tools: str, engine: str, helm: Path, tmp_path: Path, home: Path
) -> None:
    """Export → verify → load into an empty store → gateway and engine in a namespace without a route → Paris."""
    checkpoint()
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"images": {"registry": "localhost/gpt-oss-serving"}}))
    cargo = tmp_path / "demo.tar"
    arguments = [
        "--chart",
        str(chart(tmp_path / "demo", gateway, engine)),
        "--values",
        str(values),
        "--operator",
        "none",
    ]
    path = f"{helm.parent}:{os.environ['PATH']}"

    listed = serving("bundle", "list", *arguments, PATH=path)
    said = serving(
        "bundle", "export", str(cargo), *arguments, "--from", "podman", PATH=path, SERVING_HOME=str(ROOT / ".cache")
    )

    assert listed.split() == ["image", engine, "image", gateway, "image", tools, "model", MODEL]
    checksum = said.split()[-1]
    storage = empty_store(tmp_path / "store")
    there = Podman(storage)
    assert there("images", "--quiet") == ""
    loading = ["bundle", "load", str(cargo), "--into", "podman", "--models", str(home / "models"), "--sha256", checksum]
    (home / "models").mkdir()
    serving(*loading, prefix=ISOLATED, CONTAINERS_STORAGE_CONF=str(storage), SERVING_HOME=str(tmp_path / "nothing"))
    cargo.unlink()
    try:
        _answers(there, gateway, engine, home)
    finally:
        there("system", "reset", "--force")


def _answers(podman: Podman, gateway: str, engine: str, home: Path) -> None:
    """Engine and gateway as two pods on one network, each with its own volume: the gateway's image answers Paris."""
    open_to_group(home)
    up = ["serving", "up", "--model", MODEL, "--port", "8080"]
    with podman.running(engine, up, ["-v", f"{home}:/var/lib/serving", "--shm-size=1g"]) as plane:
        until(lambda: "Base URL" in plane.log() or not plane.is_running(), START_TIMEOUT_S, 1)
        assert plane.is_running(), plane.log()[-3000:]
        settings = yaml.safe_load((home / "logs" / "gateway-settings.yaml").read_text())
        (directory,) = settings["gateway"]["directories"]
        own = home / "gateway"
        own.mkdir()
        shutil.copy(home / "plane.secret", own)
        open_to_group(own)
        asked = ["gateway", "--directory", directory, "--port", "8081"]
        volume = ["-v", f"{own}:/var/lib/serving"]
        with podman.running(gateway, asked, volume, network=f"container:{plane.id}") as front:
            until(lambda: front.ask("http://127.0.0.1:8081/health/models")[0] == 200, 60, 1)

            assert "Paris" in answer(front, own, "http://127.0.0.1:8081")
            assert len(front.execute("cat", "/proc/net/route").splitlines()) == 1  # the heading
