"""What a cell cannot be is refused by the chart, in a sentence that names the value."""

from __future__ import annotations

from typing import Any

import pytest

from serving.catalog import MODELS
from tests.helm.cells import CPU_DEMO, OWN_MODEL, Object, cell, refusal


def _model(name: str = "gpt-oss-120b", **entry: Any) -> Object:
    return {"models": [{"name": name, **entry}]}


#: An own model of the shape of one that the CPU runs, with room for adapters.
OF_EXPERTS: Object = OWN_MODEL | {
    "architecture": MODELS["tiny-gpt-oss"].model_dump(mode="json")["architecture"],
    "lora": {},
    "profiles": [],
}
REFUSED: dict[str, tuple[Object, str]] = {
    "an unknown model": (_model("gpt-5"), "There is no model called 'gpt-5'; known are all-minilm-l6-v2,"),
    "a profile it does not have": (
        _model(gpu="h200", profile="tight"),
        "gpt-oss-120b has no GPU profile 'tight' on h200; it has balanced on h100,",
    ),
    "a model of GPUs on CPUs": (
        _model(profile="cpu"),
        "gpt-oss-120b is meant for GPUs and its profile is cpu: name one of its own, of which the first is balanced on h100",
    ),
    "a kind of GPU on CPUs": (
        CPU_DEMO | _model("smollm2-135m-instruct", gpu="h100"),
        "smollm2-135m-instruct is given a gpu and its profile is cpu: name a profile, or leave `gpu` unset",
    ),
    "a model of CPUs on GPUs": (_model("tiny-gpt-oss"), "it has none: it runs on the CPU (`profile: cpu`)"),
    "ranks that do not divide": (_model(tensor=3), "64 attention heads, which 3 tensor ranks cannot share evenly"),
    "more ranks than KV heads": (_model(tensor=16), "8 KV heads, which 16 tensor ranks cannot share evenly"),
    "too few ranks to fit": (
        _model(tensor=1),
        "does not fit 1 tensor ranks on h100: profile balanced with pipeline 1 and data 1 needs at least 2",
    ),
    "a small tensor beside a default written out": (
        _model(tensor=1, kv_cache_dtype="auto"),
        "does not fit 1 tensor ranks on h100: profile balanced with pipeline 1 and data 1 needs at least 2",
    ),
    "guesses that do not fit": (
        _model(profile="tight", speculation={"method": "eagle3", "tokens": 8}),
        "does not fit 1 tensor ranks on h100 with the KV cache, guesses and adapters that it is to have: take more ranks",
    ),
    "adapters that do not fit": (
        _model(profile="tight", lora={"max_adapters": 2}),
        "does not fit 1 tensor ranks on h100 with the KV cache, guesses and adapters that it is to have: take more ranks",
    ),
    "one stage of a profile of two": (
        _model("kimi-k2-instruct", gpu="h200", pipeline=1),
        "does not fit 8 tensor ranks on h200: profile balanced with pipeline 1 and data 1 needs at least 16",
    ),
    "pods that would differ": (
        _model(tensor=4, data=3),
        "takes 12 GPUs (tensor 4 × pipeline 1 × data 3) and a node has 8",
    ),
    "experts of a dense model": (_model("qwen3-32b", expert=True), "qwen3-32b has no experts to spread"),
    "adapters without room": (
        _model(adapters=[{"name": "law", "path": "/adapters/law"}]),
        "gpt-oss-120b is given adapters and no room for them",
    ),
    "adapters of a model without": (
        _model("deepseek-v3.1", gpu="h200", lora={"max_adapters": 1}),
        "The catalogue gives deepseek-v3.1 no adapter limits",
    ),
    "larger adapters than computed": (
        _model(lora={"max_rank": 64}),
        "`lora.max_rank` of gpt-oss-120b is 64 and the catalogue allows 16",
    ),
    "more adapters than computed, by default": (
        _model(lora={}),
        "`lora.max_adapters` of gpt-oss-120b is 4 and the catalogue allows 2",
    ),
    "more adapters than an own model takes by default": (
        {"ownModels": [OWN_MODEL | {"lora": {"max_rank": 32}}]} | _model("mine", lora={"max_adapters": 8}),
        "`lora.max_adapters` of mine is 8 and the catalogue allows 4",
    ),
    "adapters of experts on CPUs": (
        CPU_DEMO | {"ownModels": [OF_EXPERTS]} | _model("mine", lora={}),
        "Adapters on mine crash its engine on a CPU",
    ),
    "adapters behind two front ends": (
        {"engine": {"settings": {"api_servers": 2}}, "profile": "lora"},
        "An engine that loads adapters has one HTTP front end and gpt-oss-120b would have 2",
    ),
    "adapters over nodes": (
        _model("qwen3-32b", pipeline=8, lora={"max_adapters": 1}),
        "An engine of qwen3-32b over 2 nodes loads no adapters",
    ),
    "a changing fleet nobody knows": (
        CPU_DEMO | _model("tiny-gpt-oss", min_replicas=1, max_replicas=2),
        "The fleet of tiny-gpt-oss may change and nothing says what one engine of it does on a CPU",
    ),
    "bounds the wrong way": (_model(min_replicas=3, max_replicas=2), "min_replicas is 3 and max_replicas 2"),
    "a minimum above one engine": (_model(min_replicas=2), "min_replicas is 2 and max_replicas 1"),
    "one name twice": (
        {"models": [{"name": "gpt-oss-20b"}, {"name": "gpt-oss-20b"}]},
        "names a model or an adapter twice",
    ),
    "CPUs and GPUs in one cell": (
        {"models": [{"name": "gpt-oss-20b"}, {"name": "smollm2-135m-instruct", "profile": "cpu"}]},
        "smollm2-135m-instruct on CPUs and gpt-oss-20b on GPUs: they need two engine images",
    ),
    "CPU engines in the image for GPUs": (
        {"models": [{"name": "smollm2-135m-instruct", "profile": "cpu"}]},
        "Cell a has smollm2-135m-instruct on CPUs and `images.engine.repository` is engine-gpu, vLLM's GPU build: use the CPU build, engine-cpu.",
    ),
    "GPU engines in the image for CPUs": (
        {"cells": {"a": {}, "b": {"images": {"engine": {"repository": "team/engine-cpu"}}}}},
        "Cell b has gpt-oss-120b on GPUs and `images.engine.repository` is team/engine-cpu, vLLM's CPU build: use the GPU build, engine-gpu.",
    ),
    "fewer pods than the minimum needs": (
        _model(min_replicas=3, max_replicas=3) | {"groups": {"h100x2": {"pods": 2}}},
        "Cell a has 2 pods of h100x2 and its models' min_replicas need 3",
    ),
    "a cell's own pods too few": (
        {"cells": {"a": {}, "b": {"groups": {"h100x2": {"pods": 0}}}}},
        "Cell b has 0 pods of h100x2 and its models' min_replicas need 1",
    ),
    "pods larger than a node": (
        {"groups": {"h100x16": {"pods": 1}}},
        "`groups.h100x16` asks for pods of 16 GPUs and a node has 8",
    ),
    "a group that is not a shape": ({"groups": {"large": {"pods": 1}}}, "`groups.large` is not a shape"),
    "no pod for a CPU engine": (CPU_DEMO | {"groups": {"cpu": {"pods": 0}}}, "Cell a has no pods in group cpu"),
    "a drain longer than the grace": (
        {"engine": {"settings": {"drain_timeout_s": 630}}},
        "`engine.settings.drain_timeout_s` is 630 and pods are killed after 720 seconds: streams would be cut off. Set it to 629 or less",
    ),
    "a start longer than pods wait": (
        {"engine": {"settings": {"load_mib_per_s": 10}}},
        "Engines of group h100x2 may take 6826 seconds to start",
    ),
    "Redis without a password": (
        {"ray": {"gcsFaultTolerance": {"redisAddress": "redis:6379"}}},
        "`ray.gcsFaultTolerance.redisAddress` is given without `passwordSecretName`",
    ),
    "a password without Redis": (
        {"ray": {"gcsFaultTolerance": {"passwordSecretName": "redis"}}},
        "`ray.gcsFaultTolerance.passwordSecretName` is given without `redisAddress`",
    ),
    "a node's folder without the exemption": (
        {"modelVolume": {"hostPath": "/mnt/models"}, "weights": {"job": "none"}},
        "set `engine.podSecurityExemptions: [hostPath]`",
    ),
    "a claim and a node's folder": (
        {"modelVolume": {"hostPath": "/mnt/models", "existingClaim": "models"}, "weights": {"job": "none"}},
        "`modelVolume` names both a claim and a node's folder",
    ),
    "RDMA without the exemption": (
        {"engine": {"rdma": {"enabled": True}}},
        "set `engine.podSecurityExemptions: [IPC_LOCK]`",
    ),
    "a name too long": (
        {"cells": {"a-very-long-name-of-a-cell-in-some-datacenter": {}}},
        "KubeRay takes lower-case letters, digits and dashes, 47 at most",
    ),
    "a name KubeRay does not take": ({"cells": {"A_1": {}}}, "KubeRay takes lower-case letters, digits and dashes"),
}


