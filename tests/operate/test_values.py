"""Values files as these tools read them, and the chart's own beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from serving.catalog.gpus import CUDA, DRIVER_MIN
from serving.errors import Refusal
from serving.operate import checks, values
from serving.operate.values import DEFAULTS
from tests.helm.cells import OWN_MODEL

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """In a sentence, as every other file that cannot be used."""
    (tmp_path / "v.yaml").write_bytes(b"\x00\xff")
    with pytest.raises(Refusal, match="is not valid YAML"):
        values.read([tmp_path / "v.yaml"])


def test_files_are_merged_as_helm_merges_them(tmp_path: Path) -> None:
    """The last wins: mappings key by key, lists whole, null takes a key away."""
    first = written(
        tmp_path, "a.yaml", {"cells": {"a": {}, "b": {"paused": True}}, "store": {"postgresql": {"secretName": "db"}}}
    )
    second = written(tmp_path, "b.yaml", {"cells": {"b": None}, "gpu": "h200"})
    wanted = values.read([first, second])
    assert [(it.cell, it.gpu, it.gpus) for it in wanted.engine_pods] == [("a", "h200", 1)]
    assert wanted.secrets == {"db": "store.postgresql.secretName"}


def test_every_secret_that_values_name_has_to_exist(tmp_path: Path) -> None:
    """However the value is called: an object store's credentials and the keys of a file of tenants too."""
    named = {"gateway": {"files": {"credentialsSecret": "bucket"}}, "tenants": {"keysSecret": "teams"}}
    wanted = values.read([written(tmp_path, "v.yaml", named | {"secrets": {"vault": "vault"}})])
    assert wanted.secrets == {
        "bucket": "gateway.files.credentialsSecret",
        "teams": "tenants.keysSecret",
        "vault": "secrets.vault",
    }


def test_an_engine_over_several_nodes_is_several_pods(tmp_path: Path) -> None:
    """Sixteen data ranks are two pods of eight GPUs each, for every engine."""
    file = written(
        tmp_path,
        "v.yaml",
        {"gpu": "h200", "models": [{"name": "deepseek-v3.1", "profile": "dp16-ep", "max_replicas": 2}]},
    )
    (pods,) = values.read([file]).engine_pods
    assert (pods.gpus, pods.least, pods.most) == (8, 2, 4)


def test_a_model_that_cannot_be_placed_is_named_and_the_others_keep_their_pods(tmp_path: Path) -> None:
    """A profile that a model lacks, adapters without room: one sentence each, as the engine plane and the chart refuse them."""
    adapters = [{"name": "law", "path": "/adapters/law"}]
    models = [
        {"name": "gpt-oss-120b", "profile": "fast"},
        {"name": "gpt-oss-20b", "adapters": adapters},
        {"name": "qwen3-32b"},
    ]
    found = values.read([written(tmp_path, "v.yaml", {"models": models})])
    assert [it.model for it in found.engine_pods] == ["qwen3-32b"]
    no_profile, no_room = found.impossible
    assert "gpt-oss-120b has no GPU profile 'fast' on h100" in no_profile and "adapters and no room" in no_room


def test_an_entry_may_name_a_gpu_and_leave_the_profile_to_the_values(tmp_path: Path) -> None:
    """As in the chart: `profile` of the values goes with any kind of GPU."""
    (pods,) = values.read([written(tmp_path, "v.yaml", {"models": [{"name": "qwen3-32b", "gpu": "h200"}]})]).engine_pods
    assert (pods.gpu, pods.gpus) == ("h200", 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"models": [{"name": "gpt-6"}]}, "no model called 'gpt-6'"),
        ({"models": [{"name": "gpt-oss-120b", "replicas": 2}]}, "models.0.replicas"),
        (["a list"], "mapping"),
    ],
)
def test_values_that_mean_nothing_are_one_sentence(tmp_path: Path, content: Any, said: str) -> None:
    """A model or a key that does not exist is refused by its name."""
    with pytest.raises(Refusal, match=re.escape(said)):
        values.read([written(tmp_path, "v.yaml", content)])


def test_the_gateways_image_is_as_the_chart_writes_it(tmp_path: Path) -> None:
    """A digest wins over a tag; without a registry there is none."""
    images: dict[str, Any] = {"registry": "registry.example.com/team/", "gateway": {"tag": "1.2"}}
    assert values.wanted({"images": images}).gateway_image == "registry.example.com/team/gateway:1.2"
    images["gateway"]["digest"] = "sha256:abc"
    assert values.wanted({"images": images}).gateway_image == "registry.example.com/team/gateway@sha256:abc"
    assert values.wanted({}).gateway_image == ""


def chart(name: str) -> Any:
    return yaml.safe_load((CHART / name).read_text())


def test_defaults_are_the_charts() -> None:
    """Whoever asks without a file asks about what `helm install` would do."""
    own = chart("values.yaml")
    for key, value in DEFAULTS.items():
        found = own[key]
        assert (found | value if isinstance(found, dict) else found) == (found if isinstance(found, dict) else value)


