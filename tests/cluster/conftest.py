"""The suite of a whole cluster: `make test-cluster`. It skips, saying why, where kubectl reaches none or there
is no KubeRay.

What the cluster must have: Kubernetes 1.31 or newer; KubeRay 1.7's operator and definitions; the images of the gateway,
the CPU engine and the load test, to be pulled or loaded into its nodes; volumes for two claims, from a default
StorageClass or as extra values say; two cores and 24 GiB in all. test_admission.py needs KubeRay's definitions alone.
No load balancer, no ingress, no metrics server and no network plugin that enforces policies are asked for.

The kubeconfig is kubectl's own (KUBECONFIG). Everything else is optional:

CLUSTER_TEST_CONTEXT             context of the kubeconfig; else the current one
CLUSTER_TEST_NAMESPACE           a namespace that is there, and stays; else the suite makes one and deletes it
CLUSTER_TEST_POD_SECURITY        Pod Security level that is enforced in a namespace the suite makes ("restricted");
                                 empty: none
CLUSTER_TEST_OPERATOR_NAMESPACE  where KubeRay's operator runs, if it cannot be found; network policies let it in from
                                 there
CLUSTER_TEST_REGISTRY            registry and path before repositories (the demo's: localhost/gpt-oss-serving)
CLUSTER_TEST_TAG                 tag of all images; else the chart's appVersion
CLUSTER_TEST_GATEWAY_REPOSITORY  repository of the gateway's image, below the registry
CLUSTER_TEST_GATEWAY_TAG         its tag
CLUSTER_TEST_HEAD_REPOSITORY     the same of Ray heads, directories and the Job for weights
CLUSTER_TEST_HEAD_TAG
CLUSTER_TEST_ENGINE_REPOSITORY   the same of engines
CLUSTER_TEST_ENGINE_TAG
CLUSTER_TEST_LOADTEST_REPOSITORY the same of the load test
CLUSTER_TEST_LOADTEST_TAG
CLUSTER_TEST_UPGRADE_TAG         tag that heads and engines are upgraded to; it may be the same image under another tag.
                                 Else the image stays and a variable of the pods changes
CLUSTER_TEST_PULL_POLICY         Always, IfNotPresent or Never, of all images
CLUSTER_TEST_VALUES              more values files, between colons; they win over the suite's: storage classes, existing
                                 claims, `weights.job: none` where no network is, DNS peers, resources
CLUSTER_TEST_READY_TIMEOUT_S     seconds until engines answer, images and weights being fetched (1800)
CLUSTER_TEST_LEAVE_TIMEOUT_S     seconds until pods have left; above `engine.terminationGracePeriodSeconds` (900)
CLUSTER_TEST_STREAM_TOKENS       length of the stream that outlives its pod; else what an idle engine makes in a minute
CLUSTER_TEST_KEEP                1: leave release and namespace, for a look
CLUSTER_TEST_REQUIRED            1: where the suite would skip, it fails: for CI
CLUSTER_TEST_FOLDER              where a failure leaves what kubectl shows (.cache/cluster)
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Generator, Iterator
from typing import NoReturn

import pytest

from tests.cluster import diagnosis
from tests.cluster.cluster import NoCluster, operator_namespace, reach
from tests.cluster.commands import Helm, Kubectl
from tests.cluster.installation import LOOK_INTERVAL_S, RELEASE, Installation
from tests.cluster.parameters import Parameters, WrongParameter, parameters
from tests.waiting import until

#: The installation of this run, once there is one, and the first step that failed.
_INSTALLATION = pytest.StashKey[Installation]()
_FAILED = pytest.StashKey[str]()
#: Seconds a step may take, over the time-outs in it: several wait for engines or for pods one after the other.
STEP_TIMEOUT_S = 4 * 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Steps end by their own time-outs, which say what did not happen; pytest's is only for a suite that hangs."""
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.timeout(STEP_TIMEOUT_S))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each step begins where the one before ended: after a failure the rest would only tell of it again."""
    if _is_step(item) and (failed := item.session.stash.get(_FAILED, None)):
        pytest.skip(f"Not run: {failed} failed before it.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """At the first failure: keep what the cluster looks like, and say where."""
    report = yield
    if report.failed and _is_step(item) and _FAILED not in item.session.stash:
        item.session.stash[_FAILED] = item.name
        if (found := item.session.stash.get(_INSTALLATION, None)) is not None:
            folder = found.parameters.folder / f"{found.kubectl.namespace}-{int(time.time())}"
            diagnosis.save(found.kubectl, found.helm, RELEASE, folder)
            report.sections.append(("Cluster", f"What kubectl and helm show of it is in {folder.resolve()}"))
    return report


def _is_step(item: pytest.Item) -> bool:
    """Whether the test is a step of the one installation."""
    return "installation" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def given() -> Parameters:
    """The suite's parameters."""
    try:
        return parameters(os.environ)
    except WrongParameter as wrong:
        pytest.fail(str(wrong), pytrace=False)


@pytest.fixture(scope="session")
def namespace(given: Parameters) -> Iterator[Kubectl]:
    """kubectl on a namespace for this run. Skips, saying why, where there is no cluster."""
    kubectl = Kubectl(given.context, given.namespace or f"{RELEASE}-{secrets.token_hex(3)}")
    try:
        reach(kubectl)
    except NoCluster as reason:
        _not_here(reason, given)
    if given.namespace:
        yield kubectl
        return
    kubectl("create", "namespace", kubectl.namespace)
    try:
        if given.pod_security:
            level = f"pod-security.kubernetes.io/enforce={given.pod_security}"
            kubectl("label", "namespace", kubectl.namespace, level)
        yield kubectl
    finally:
        if not given.keep:
            limit_s = given.leave_timeout_s
            kubectl("delete", "namespace", kubectl.namespace, f"--timeout={limit_s:.0f}s", timeout_s=limit_s + 30)


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest, given: Parameters, namespace: Kubectl) -> Iterator[Installation]:
    """The release that all steps share, not yet installed; whatever happens, nothing is left of it (CLUSTER_TEST_KEEP:
    everything)."""
    try:
        operator = operator_namespace(namespace, given)
    except NoCluster as reason:
        _not_here(reason, given)
    it = Installation(namespace, Helm(given.context, namespace.namespace), given, operator)
    if it.is_there():
        pytest.fail(f"{namespace.namespace} has a release {RELEASE}: `helm uninstall` it first.", pytrace=False)
    request.session.stash[_INSTALLATION] = it
    try:
        yield it
    finally:
        if given.keep:
            print(f"\nKept: release {RELEASE} in namespace {namespace.namespace}.")
        else:
            it.uninstall()
            until(lambda: all(left.is_kept for left in it.leftovers()), given.leave_timeout_s, LOOK_INTERVAL_S)
            it.remove(it.leftovers())


def _not_here(reason: NoCluster, given: Parameters) -> NoReturn:
    if given.required:
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))
