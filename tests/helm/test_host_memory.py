"""Host memory: preflight asks nodes for what the chart's pods ask for."""

from __future__ import annotations

import pytest

from serving import catalog
from serving.catalog import MountedSource
from serving.operate.values import DEFAULTS, merged, wanted
from tests.helm.cells import GIVEN, Object, cell, container

BIG, SMALL = "gpt-oss-120b", "gpt-oss-20b"
OWN = catalog.fine_tune(catalog.find(SMALL), "mine", MountedSource(path="/models/mine")).model_dump(mode="json")
ASKED: dict[str, Object] = {
    "the chart's own": {},
    "KV on the host": {"models": [{"name": BIG, "profile": "dp8-ep", "kv_offloading_gib": 100.5}]},
    "LMCache's server": {
        "models": [{"name": "qwen3-32b", "kv_offloading_gib": 64, "kv_offloading_backend": "lmcache"}]
    },
    "adapters": {"models": [{"name": BIG, "profile": "lora"}, {"name": SMALL, "lora": {"max_cpu_adapters": 3}}]},
    "a draft": {"models": [{"name": BIG, "speculation": {"method": "eagle3"}}]},
    "one shape for two": {
        "models": [{"name": SMALL, "tensor": 2, "kv_offloading_gib": 10}, {"name": BIG}, {"name": "qwen3-32b"}]
    },
    "several nodes": {"gpu": "h200", "models": [{"name": "deepseek-v3.1", "profile": "dp16-ep"}]},
    "a model of one's own": {"ownModels": [OWN], "models": [{"name": "mine", "lora": {"max_cpu_adapters": 3}}]},
    "other assumptions": {
        "engine": {"memory": {"perGpuGib": 7, "baseGib": 9}, "shm": {"perGpuMib": 2048}},
        "ray": {"objectStoreMib": 256},
    },
}


@pytest.mark.parametrize("name", ASKED)
def test_a_pods_memory_is_the_charts(name: str) -> None:
    """Of every model, by the shape of its pods: the request that the chart renders."""
    rendered = cell(ASKED[name])
    found = wanted(merged(DEFAULTS, GIVEN, ASKED[name])).engine_pods
    assert found
    for pods in found:
        asked = container(rendered.templates[f"{pods.gpu}x{pods.gpus}"])["resources"]["requests"]["memory"]
        assert asked == f"{pods.memory_gib}Gi", pods.model
