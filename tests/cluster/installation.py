"""One release of the chart, and what an operator does with it. Shared by all tests of the suite, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec
import openai

from serving.wire import DirectoryAnswer, ReplicaReport, ReplicaState
from tests.cluster import values
from tests.cluster.cluster import Place
from tests.cluster.commands import CommandFailed, Helm, Kubectl, Object
from tests.cluster.leftovers import Inventory, Leftover, inventory, of_release
from tests.cluster.parameters import Parameters
from tests.helm.cells import CHART
from tests.waiting import until

RELEASE = "cluster-test"
#: By the chart's helper: the release's name does not contain the chart's.
FULLNAME = f"{RELEASE}-gpt-oss-serving"
GATEWAY = f"deployment/{FULLNAME}-gateway"
#: Of a gateway, in its pod.
SETTINGS = "/etc/serving/settings.yaml"
TENANT = "team"
#: Seconds between two looks at the cluster.
LOOK_INTERVAL_S = 5.0
#: Seconds that helm's hooks may take: a Job that makes Secrets, whose image may have to be pulled.
HOOKS_TIMEOUT_S = 600
#: Asks every cell's directory from inside a gateway's pod, which has the plane secret and is let through by the policies;
#: the secret does not leave it. A paused cell has no directory to answer.
ASK_DIRECTORIES = """
import json, ssl, sys, urllib.request, yaml
settings = yaml.safe_load(open(sys.argv[1]))
secret = open(settings["plane_secret_file"]).read().split()[0]
tls = settings.get("plane_tls")
context = ssl.create_default_context(cafile=tls["ca_file"]) if tls else None
if context:
    context.check_hostname = False
answers = []
for url in settings["gateway"]["directories"]:
    request = urllib.request.Request(url + "/directory", headers={"Authorization": "Bearer " + secret})
    try:
        answers.append(json.load(urllib.request.urlopen(request, timeout=10, context=context)))
    except OSError:
        pass
