"""Placement: the chart's templates say of every model, profile and knob what `serving.budget.placed` says.

One run of helm computes a whole grid: a copy of the chart with one template of this file's in place of the chart's objects.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import catalog
from serving.budget import CPU, Defaults, placed
from serving.budget.speed import MEASURED
from serving.catalog import MODELS, Profile
from serving.config import ModelSettings
from serving.errors import Refusal
from tests.helm.cells import CHART, GIVEN, Object, cell, cells, refusal
from tests.helm.chart import helm

#: Writes what the templates compute of each model: one JSON list.
COMPUTED = (
    '{{ dict "models" (include "gpt-oss-serving.cellModels" (dict "root" $ "cell" "a") | fromJsonArray) | toJson }}'
)
PROFILES = [(model.name, profile) for model in MODELS.values() for profile in model.profiles]
KNOBS: list[Object] = [
    {},
    *({"tensor": it} for it in (1, 2, 3, 4, 6, 8, 16)),
    *({"pipeline": it} for it in (2, 3, 16)),
    *({"data": it} for it in (2, 3, 16)),
    *({"expert": it} for it in (True, False)),
    {"tensor": 2, "data": 8, "expert": True},
    {"tensor": 8, "pipeline": 2},
    {"tensor": 4, "pipeline": 3},
    *({"lora": it} for it in ({}, {"max_adapters": 1}, {"max_rank": 8}, {"max_rank": 512}, None)),
    {"adapters": [{"name": "law", "path": "/adapters/law"}]},
    {"adapters": [{"name": "law", "path": "/adapters/law"}], "lora": {}},
    *({"moe_backend": it} for it in ("marlin", "flashinfer_cutlass")),
    {"moe_backend": "triton", "lora": {"max_adapters": 1}},
    {"kv_cache_dtype": "fp8"},
    {"kv_offloading_gib": 64, "kv_offloading_backend": "lmcache"},
    {"kv_offloading_backend": "lmcache"},
    {"kv_offloading_gib": 64, "data": 16},
    *({"speculation": {"method": "eagle3", **it}} for it in ({}, {"tokens": 1}, {"tokens": 7}, {"tokens": 8})),
    *({"speculation": {"method": "ngram", **it}} for it in ({}, {"tokens": 8})),
    *({"speculation": {"method": "eagle3", "tokens": 8}, "tensor": it} for it in (1, 2)),
    {"speculation": {"method": "eagle3"}, "pipeline": 2},
    *({"speed": MEASURED.model_dump(), "moe_backend": it} for it in ("marlin", "triton", "auto")),
]
#: Of these, what is asked of every model on the CPU.
ON_CPU: list[Object] = [
    {},
    {"tensor": 2},
    {"tensor": 3},
    {"expert": True},
    {"lora": {"max_adapters": 1}},
    {"moe_backend": "marlin"},
    {"kv_cache_dtype": "fp8"},
    {"kv_offloading_backend": "lmcache"},
    {"speculation": {"method": "eagle3"}},
]
#: What an engine's memory depends on, turned together. Of other numbers of stages and data ranks (`chart_catalog.COUNTS`) the
#: chart refuses only what can never fit.
MEMORY: list[Object] = [
    *({it: 1} for it in ("pipeline", "data")),
    {"tensor": 1, "pipeline": 2},
    {"tensor": 2, "pipeline": 4, "data": 2, "expert": True},
    *({"tensor": 1, "data": 2, "expert": it, "speculation": {"method": "eagle3", "tokens": 7}} for it in (True, False)),
    *({"tensor": 1, "kv_cache_dtype": "fp8", "lora": {"max_rank": 8, "max_adapters": it}} for it in (1, 2)),
    {"tensor": 1, "lora": {"max_adapters": 1, "max_rank": 8}, "speculation": {"method": "ngram", "tokens": 4}},
    {"tensor": 1, "data": 2, "kv_cache_dtype": "fp8", "lora": {"max_adapters": 2}, "speculation": {"method": "ngram", "tokens": 8}},
]  # fmt: skip
#: GPUs of a node, HTTP front ends of an engine, and what is asked of every profile there.
GRIDS: dict[str, tuple[int, int, list[Object]]] = {
    "nodes of eight": (8, 1, KNOBS),
    "nodes of four": (4, 1, [{}, {"tensor": 2}, {"tensor": 8}, {"pipeline": 3}, {"data": 6}]),
    "nodes of sixteen": (16, 1, [{}, {"tensor": 16}, {"data": 16}]),
    "memory": (8, 1, MEMORY),
    "two front ends": (8, 2, [{}, {"lora": {"max_adapters": 1}}]),
}


def computed(folder: Path, entries: list[Object], **settings: int) -> list[Object]:
    """What the templates make of these entries of `models`."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    for path in (chart / "templates").rglob("*.yaml"):
        path.unlink()
    (chart / "templates" / "computed.yaml").write_text(COMPUTED)
    values = GIVEN | {"models": entries, "engine": {"settings": settings}}
    result = helm("template", "test", str(chart), values=values)
    assert not result.returncode, result.stderr
    return yaml.safe_load(result.stdout)["models"]  # type: ignore[no-any-return]


