"""The manifest of a run from inside a cluster: objects that Kubernetes takes, and pods that have what they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from loadtest.__main__ import parser
from tests.loadtest.running import ROOT

FOLDER = ROOT / "loadtest"
ITEMS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())["items"]
JOBS = {it["metadata"]["name"]: it["spec"] for it in ITEMS if it["kind"] == "Job"}
PODS = {name: spec["template"]["spec"] for name, spec in JOBS.items()}
#: Where each ConfigMap's files are in the checkout.
SOURCES = {"loadtest": FOLDER, "loadtest-scaling": FOLDER / "scaling"}


@pytest.mark.parametrize("kubernetes", ["1.31", "1.36"])
@pytest.mark.parametrize("it", ITEMS, ids=lambda it: f"{it['kind']} {it['metadata']['name']}")
def test_objects_are_kubernetes_own(it: dict[str, Any], kubernetes: str) -> None:
    """Each passes Kubernetes' strict schemas."""
    kubernetes_validate.validate(it, kubernetes, strict=True)


def test_master_and_workers_agree() -> None:
    """On their number, the port, the name and the image; and their options are ones that the command takes."""
    master = parser().parse_args(PODS["loadtest"]["containers"][0]["args"])
    worker = parser().parse_args(PODS["loadtest-workers"]["containers"][0]["args"])
    (service,) = [it for it in ITEMS if it["kind"] == "Service"]
    assert JOBS["loadtest-workers"]["parallelism"] == JOBS["loadtest-workers"]["completions"] == master.await_workers
    assert worker.master == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    assert master.bind[1] == worker.master[1]
    assert service["spec"]["selector"].items() <= JOBS["loadtest"]["template"]["metadata"]["labels"].items()
    assert len({pod["containers"][0]["image"] for pod in PODS.values()}) == 1


@pytest.mark.parametrize("name", PODS)
def test_pods_carry_all_the_code_they_run(name: str, tmp_path: Path) -> None:
    """What the ConfigMaps put below PYTHONPATH is enough for the command and for Locust's part of it."""
    (projected,) = [it["projected"] for it in PODS[name]["volumes"] if "projected" in it]
    for source in projected["sources"]:
        for item in source["configMap"]["items"]:
            (tmp_path / item["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCES[source["configMap"]["name"]] / item["key"], tmp_path / item["path"])
    # The image has `serving` installed; nothing else of the checkout may be found.
    (tmp_path / "serving").symlink_to(ROOT / "serving")
    code = "import loadtest.__main__, loadtest.swarm, loadtest.charts; print(loadtest.__file__)"
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-P", "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(tmp_path / "loadtest" / "__init__.py"), done.stderr


@pytest.mark.parametrize("name", PODS)
def test_pods_are_as_bound_as_the_charts(name: str) -> None:
    """No root, no writable root, no capabilities, no token of the cluster's API."""
    pod, container = PODS[name], PODS[name]["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
