"""Fit: an adapter's every tensor meets a module of its base, and no description asks for what vLLM lacks."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

from serving import catalog
from serving.engine.fit import ADAPTED_VOCABULARIES, Base, Shape, misfit, unsupported

DESCRIPTION = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
#: Modules of one layer with the widths of their input and output.
LINEAR = {"self_attn.q_proj": (64, 128), "self_attn.o_proj": (128, 64), "mlp.gate": (64, 4)}
EXPERTS, HIDDEN, INNER, VOCABULARY = 4, 64, 96, 1000
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
MIXTURE = "base_model.model.model.layers.0.mlp.experts"


def base(architecture: str = "LlamaForCausalLM") -> Base:
    """Two layers of linear modules, norms, a tied vocabulary, and experts as gpt-oss stores them in bf16."""
    shapes = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{module}.weight": [out, into] for module, (into, out) in LINEAR.items()}
        shapes |= {f"{prefix}.input_layernorm.weight": [HIDDEN], f"{prefix}.self_attn.q_proj.bias": [128]}
        shapes |= {
            f"{prefix}.mlp.experts.gate_up_proj": [EXPERTS, HIDDEN, 2 * INNER],
            f"{prefix}.mlp.experts.gate_up_proj_bias": [EXPERTS, 2 * INNER],
            f"{prefix}.mlp.experts.down_proj": [EXPERTS, INNER, HIDDEN],
            f"{prefix}.mlp.experts.down_proj_bias": [EXPERTS, HIDDEN],
        }
    return Base(shapes, architecture)


def pair(module: str, into: int, out: int, rank: int = 8) -> dict[str, Shape]:
    return {f"{module}.lora_A.weight": [rank, into], f"{module}.lora_B.weight": [out, rank]}


SOUND = pair(Q_PROJ, 64, 128)
EXPERT_PAIRS = pair(f"{MIXTURE}.base_layer", HIDDEN, 2 * INNER, EXPERTS * 8) | pair(MIXTURE, INNER, HIDDEN, EXPERTS * 8)
OUTPUT = pair("base_model.model.lm_head", HIDDEN, VOCABULARY)
INPUT = {
    "base_model.model.model.embed_tokens.lora_embedding_A": [8, VOCABULARY],
    "base_model.model.model.embed_tokens.lora_embedding_B": [HIDDEN, 8],
}
COPIES = {
    "base_model.model.model.embed_tokens.base_layer.weight": [VOCABULARY, HIDDEN],
    "base_model.model.lm_head.base_layer.weight": [VOCABULARY, HIDDEN],
}

FITTING: dict[str, tuple[dict[str, Any], dict[str, Shape]]] = {
    "one module": ({}, SOUND),
    "names without PEFT's prefix": ({}, pair("model.layers.1.self_attn.o_proj", 128, 64)),
    "a router": ({}, pair("base_model.model.model.layers.1.mlp.gate", 64, 4)),
    "a rank of its own by pattern": ({"rank_pattern": {"q_proj": 4}}, pair(Q_PROJ, 64, 128, 4)),
    "the first pattern counts": ({"rank_pattern": {r"0\.self_attn\.q_proj": 4, "q_proj": 2}}, pair(Q_PROJ, 64, 128, 4)),
    "a pattern of another name's end": ({"rank_pattern": {"proj": 4}}, SOUND),
    "experts, both projections": ({}, EXPERT_PAIRS),
    "the vocabulary": ({}, OUTPUT | INPUT | COPIES),
}


@pytest.mark.parametrize(("more", "tensors"), FITTING.values(), ids=FITTING.keys())
def test_what_fits_is_taken(more: dict[str, Any], tensors: dict[str, Shape]) -> None:
    """Each pair meets a module of its widths with the rank that the description gives it."""
    assert misfit(DESCRIPTION | more, tensors, base()) is None


def without(part: str, tensors: dict[str, Shape] = SOUND) -> dict[str, Shape]:
    return {name: shape for name, shape in tensors.items() if part not in name}


MISFITS: dict[str, tuple[dict[str, Shape], str]] = {
    "another wrapper's names": (pair("base_model.model.language_model.model.layers.0.self_attn.q_proj", 64, 128), "fits no"),
    "another prefix": (pair("base_model.model.transformer.layers.0.self_attn.q_proj", 64, 128), "fits no module"),
    "no prefix of the model": (pair("base_model.model.layers.0.self_attn.q_proj", 64, 128), "fits no module"),
    "a doubled prefix": (pair("base_model.model." + Q_PROJ, 64, 128), "fits no module"),
    "a layer too far": (SOUND | pair(Q_PROJ.replace(".0.", ".2."), 64, 128), r"layers\.2\.self_attn\.q_proj\.lora_A\S* fits"),
    "a layer with a sign": (pair(Q_PROJ.replace(".0.", ".-1."), 64, 128), "fits no module"),
    "another parent": (pair(Q_PROJ.replace("self_attn", "attn"), 64, 128), "fits no module"),
    "a fused module": (pair(Q_PROJ.replace("q_proj", "qkv_proj"), 64, 128), "fits no module"),
    "a norm": (pair(Q_PROJ.replace("self_attn.q_proj", "input_layernorm"), 64, 64), "fits no module"),
    "a norm's neighbour of the same name": (pair("base_model.model.model.norm", 64, 64), "fits no module"),
    "no second factor": (without("lora_B"), r"q_proj\.lora_A\.weight has no lora_B beside it"),
    "no first factor": (without("lora_A"), r"q_proj\.lora_B\.weight has no lora_A beside it"),
    "ranks that differ": (without("lora_B") | {f"{Q_PROJ}.lora_B.weight": [128, 4]}, "the rank is 8 in .* and 4 in"),
    "another rank than described": (pair(Q_PROJ, 64, 128, 4), "the rank is 4 in .* description says 8"),
    "another input": (pair(Q_PROJ, 32, 128), "lora_A.weight is 32 wide and this model's is 64"),
    "another output": (pair(Q_PROJ, 64, 64), "lora_B.weight is 64 wide and this model's is 128"),
    "factors the other way round": (
        {f"{Q_PROJ}.lora_A.weight": [64, 8], f"{Q_PROJ}.lora_B.weight": [8, 128]},
        "lora_A.weight is 8 wide",
    ),
    "one place twice": (SOUND | pair(Q_PROJ.removeprefix("base_model.model."), 64, 128), "are for one place"),
    "three dimensions": (without("lora_A") | {f"{Q_PROJ}.lora_A.weight": [1, 8, 64]}, "two dimensions"),
    "an empty factor": (pair(Q_PROJ, 64, 128, 0), "two dimensions"),
    "an adapter's name inside": (
        SOUND | {f"{Q_PROJ}.lora_A.default.weight": [8, 64]},
        r"lora_A\.default\.weight is no factor",
    ),
    "a magnitude": (SOUND | {f"{Q_PROJ}.lora_magnitude_vector": [128]}, "magnitude_vector is no factor of a LoRA"),
    "a whole module": (SOUND | {"base_model.model.lm_head.weight": [VOCABULARY, HIDDEN]}, r"lm_head\.weight is no factor"),
    "a resized vocabulary": (
        SOUND | {"base_model.model.model.embed_tokens.base_layer.weight": [VOCABULARY + 1, HIDDEN]},
        r"embed_tokens\.base_layer\.weight is no factor",
    ),
    "an embedding as a linear module": (pair("base_model.model.model.embed_tokens", HIDDEN, VOCABULARY), "fits no module"),
    "one projection of the experts": (
        pair(MIXTURE, INNER, HIDDEN, EXPERTS * 8),
        "both or none",
    ),
    "experts of another number": (
        without("down", EXPERT_PAIRS) | pair(MIXTURE, INNER, HIDDEN, (EXPERTS + 1) * 8),
        "the rank is 40 in .* says 32",
    ),
    "one expert by number": (pair(f"{MIXTURE}.0.down_proj", INNER, HIDDEN), "fits no module"),
    "no factor at all": ({"model.norm.weight": [HIDDEN]}, "holds no LoRA weights"),
    "nothing": ({}, "holds no LoRA weights"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "said"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_is_named(tensors: dict[str, Shape], said: str) -> None:
    """The first tensor that has no place, no partner or another shape is named."""
    why = misfit(DESCRIPTION, tensors, base())

    assert why is not None and re.search(said, why), why


def test_quantised_experts_are_measured_by_their_blocks() -> None:
    """MXFP4 stores an input of 64 as two blocks of 16 bytes, the output first."""
    shapes = dict(base().shapes) | {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": [EXPERTS, 2 * INNER, HIDDEN // 32, 16],
        "model.layers.0.mlp.experts.down_proj_blocks": [EXPERTS, HIDDEN, INNER // 32, 16],
    }
    del shapes["model.layers.0.mlp.experts.gate_up_proj"], shapes["model.layers.0.mlp.experts.down_proj"]
    quantised = Base(shapes, "GptOssForCausalLM")

    assert misfit(DESCRIPTION, EXPERT_PAIRS, quantised) is None
    wider = EXPERT_PAIRS | {f"{MIXTURE}.lora_A.weight": [EXPERTS * 8, INNER * 2]}
    assert "192 wide" in (misfit(DESCRIPTION, wider, quantised) or "")


def test_experts_in_another_form_take_no_factors() -> None:
    """A tensor of an expert's name and no three dimensions: its adapter is refused, and the engine goes on."""
    flat = Base({"model.layers.0.mlp.experts.gate_up_proj": [EXPERTS * HIDDEN, 2 * INNER]}, "OwnForCausalLM")
    assert "fits no module" in (misfit(DESCRIPTION, EXPERT_PAIRS, flat) or "")