def verdict(entry: Object, gpus_per_node: int, api_servers: int) -> Profile | Refusal | None:
    """What the engine plane makes of the same entry."""
    settings = ModelSettings.model_validate(entry)
    try:
        model = catalog.find(settings.name)
        return placed(model, settings, Defaults("balanced", "h100"), gpus_per_node, api_servers)
    except Refusal as refusal:
        return refusal


def entries(knobs: list[Object]) -> Iterator[Object]:
    """Every profile with each of these knobs turned, every model where nothing is named, and every model on the CPU."""
    for name, profile in PROFILES:
        yield from ({"name": name, "profile": profile.name, "gpu": profile.gpu, **turned} for turned in knobs)
    for name in MODELS:
        yield {"name": name}
        yield {"name": name, "gpu": "h200"}
        yield from ({"name": name, "profile": CPU, **turned} for turned in knobs if turned in ON_CPU)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_profile_and_knob_is_placed_as_the_engine_plane_places_it(grid: str, tmp_path: Path) -> None:
    """The same GPUs, pods and kind of GPU, or a refusal from both."""
    gpus_per_node, api_servers, knobs = GRIDS[grid]
    asked = list(entries(knobs))
    made = computed(tmp_path, asked, gpus_per_node=gpus_per_node, api_servers=api_servers)

    differing = [
        (entry, wanted, chart["problem"] or (chart["group"], chart["nodes"]))
        for entry, chart in zip(asked, made, strict=True)
        if not _agree(wanted := verdict(entry, gpus_per_node, api_servers), chart)
    ]

    assert differing == []


def _agree(wanted: Profile | Refusal | None, chart: Object) -> bool:
    if isinstance(wanted, Refusal):
        return bool(chart["problem"])
    if wanted is None:
        return (chart["problem"], chart["onCpu"], chart["group"]) == ("", True, "cpu")
    shape = (f"{wanted.gpu}x{wanted.pod_gpus}", wanted.pod_gpus, wanted.nodes, wanted.lora)
    return not chart["problem"] and (chart["group"], chart["podGpus"], chart["nodes"], chart["lora"]) == shape


def test_a_fine_tune_takes_the_speed_of_its_base() -> None:
    """The chart knows an own model's `base`, as the engine plane does; without one it is another model, and so in other formats."""
    own = catalog.fine_tune(MODELS["gpt-oss-120b"], "mine", MODELS["gpt-oss-120b"].source).model_dump(mode="json")
    values = {"ownModels": [own], "models": [{"name": "mine", "speed": MEASURED.model_dump()}]}

    assert cell(values).applications
    assert cell(values | {"ownModels": [own | {"architecture": None}]}).applications
    shape = own["architecture"]
    for other in (
        {"base": None},
        {"architecture": shape | {"experts": shape["experts"] | {"format": "fp8"}}},
        {"architecture": shape | {"format": "fp8"}},
    ):
        assert "was measured of gpt-oss-120b, which is neither" in refusal(values | {"ownModels": [own | other]})


def test_every_profile_makes_its_own_pods() -> None:
    """A profile's engine gets pods of `pod_gpus` GPUs, `nodes` of them, on its kind of GPU."""
    alone = {
        f"p{index}": {"models": [{"name": name, "profile": profile.name, "gpu": profile.gpu}]}
        for index, (name, profile) in enumerate(PROFILES)
    }
    rendered = cells({"cells": alone})

    for index, (name, profile) in enumerate(PROFILES):
        one = rendered[f"p{index}"]
        (group,) = one.engine_groups.values()
        assert group["groupName"] == f"{profile.gpu}x{profile.pod_gpus}"
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == profile.nodes
        assert group["rayStartParams"]["num-gpus"] == str(profile.pod_gpus)
        assert group["labels"]["ray.io/accelerator-type"] == catalog.GPUS[profile.gpu].ray_label
        (deployment,) = one.applications[f"model-{name}"]["deployments"]
        assert deployment["autoscaling_config"]["max_replicas"] == profile.nodes


def test_knobs_that_are_taken_make_the_pods_that_the_engine_plane_wants() -> None:
    """What reaches pods and Serve is what was computed: their GPUs, and as many as an engine has nodes."""
    knobs: list[dict[str, Any]] = [{"tensor": 8}, {"tensor": 4, "data": 2}, {"tensor": 8, "pipeline": 2}, {"data": 8}]
    asked = {f"k{index}": {"name": "gpt-oss-120b", **turned} for index, turned in enumerate(knobs)}
    taken = {name: it for name, entry in asked.items() if isinstance(it := verdict(entry, 8, 1), Profile)}
    rendered = cells({"cells": {name: {"models": [asked[name]]} for name in taken}})

    assert len(taken) >= 3
    for name, profile in taken.items():
        (group,) = rendered[name].engine_groups.values()
        assert (group["rayStartParams"]["num-gpus"], group["replicas"]) == (str(profile.pod_gpus), profile.nodes)
