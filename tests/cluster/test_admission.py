"""What an API server says of all the chart renders, and nothing is made: schemas, CEL rules, defaults and Pod Security at once.

Needs a cluster with KubeRay's definitions; neither an operator, nor images, nor a node. The schemas of tests/helm are copies;
this is the judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.cluster import values
from tests.cluster.commands import CommandFailed, Kubectl, Object
from tests.cluster.test_values import STEPS
from tests.helm.cells import SCENARIOS, render
from tests.helm.chart import FILES
from tests.helm.test_render import WAYS_IN

pytestmark = pytest.mark.cluster

EXEMPTIONS = "gpt-oss-serving/pod-security-exemptions"
#: The label of a namespace that says which Pod Security it enforces, as jsonpath writes it.
ENFORCED = r"pod-security\.kubernetes\.io/enforce"
#: Of a pod's spec: names of what the cluster would have to have, and has only where the values are used.
ELSEWHERE = {"serviceAccountName", "priorityClassName", "runtimeClassName"}
SETS: dict[str, Callable[[], list[Object]]] = {
    **{f"values of {name}": partial(render, {}, path) for name, path in FILES.items()},
    **{name: partial(render, given) for name, given in (SCENARIOS | WAYS_IN).items()},
    **{f"step: {name}": partial(render, step, values.DEMO) for name, step in STEPS.items()},
}


@pytest.mark.parametrize("name", SETS)
def test_the_api_server_takes_every_object(namespace: Kubectl, name: str) -> None:
    """All objects, and a pod of each template, pass its strict validation and the namespace's Pod Security.

    Refused are the pods that name an exemption, and no others; kinds that are not in the cluster are left out.
    """
    known = set(re.findall(r"(\w+)$", namespace("api-resources"), re.M))
    objects = [it for it in SETS[name]() if it["kind"] in known]
    templates = _pods_of(objects)

    taken, said = _taken(namespace, [*objects, *templates])

    exempt = {_key(it) for it in templates if EXEMPTIONS in it["metadata"].get("annotations", {})}
    # Asked, because a namespace that was given may enforce any level.
    enforced = namespace(
        "get", "namespace", namespace.namespace, "--output", f"jsonpath={{.metadata.labels.{ENFORCED}}}"
    )
    assert {_key(it) for it in [*objects, *templates]} - taken == (exempt if enforced == "restricted" else set()), said


def _pods_of(objects: list[Object]) -> list[Object]:
    """A pod of each template, under a name of its own."""
    found = []
    for number, template in enumerate(_templates([it for it in objects if it["kind"] != "Pod"])):
        metadata = template["metadata"] | {"name": f"template-{number}"}
        spec = {key: value for key, value in template["spec"].items() if key not in ELSEWHERE}
        found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return found


def _templates(node: object) -> Iterator[Object]:
    if isinstance(node, dict):
        if "containers" in (node.get("spec") or {}):
            yield node
        node = list(node.values())
    for child in node if isinstance(node, list) else []:
        yield from _templates(child)


def _taken(kubectl: Kubectl, objects: list[Object]) -> tuple[set[tuple[str, str]], str]:
    """Kinds and names of those that would be made, and what was said of the others."""
    for it in objects:
        it["metadata"].pop("namespace", None)
    line = ("create", "--dry-run=server", "--validate=strict", "--output", "name", "--filename", "-")
    try:
        printed, said = kubectl(*line, given="\n".join(f"---\n{json.dumps(it)}" for it in objects)), ""
    except CommandFailed as failed:
        printed, said = failed.printed, failed.said
    return set(re.findall(r"^(\w+)[\w.-]*/(\S+)$", printed, re.M)), said


def _key(it: Object) -> tuple[str, str]:
    return it["kind"].lower(), it["metadata"]["name"]