def test_packed_weights_have_no_widths_to_compare() -> None:
    """A checkpoint that packs several weights in an element still says which modules it has."""
    name = "model.layers.0.self_attn.q_proj.weight"
    packed = Base({name: [128, 32], "model.layers.0.self_attn.k_proj.qweight": [8, 32]}, packed=frozenset({name}))

    assert misfit(DESCRIPTION, SOUND, packed) is None
    assert misfit(DESCRIPTION, pair(Q_PROJ.replace("q_proj", "k_proj"), 64, 32), packed) is None
    assert "fits no module" in (misfit(DESCRIPTION, pair(Q_PROJ.replace(".0.", ".9."), 64, 128), packed) or "")


@pytest.mark.parametrize("tensors", [OUTPUT, INPUT, SOUND | OUTPUT], ids=["output", "input", "among others"])
def test_a_vocabulary_is_adapted_only_where_vllm_can(tensors: dict[str, Shape]) -> None:
    """gpt-oss's class declares no embedding modules, and vLLM would refuse the adapter at its first call."""
    assert misfit(DESCRIPTION, tensors, base("LlamaForCausalLM")) is None
    assert "does not support for GptOssForCausalLM" in (misfit(DESCRIPTION, tensors, base("GptOssForCausalLM")) or "")


DESCRIPTIONS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "EVA"},
    {"init_lora_weights": False},
    {"bias": "none", "modules_to_save": [], "rank_pattern": {}, "lora_bias": False},
    {"use_dora": True},
    {"lora_bias": True},
    {"bias": "all"},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "loftq"},
    {"alora_invocation_tokens": [1, 2]},
    {"layer_replication": [[0, 4], [2, 5]]},
    {"use_bdlora": {"target_modules_bd_a": []}},
    {"use_qalora": True},
    {"modules_to_save": ["lm_head"]},
]