@pytest.mark.parametrize(("values", "sentence"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(values: Object, sentence: str) -> None:
    """Each of these cannot work, and the chart says so before anything is installed."""
    assert sentence in refusal(values)


def test_what_stands_next_to_a_refusal_works() -> None:
    """The bounds of refusals are where they say: one less is taken."""
    assert cell({"engine": {"settings": {"drain_timeout_s": 629}}})
    assert cell({"engine": {"settings": {"load_mib_per_s": 10}, "coldStartLimitS": 6826}})
    assert cell(_model(min_replicas=3, max_replicas=3) | {"groups": {"h100x2": {"pods": 3}}})
    assert cell(_model(min_replicas=1, max_replicas=9) | {"groups": {"h100x2": {"pods": 3}}})
    assert cell({"cells": {"a" * (47 - len("test-gpt-oss-serving-cell-")): {}}}, "a" * 21)


def test_an_image_of_another_name_may_be_either_build() -> None:
    """The chart knows the two names that deploy/images gives, and asks no more of a name of the operator's own."""
    own: Object = {"images": {"engine": {"repository": "vllm"}}}

    assert cell(own) and cell(CPU_DEMO | own)


def test_all_sentences_come_at_once() -> None:
    """Two mistakes are answered with both sentences."""
    said = refusal({"models": [{"name": "gpt-5"}, {"name": "gpt-oss-120b", "tensor": 3}]})

    assert "There is no model called 'gpt-5'" in said
    assert "64 attention heads" in said
