"""loadtest/kubernetes.yaml on a cluster: what it marks with CHANGE is the suite's installation, the rest stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import yaml

from loadtest import report
from loadtest.figures import Figures
from tests.cluster import values
from tests.cluster.commands import CommandFailed, Kubectl, Object
from tests.cluster.installation import LOOK_INTERVAL_S
from tests.cluster.parameters import Parameters
from tests.helm.cells import CHART
from tests.waiting import until

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
#: Lines of the master's log, from its end, that say why there is no report.
LOG_LINES = 100


def manifest(parameters: Parameters, *options: str) -> list[Object]:
    """The objects to make, with these options of `loadtest run` too."""
    pull_policy = parameters.image("loadtest").get("pullPolicy", "IfNotPresent")
    objects: list[Object] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())["items"]
    jobs = {it["metadata"]["name"]: it["spec"] for it in objects if it["kind"] == "Job"}
    for job in jobs.values():
        (container,) = job["template"]["spec"]["containers"]
        container["image"] = _image(parameters, container["image"])
        container["imagePullPolicy"] = pull_policy
        # A copy: both Jobs share what the manifest writes once.
        container["resources"] = container["resources"] | {"requests": REQUESTS}
    jobs["loadtest-workers"] |= {"parallelism": WORKERS, "completions": WORKERS}
    jobs["loadtest"]["template"]["spec"]["containers"][0]["args"] += [*OPTIONS, *options]
    return objects


def _image(parameters: Parameters, written: str) -> str:
    """What was given; else the demo's registry, the manifest's repository and, as all images have it, the chart's
    appVersion."""
    given = parameters.image("loadtest")
    registry = parameters.registry or yaml.safe_load(values.DEMO.read_text())["images"]["registry"]
    repository = given.get("repository", written.rpartition("/")[2].partition(":")[0])
    tag = given.get("tag", yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"])
    return f"{registry}/{repository}:{tag}"


@contextmanager
def applied(kubectl: Kubectl, objects: list[Object], key: str) -> Iterator[None]:
    """The objects, and those that loadtest/README.md makes beside them, for as long as the block runs.

    Raises CommandFailed where one of a name is there already; only what was made here is deleted.
    """
    scaling = [f"--from-file={FOLDER / 'scaling' / name}" for name in ("__init__.py", "traces.py")]
    with ExitStack() as made:

        def create(name: str, *arguments: str, given: str | None = None) -> None:
            kubectl("create", *arguments, given=given)
            made.callback(kubectl, "delete", name, "--ignore-not-found", timeout_s=LIMIT_S)

        create("configmap/loadtest", "configmap", "loadtest", f"--from-file={FOLDER}")
        create("configmap/loadtest-scaling", "configmap", "loadtest-scaling", *scaling)
        create("secret/loadtest-key", "secret", "generic", "loadtest-key", "--from-file=key=/dev/stdin", given=key)
        for it in objects:
            create(f"{it['kind']}/{it['metadata']['name']}", "--filename", "-", given=json.dumps(it))
        yield


def finished(kubectl: Kubectl, parameters: Parameters) -> Figures:
    """What the master found, once it is done. Raises AssertionError with the end of its log where it failed or took too
    long."""
    try:
        end = until(lambda: _end(kubectl), LIMIT_S, LOOK_INTERVAL_S)
    except AssertionError:
        end = f"not over after {LIMIT_S} s"
    if end != "Complete":
        raise AssertionError(f"job/loadtest: {end}; its log ends\n{_log(kubectl)}")
    path = parameters.folder / report.JSON
    path.write_text(kubectl("logs", "job/loadtest", "--tail=1"))
    return report.read(path)


def _end(kubectl: Kubectl) -> str:
    """How the master's Job ended: Complete or Failed; empty while it runs."""
    status = json.loads(kubectl("get", "job/loadtest", "--output", "json")).get("status", {})
    true = {it["type"] for it in status.get("conditions", []) if it["status"] == "True"}
    return next((it for it in ("Complete", "Failed") if it in true), "")


def _log(kubectl: Kubectl) -> str:
    """The end of the master's log, or why there is none."""
    try:
        return kubectl("logs", "job/loadtest", f"--tail={LOG_LINES}")
    except CommandFailed as failed:
        return str(failed)