def test_limits_are_the_charts() -> None:
    """The oldest Kubernetes, and the operator that the chart is written for."""
    own = chart("Chart.yaml")
    assert own["kubeVersion"].startswith(f">={'.'.join(map(str, checks.KUBERNETES_MIN))}.")
    assert checks.KUBERAY in own["annotations"].values()


def test_cuda_is_that_of_the_engines_lock() -> None:
    """The driver's limit follows the CUDA that the GPU lock installs; and what compiles kernels in the image is of that same
    CUDA, because FlashInfer refuses headers and compilers of two (IMG-13)."""
    lock = (ROOT / "deploy" / "locks" / "gpu.txt").read_text()
    parts = dict(re.findall(r"^nvidia-((?:cuda-)?(?:runtime|nvcc|crt|cccl|nvrtc|nvvm))==(\d+\.\d+)\.", lock, re.M))
    assert parts == dict.fromkeys(("cuda-runtime", "cuda-nvcc", "cuda-crt", "cuda-cccl", "cuda-nvrtc", "nvvm"), CUDA)
    assert CUDA.split(".")[0] == "13" and DRIVER_MIN == 580


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("images: {registry: r.example.com, gateway: 5}", "images.gateway"),
        ("cells: {a: 5}", "cells.a"),
        ("cells: [a]", "cells"),
        ("modelVolume: fast", "modelVolume"),
        ("store: {sqlite: [1]}", "store.sqlite"),
        ("engine: {settings: {gpus_per_node: many}}", "engine.settings.gpus_per_node"),
        ("ownModels: [{2026-01-01: x}]", "ownModels.0.name"),
    ],
)
def test_a_value_of_another_shape_is_refused_by_name(tmp_path: Path, text: str, key: str) -> None:
    """A scalar where a group belongs, or a word where a number does: one sentence that names it."""
    (tmp_path / "values.yaml").write_text(text)
    with pytest.raises(Refusal, match=f"'{key}'"):
        values.read([tmp_path / "values.yaml"])


#: What is given to keys that want a number or a boolean: wrong kinds, and values at the bounds.
GIVEN: list[Any] = ["8", True, -1, 0, 0.5, 1, 2.0, 2.5, 63, 64, 79, 80, float("inf"), [], "many"]
#: Keys that must stand beside the one that is given, by the key above them.
BESIDE: dict[str, dict[str, Any]] = {
    "models": {"name": "gpt-oss-120b"},
    "ownModels": OWN_MODEL,
    "speculation": {"method": "ngram"},
}
PLACES = (
    *(f"models.0.{it}" for it in ("tensor", "pipeline", "data", "expert", "max_replicas", "sleep_after_s", "priority")),
    *(f"models.0.{it}" for it in ("kv_offloading_gib", "lora.max_adapters", "speculation.tokens")),
    *(f"cells.a.{it}" for it in ("models.0.data", "paused")),
    *(f"ownModels.0.{it}" for it in ("disk_mib", "context_tokens", "lora.max_rank")),
    *(f"engine.settings.{it}" for it in ("gpus_per_node", "api_servers", "memory_share", "drain_timeout_s")),
    *(f"engine.{group}.{key}" for group in ("memory", "shm") for key in DEFAULTS["engine"][group]),
    "ray.objectStoreMib",
)


def said(path: str, value: Any) -> dict[str, Any]:
    """Values that say this there; a 0 in a path is a list's only entry."""
    key, _, below = path.partition(".")
    if not below:
        return {key: value}
    inner = BESIDE.get(key, {}) | said(below.removeprefix("0."), value)
    return {key: [inner] if below.startswith("0.") else inner}


@pytest.mark.parametrize("place", PLACES)
def test_numbers_are_taken_and_refused_as_the_charts_schema_does(place: str, tmp_path: Path) -> None:
    """Numbers in quotes, fractions, booleans, numbers out of bounds: what `helm install` would refuse, preflight refuses by the
    key's name, and nothing else."""
    schema = Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))
    own = chart("values.yaml")
    differing = []
    for value in GIVEN:
        given = said(place, value)
        # JSON, which helm makes of the values, has no infinite numbers.
        is_taken = value != float("inf") and schema.is_valid(values.merged(own, given))
        try:
            values.read([written(tmp_path, "v.yaml", given)])
        except Refusal as refusal:
            differing += [(value, str(refusal))] if is_taken or place not in str(refusal) else []
        else:
            differing += [] if is_taken else [(value, "taken")]

    assert differing == []


@pytest.mark.parametrize("kind", [{"kind": "mounted"}, {}])
def test_a_source_says_its_kind_in_the_chart_and_here(kind: dict[str, str], tmp_path: Path) -> None:
    """`kind` tells the sources of own models apart: one without is refused by both."""
    schema = Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))
    given = said("ownModels.0.source", {"path": "/models/mine"} | kind)

    assert schema.is_valid(values.merged(chart("values.yaml"), given)) is bool(kind)
    file = written(tmp_path, "v.yaml", given)
    if kind:
        assert values.read([file]).engine_pods
    else:
        with pytest.raises(Refusal, match=r"'ownModels\.0\.source'"):
            values.read([file])