@pytest.mark.parametrize("more", DESCRIPTIONS, ids=str)
def test_descriptions_are_judged_as_vllm_judges_them(more: dict[str, Any]) -> None:
    """What vLLM would refuse at the adapter's first call is refused before, and nothing that it takes."""
    peft_helper = importlib.import_module("vllm.lora.peft_helper").PEFTHelper.from_dict(DESCRIPTION | more)
    refused = bool(peft_helper._validate_features()) or peft_helper.bias != "none"

    assert (unsupported(DESCRIPTION | more) is not None) is refused


@pytest.mark.parametrize("missing", ["lora_alpha", "target_modules"])
def test_a_description_without_what_vllm_needs_is_refused(missing: str) -> None:
    """vLLM's reader has no default for them."""
    assert "lacks" in (unsupported({key: it for key, it in DESCRIPTION.items() if key != missing}) or "")


def test_adapted_vocabularies_are_vllms() -> None:
    """Of the catalogue's architectures with adapters, exactly those whose class in vLLM declares embedding modules."""
    registry = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
    named = {it.architecture.name for it in catalog.MODELS.values() if it.lora and it.architecture}
    adapted = {name for name in named if registry._try_load_model_cls(name).embedding_modules}

    assert adapted == ADAPTED_VOCABULARIES
