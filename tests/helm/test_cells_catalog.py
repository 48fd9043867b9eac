"""Chart catalogue: the facts that templates compute with are the Python catalogue's."""

from __future__ import annotations

import chart_catalog
from tests.helm.cells import OWN_MODEL, cell, refusal


def test_the_file_is_in_step() -> None:
    """helm/files/catalog.json is what deploy/chart_catalog.py writes today."""
    assert chart_catalog.FILE.read_text() == chart_catalog.text(chart_catalog.facts())


def test_an_own_model_is_judged_by_its_own_facts() -> None:
    """A model of the values' carries heads, experts and profiles itself; its ranks are refused by them."""
    own = OWN_MODEL | {
        "architecture": {
            "name": "LlamaForCausalLM",
            "parameters": 1e10,
            "active_parameters": 1e10,
            "hidden": 4096,
            "vocabulary": 32000,
            "attention": {"heads": 12, "kv_heads": 4, "head_dim": 128, "full_layers": 32},
            "source": "its config.json",
        },
        "profiles": [OWN_MODEL["profiles"][0] | {"tensor": 4}],
    }
    values = {"ownModels": [own], "models": [{"name": "mine"}]}

    rendered = cell(values)

    assert rendered.engine_groups.keys() == {"h100x4"}
    assert rendered.applications["model-mine"]["args"]["own_model"] == own
    assert "12 attention heads, which 8 tensor ranks" in refusal(values | {"models": [{"name": "mine", "tensor": 8}]})
    assert "mine has no GPU profile 'latency' on h100" in refusal(values | {"profile": "latency"})