print(json.dumps(answers))
"""


class Installation:
    """The release, whether it is there or not."""

    def __init__(self, kubectl: Kubectl, helm: Helm, parameters: Parameters, operator_namespace: str) -> None:
        self.kubectl = kubectl
        self.helm = helm
        self.parameters = parameters
        self._base = values.base(parameters, operator_namespace, kubectl.namespace)
        self.key = ""

    # --- helm -----------------------------------------------------------------------------------------------------------

    def apply(self, step: Object) -> None:
        """`helm upgrade --install` with the values of a step. Returns when helm's hooks ran, not when pods do."""
        own = self.parameters.folder / "suite-values.json"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(self._base))
        files = [word for path in (values.DEMO, own, *self.parameters.values) for word in ("--values", str(path))]
        hooks = ("--timeout", f"{HOOKS_TIMEOUT_S}s")
        self.helm(
            "upgrade", "--install", RELEASE, str(CHART), *files, *hooks, given=step, timeout_s=HOOKS_TIMEOUT_S + 60
        )

    def is_there(self) -> bool:
        """Whether helm knows the release, in whatever state."""
        try:
            self.helm("status", RELEASE)
        except CommandFailed as failed:
            if "not found" in failed.said:
                return False
            raise
        return True

    def test(self) -> None:
        """`helm test`, which waits for an answer."""
        limit_s = 4 * HOOKS_TIMEOUT_S
        self.helm("test", RELEASE, "--timeout", f"{limit_s}s", timeout_s=limit_s + 60)

    def revision(self) -> int:
        """The release's newest."""
        history = json.loads(self.helm("history", RELEASE, "--max", "1", "--output", "json"))
        return int(history[-1]["revision"])

    def rollback(self, revision: int) -> None:
        limit_s = HOOKS_TIMEOUT_S
        self.helm("rollback", RELEASE, str(revision), "--timeout", f"{limit_s}s", timeout_s=limit_s + 60)

    def uninstall(self) -> None:
        """Returns when helm is done; pods still leave as their preStop says."""
        self.helm("uninstall", RELEASE, "--ignore-not-found", "--timeout", f"{HOOKS_TIMEOUT_S}s", timeout_s=900)

    # --- Gateways -------------------------------------------------------------------------------------------------------

    def gateway_ready(self) -> None:
        """Waits until every gateway is this revision's."""
        limit_s = self.parameters.ready_timeout_s
        self.kubectl("rollout", "status", GATEWAY, f"--timeout={limit_s:.0f}s", timeout_s=limit_s + 30)

    def serving(self, *arguments: str) -> str:
        """The `serving` command in a gateway's pod, as NOTES has it."""
        return self.kubectl("exec", GATEWAY, "--", "serving", "--settings", SETTINGS, *arguments)

    def ledger(self) -> list[Object]:
        """Closed calls of the tenant, oldest first."""
        rows: list[Object] = json.loads(self.serving("usage", "--tenant", TENANT, "--calls", "100000", "--json"))
        return [it for it in rows if it["outcome"] != "open"]

    @contextmanager
    def client(self) -> Iterator[openai.OpenAI]:
        """The official client through a port-forward, with the tenant's key; it never asks twice, so that no failure hides."""
        with self.kubectl.forwarded(f"service/{FULLNAME}", 80) as port:
            url = f"http://127.0.0.1:{port}/v1"
            with openai.OpenAI(base_url=url, api_key=self.key, max_retries=0) as client:
                yield client

    # --- Cells ----------------------------------------------------------------------------------------------------------

    def engines(self, cell: str) -> dict[str, ReplicaReport]:
        """The engines of a cell that take requests, by the ids that their replicas keep as long as they live."""
        text = self.kubectl("exec", GATEWAY, "--", "python", "-c", ASK_DIRECTORIES, SETTINGS)
        return ready(msgspec.json.decode(text, type=list[DirectoryAnswer]), cell)

    def until_engines(self, cell: str, count: int, but: frozenset[str] = frozenset()) -> dict[str, ReplicaReport]:
        """So many engines of a cell, and no more, once they take requests; those of these ids do not count."""
        found: dict[str, ReplicaReport] = {}
        said = ""

        def there() -> bool:
            nonlocal found, said
            try:
                found = {name: it for name, it in self.engines(cell).items() if name not in but}
                said = f"{len(found)} take requests"
            except CommandFailed as failed:
                said = str(failed)
            return len(found) == count

        limit_s = self.parameters.ready_timeout_s
        try:
            until(there, limit_s, LOOK_INTERVAL_S)
        except AssertionError:
            raise AssertionError(f"Cell {cell} had not {count} engines in {limit_s:.0f} s; at last: {said}") from None
        return found

    def pods(self, cell: str, component: str = "") -> list[Object]:
        """The pods of a cell, those that are leaving too."""
        wanted = [f"app.kubernetes.io/instance={RELEASE}", f"gpt-oss-serving/cell={cell}"]
        wanted += [f"app.kubernetes.io/component={component}"] if component else []
        return self.kubectl.list("pods", "--selector", ",".join(wanted))

    def until_emptied(self, cell: str) -> None:
        """Waits until a paused cell has no pod."""
        until(lambda: not self.pods(cell), self.parameters.leave_timeout_s, LOOK_INTERVAL_S)

    def engine_place(self, cell: str) -> Place:
        """Where the one engine pod of a cell is."""
        (pod,) = [it for it in self.pods(cell, "engine") if "deletionTimestamp" not in it["metadata"]]
        return Place(pod["metadata"]["name"], pod["spec"]["nodeName"])

    @contextmanager
    def leaving(self, place: Place, node: str | None) -> Iterator[None]:
        """An engine's pod is told to leave, by `kubectl drain` of its node or by eviction; a node is opened again afterwards.

        A drain takes engine pods of this release alone: without fault tolerance a head's budget forbids its eviction, and
        other people's pods are not ours to move.
        """
        if node is None:
            self._evict(place.pod)
            yield
            return
        selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=engine"
        limit_s = self.parameters.leave_timeout_s
        line = ("drain", node, "--pod-selector", selector, "--delete-emptydir-data", f"--timeout={limit_s:.0f}s")
        try:
            with ThreadPoolExecutor(1) as pool:
                drain = pool.submit(self.kubectl, *line, timeout_s=limit_s + 30)
                yield
                drain.result()
        finally:
            self.kubectl("uncordon", node)

    def is_leaving(self, pod: str) -> bool:
        """Whether the pod has been told to stop, or is gone."""
        found = self.kubectl("get", "pod", pod, "--ignore-not-found", "--output", "json")
        return not found or "deletionTimestamp" in json.loads(found)["metadata"]

    def _evict(self, pod: str) -> None:
        """By the Eviction API, as a drain does; refused while a PodDisruptionBudget forbids it."""
        metadata = {"name": pod, "namespace": self.kubectl.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "--filename", "-", given=json.dumps(eviction))

    # --- The end --------------------------------------------------------------------------------------------------------

    def leftovers(self) -> list[Leftover]:
        """Everything of the release that is still in the namespace."""
        found = inventory(self.kubectl, is_namespaced=True)
        return of_release(found.objects, RELEASE, FULLNAME)

    def cluster_scoped(self) -> Inventory:
        """Everything of the release that belongs to no namespace, and the kinds nobody here may list."""
        return inventory(self.kubectl, is_namespaced=False)

    def remove(self, kept: list[Leftover]) -> None:
        """Delete what an uninstall rightly left."""
        for it in kept:
            self.kubectl("delete", it.kind, it.name, "--ignore-not-found", "--wait=false")


def ready(answers: list[DirectoryAnswer], cell: str) -> dict[str, ReplicaReport]:
    """The replicas of a cell that take requests, by id, as its directory answers: on KubeRay for `cell/Ray cluster`."""
    own = [it for it in answers if it.cell.partition("/")[0] == cell]
    listed = [it.report for answer in own for it in answer.replicas]
    return {it.replica_id: it for it in listed if it.state is ReplicaState.READY}
