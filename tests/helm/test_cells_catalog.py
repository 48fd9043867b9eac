"""Chart catalogue: the facts that templates compute with are the Python catalogue's, and lead to the same shapes and refusals."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

import chart_catalog
from serving import catalog
from serving.budget import refuse
from serving.catalog import MODELS, Model, Profile
from serving.errors import Refusal
from tests.helm.cells import Refused, cell, refusal

GPU_MODELS = {name: model for name, model in MODELS.items() if model.profiles}
PROFILES = [(name, profile) for name, model in GPU_MODELS.items() for profile in model.profiles]


def test_the_file_is_in_step() -> None:
    """helm/files/catalog.yaml is what deploy/chart_catalog.py writes today."""
    assert chart_catalog.FILE.read_text() == chart_catalog.text(chart_catalog.facts())


@pytest.mark.parametrize(("name", "profile"), PROFILES, ids=lambda it: getattr(it, "name", it))
def test_every_profile_makes_its_own_pods(name: str, profile: Profile) -> None:
    """A profile's engine gets pods of `pod_gpus` GPUs, `nodes` of them, on its kind of GPU."""
    rendered = cell({"models": [{"name": name, "profile": profile.name, "gpu": profile.gpu}]})

    (group,) = rendered.engine_groups.values()

    assert group["groupName"] == f"{profile.gpu}x{profile.pod_gpus}"
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == profile.nodes
    assert group["rayStartParams"]["num-gpus"] == str(profile.pod_gpus)
    assert group["labels"]["ray.io/accelerator-type"] == catalog.GPUS[profile.gpu].ray_label
    (deployment,) = rendered.applications[f"model-{name}"]["deployments"]
    assert deployment["autoscaling_config"]["max_replicas"] == profile.nodes


def _verdicts() -> list[tuple[str, dict[str, Any]]]:
    ranks = [{"tensor": it} for it in (1, 2, 3, 4, 8, 16)]
    spread = [{"pipeline": 2}, {"data": 2}, {"data": 3}, {"tensor": 2, "data": 8}, {"tensor": 4, "pipeline": 3}]
    return [
        (name, knobs | switch)
        for name, knobs, switch in product(
            ("gpt-oss-120b", "qwen3-32b", "llama-3.3-70b-instruct"), ranks + spread, ({}, {"expert": True})
        )
    ]


@pytest.mark.parametrize(("name", "knobs"), _verdicts(), ids=str)
def test_knobs_are_taken_and_refused_as_the_engine_plane_does(name: str, knobs: dict[str, Any]) -> None:
    """What the chart takes has the engine plane's shape; what it refuses, the engine plane refuses too.

    The other way round only memory is left to the engine plane, where more knobs than `tensor` are turned.
    """
    model = catalog.find(name)
    profile = model.profile("balanced", "h100").override(**knobs)
    try:
        rendered = cell({"models": [{"name": name, **knobs}]})
    except Refused:
        with pytest.raises(Refusal):
            refuse(model, profile)
        return

    (group,) = rendered.engine_groups.values()
    assert (group["rayStartParams"]["num-gpus"], group["replicas"]) == (str(profile.pod_gpus), profile.nodes)
    if knobs.keys() == {"tensor"}:
        refuse(model, profile)
    elif missed := _refused(model, profile):
        assert "fit" in missed or "left for KV" in missed


def _refused(model: Model, profile: Profile) -> str:
    try:
        refuse(model, profile)
    except Refusal as refusal:
        return str(refusal)
    return ""


def test_an_own_model_is_judged_by_its_own_facts() -> None:
    """A model of the values' carries heads, experts and profiles itself; its ranks are refused by them."""
    own = {
        "name": "mine",
        "summary": "A model of ours.",
        "source": {"kind": "mounted", "path": "/models/mine"},
        "context_tokens": 8192,
        "download_mib": 0,
        "disk_mib": 20_480,
        "license": "proprietary",
        "architecture": {
            "name": "LlamaForCausalLM",
            "parameters": 1e10,
            "active_parameters": 1e10,
            "hidden": 4096,
            "vocabulary": 32000,
            "attention": {"heads": 12, "kv_heads": 4, "head_dim": 128, "full_layers": 32},
            "source": "its config.json",
        },
        "profiles": [{"name": "balanced", "gpu": "h100", "reason": "It fits.", "source": "computed", "tensor": 4}],
    }
    values = {"ownModels": [own], "models": [{"name": "mine"}]}

    rendered = cell(values)

    assert rendered.engine_groups.keys() == {"h100x4"}
    assert rendered.applications["model-mine"]["args"]["own_model"] == own
    assert "12 attention heads, which 8 tensor ranks" in refusal(values | {"models": [{"name": "mine", "tensor": 8}]})
    assert "mine has no GPU profile 'latency' on h100" in refusal(values | {"profile": "latency"})
