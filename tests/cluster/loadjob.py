"""loadtest/kubernetes.yaml on a cluster: what it marks with CHANGE is the suite's installation, the rest stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from loadtest import report
from loadtest.figures import Figures
from tests.cluster import values
from tests.cluster.commands import Kubectl, Object
from tests.cluster.parameters import Parameters
from tests.helm.cells import CHART

FOLDER = CHART.parent / "loadtest"
WORKERS = 2
#: A load that one engine on a shared core keeps up with. Later options win over the manifest's.
OPTIONS = (
    f"--await-workers={WORKERS}",
    "--rate=0.5",
    "--shape=steady",
    "--duration-s=40",
    "--mix=chat=1",
    "--token-scale=0.05",
)
#: What a pod asks of its node; the manifest's own would not fit beside engines on two cores.
REQUESTS = {"cpu": "50m", "memory": "256Mi"}
#: Seconds until the run is over: a start of each pod, workers that find their master, the load, the last answers.
LIMIT_S = 900


def manifest(parameters: Parameters, *options: str) -> list[Object]:
    """The objects to apply, with these options of `loadtest run` too."""
    given = parameters.image("loadtest")
    registry = parameters.registry or yaml.safe_load(values.DEMO.read_text())["images"]["registry"]
    objects: list[Object] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())["items"]
    jobs = {it["metadata"]["name"]: it["spec"] for it in objects if it["kind"] == "Job"}
    for job in jobs.values():
        (container,) = job["template"]["spec"]["containers"]
        repository, _, tag = container["image"].rpartition("/")[2].partition(":")
        repository, tag = given.get("repository", repository), given.get("tag", tag)
        container["image"] = f"{registry}/{repository}:{tag}"
        container["imagePullPolicy"] = given.get("pullPolicy", "IfNotPresent")
        # A copy: both Jobs share what the manifest writes once.
        container["resources"] = container["resources"] | {"requests": REQUESTS}
    jobs["loadtest-workers"] |= {"parallelism": WORKERS, "completions": WORKERS}
    jobs["loadtest"]["template"]["spec"]["containers"][0]["args"] += [*OPTIONS, *options]
    return objects


@contextmanager
def applied(kubectl: Kubectl, objects: list[Object], key: str) -> Iterator[None]:
    """The objects, and those that loadtest/README.md makes beside them, for as long as the block runs."""
    scaling = [f"--from-file={FOLDER / 'scaling' / name}" for name in ("__init__.py", "traces.py")]
    try:
        kubectl("create", "configmap", "loadtest", f"--from-file={FOLDER}")
        kubectl("create", "configmap", "loadtest-scaling", *scaling)
        kubectl("create", "secret", "generic", "loadtest-key", "--from-file=key=/dev/stdin", given=key)
        kubectl("apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        yield
    finally:
        made = [f"{it['kind']}/{it['metadata']['name']}" for it in objects]
        made += ["configmap/loadtest", "configmap/loadtest-scaling", "secret/loadtest-key"]
        kubectl("delete", *made, "--ignore-not-found", timeout_s=LIMIT_S)


def finished(kubectl: Kubectl, parameters: Parameters) -> Figures:
    """What the master found, once it is done."""
    kubectl("wait", "--for=condition=complete", f"--timeout={LIMIT_S}s", "job/loadtest", timeout_s=LIMIT_S + 30)
    path = parameters.folder / report.JSON
    path.write_text(kubectl("logs", "job/loadtest", "--tail=1"))
    return report.read(path)
