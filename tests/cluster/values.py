"""The values of each step, over those of the CPU demo. Later ones win: the suite's, the images', extra files, the step's."""

from __future__ import annotations

import yaml

from tests.cluster.commands import Object
from tests.cluster.parameters import IMAGES, Parameters
from tests.helm.cells import CHART

DEMO = CHART / "values-cpu-demo.yaml"
MODEL = "smollm2-135m-instruct"
CELLS = ("a", "b")
#: Of the pod templates, changed where there is no second tag to upgrade to.
REVISION = "CLUSTER_TEST_REVISION"

#: Requests decide where pods may be placed and are no claim of what they need: two cells shall fit a machine with two cores
#: and 24 GiB beside a control plane. Limits stay the demo's.
_SMALL: Object = {
    "gateway": {"resources": {"requests": {"cpu": "100m"}}},
    "head": {"resources": {"requests": {"cpu": "100m", "memory": "1536Mi"}}},
    "directory": {"resources": {"requests": {"cpu": "50m", "memory": "768Mi"}}},
    # Of the machine's memory; what other engines took is missing from it when a second one starts.
    "engine": {
        "settings": {"memory_share": 0.1},
        "cpu": {"resources": {"requests": {"cpu": "200m", "memory": "4Gi"}}},
    },
    "weights": {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}}},
    "tests": {"timeoutS": 600},
}


def base(parameters: Parameters, operator_namespace: str, namespace: str) -> Object:
    """What holds at every step. The operator is let in from wherever it is; an empty namespace leaves the chart's default.

    Pods of the suite's own namespace, its load test among them, may read the gateways' metrics, besides the chart's peers.
    """
    images: Object = {name: given for name in IMAGES if (given := parameters.image(name))}
    if parameters.registry:
        images["registry"] = parameters.registry
    monitoring = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]["monitoring"]
    policy: Object = {"monitoring": [*monitoring, _peer(namespace)]}
    if operator_namespace:
        policy["operator"] = [_peer(operator_namespace)]
    return _SMALL | {"images": images, "networkPolicy": policy}


def _peer(namespace: str) -> Object:
    """Every pod of that namespace, as network policies name it."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}


def step(
    *, paused: frozenset[str] = frozenset(), engines: int = 1, upgraded: frozenset[str] = frozenset(), tag: str = ""
) -> Object:
    """One state of the installation: cells that have no pods, engines of each other cell, cells that run the new pods.

    Every cell is held, as on a full fleet. Without a tag all cells are given the new template at once, and each takes it
    only when it was paused: that is what `hold` is for.
    """
    cells: dict[str, Object] = {name: {"hold": True, "paused": name in paused} for name in CELLS}
    values: Object = {
        "models": [{"name": MODEL, "min_replicas": engines, "max_replicas": engines}],
        "cells": cells,
    }
    if tag:
        for name in upgraded:
            cells[name]["images"] = {"head": {"tag": tag}, "engine": {"tag": tag}}
    elif upgraded:
        values["engine"] = {"env": {REVISION: "2"}}
    return values
