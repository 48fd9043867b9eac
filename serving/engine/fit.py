"""Fit: does every tensor of a LoRA adapter meet a module of its base model? Pure, over names, shapes and the description.

vLLM (0.32) compares only the last word of a module's name: factors for a layer that the model lacks, or under another
prefix, are left out without a word, and the adapter then answers as its base (observed). It adds factors of another
width as far as they reach, and scales by the description's rank whatever the factors' is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

Shape = list[int]

#: PEFT's prefix of module names.
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
#: PEFT's name of the first of two adapted parameters of one module: a mixture's gate and up projections.
_FIRST_OF_TWO = ".base_layer"
#: Copies of the base's own vocabulary, which PEFT saves beside factors for it and vLLM leaves out.
_BASE_COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
_INPUT_VOCABULARY, _OUTPUT_VOCABULARY = "embed_tokens", "lm_head"
#: Architectures whose vocabulary vLLM can adapt (`embedding_modules` of its classes), among those that the catalogue
#: offers adapters for.
ADAPTED_VOCABULARIES = frozenset({"LlamaForCausalLM", "Qwen3ForCausalLM"})
#: Experts whose weights are one tensor each, as gpt-oss stores them: `gate_up_proj` and `down_proj`, quantised or not.
_EXPERTS = re.compile(r"(?P<module>.+\.experts)\.(?P<which>gate_up_proj|down_proj)(?P<blocks>_blocks)?")
#: The tensor of a linear module that holds its weights: as they are, as GPTQ and AWQ pack them, as compressed-tensors does.
_WEIGHTS = frozenset({"weight", "qweight", "weight_packed"})
#: Values in a byte of a block of MXFP4.
_MXFP4_PER_BYTE = 2
#: What PEFT may have done to the base's weights before training. The other ways to initialise only choose first values.
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
#: Keys of a description that change what the factors mean, and that vLLM does not implement (its `PEFTHelper`).
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias beside the factors",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "whole modules of its own",
    "trainable_token_indices": "tokens of its own",
}


class Base(msgspec.Struct, frozen=True):
    """The model that adapters are added to."""

    #: Tensor → shape.
    shapes: Mapping[str, Shape]
    #: The class that vLLM loads.
    architecture: str = ""
    #: Tensors that hold several values in each element, so that their shapes are no widths.
    packed: frozenset[str] = frozenset()


class _Site(msgspec.Struct, frozen=True):
    """A module that takes a pair of factors; widths are None where the checkpoint stores its weights in another form."""

    width_in: int | None = None
    width_out: int | None = None
    #: Experts whose factors are stacked in one tensor.
    experts: int = 1
    is_embedding: bool = False


class _Factor(msgspec.Struct, frozen=True):
    """One tensor of a pair."""

    name: str
    module: str
    is_first: bool
    is_embedding: bool
    shape: Shape

    @property
    def rank(self) -> int:
        """Of all experts together, where it has several."""
        return self.shape[0 if self.is_first else 1]

    @property
    def width(self) -> int:
        return self.shape[1 if self.is_first else 0]


def unsupported(config: Mapping[str, Any]) -> str | None:
    """What the description asks for and vLLM does not implement, in one clause."""
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            return f"its description asks for {what} (`{key}`), which vLLM does not support"
    if config.get("bias", "none") != "none":
        return "its description asks for a trained bias (`bias`), which vLLM does not support"
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        return f"it was trained on weights changed by its initialisation (`init_lora_weights: {init}`): convert it to a plain LoRA"
    if not isinstance(config.get("lora_alpha"), int | float) or "target_modules" not in config:
        return "its description lacks `lora_alpha` or `target_modules`"
    return None


def misfit(config: Mapping[str, Any], tensors: Mapping[str, Shape], base: Base) -> str | None:
    """The first tensor that does not fit, in one clause; None when all of them do."""
    factors = {name: _factor(name, shape) for name, shape in tensors.items()}
    if not any(factors.values()):
        return "its file holds no LoRA weights"
    sites = dict(_sites(base))
    pairs: dict[str, dict[bool, _Factor]] = {}
    for name, factor in factors.items():
        if name.endswith(_BASE_COPIES) and tensors[name] in _vocabulary_shapes(base):
            continue
        site = sites.get(factor.module) if factor else None
        if factor is None or site is None or site.is_embedding is not factor.is_embedding:
            return _homeless(name, factor, base)
        if len(factor.shape) != 2 or 0 in factor.shape:
            return f"its tensor {name} has the shape {factor.shape}, and a factor has two dimensions"
        pair = pairs.setdefault(factor.module, {})
        if factor.is_first in pair:
            return f"its tensors {pair[factor.is_first].name} and {name} are for one place"
        pair[factor.is_first] = factor
    return next(filter(None, (_pair_misfit(config, pairs, module, sites[module]) for module in pairs)), None)


def _factor(name: str, shape: Shape) -> _Factor | None:
    found = _FACTOR.fullmatch(name)
    if found is None:
        return None
    part = found["linear"] or found["embedding"]
    return _Factor(name, found["module"].removeprefix(_PREFIX), part == "A", bool(found["embedding"]), shape)


def _homeless(name: str, factor: _Factor | None, base: Base) -> str:
    if factor is None:
        return f"its tensor {name} is no factor of a LoRA"
    if _is_vocabulary(factor.module) and base.architecture not in ADAPTED_VOCABULARIES:
        return f"its tensor {name} changes the vocabulary, which vLLM does not support for {base.architecture or 'this model'}"
    return f"its tensor {name} fits no module of this model, which has none called {factor.module} that takes it"


def _pair_misfit(
    config: Mapping[str, Any], pairs: Mapping[str, Mapping[bool, _Factor]], module: str, site: _Site
) -> str | None:
    pair = pairs[module]
    if len(pair) == 1:
        (alone,) = pair.values()
        return f"its tensor {alone.name} has no lora_{'B' if alone.is_first else 'A'} beside it"
    first, second = pair[True], pair[False]
    for factor, wanted in ((first, site.width_in), (second, site.width_out)):
        if wanted not in (None, factor.width):
            return f"it was trained on another model: its {factor.name} is {factor.width} wide and this model's is {wanted}"
    if first.rank != second.rank:
        return f"the rank is {first.rank} in its tensor {first.name} and {second.rank} in {second.name}"
    rank = described_rank(config, module) * site.experts
    if first.rank != rank:
        return f"the rank is {first.rank} in its tensor {first.name}, where its description says {rank}"
    if site.experts > 1 and not {module.removesuffix(_FIRST_OF_TWO), _gate_up(module)} <= pairs.keys():
        return f"its tensor {first.name} is for one of the two projections of these experts: vLLM takes both or none"
    return None


def described_rank(config: Mapping[str, Any], module: str) -> int:
    """The rank that the description gives a module: of the patterns, the first that fits counts."""
    name = _parameter(module)
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if ending(pattern).match(name):
            return int(rank)
    return int(config["r"])


def ending(pattern: str) -> re.Pattern[str]:
    """What PEFT makes of a key of `rank_pattern`, which fits the end of a module's name; raises re.error."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _gate_up(module: str) -> str:
    return module.removesuffix(_FIRST_OF_TWO) + _FIRST_OF_TWO


def _parameter(module: str) -> str:
    """A module's name as patterns see it: experts by the parameter that is adapted."""
    if module.endswith(f".experts{_FIRST_OF_TWO}"):
        return module.removesuffix(_FIRST_OF_TWO) + ".gate_up_proj"
    return f"{module}.down_proj" if module.endswith(".experts") else module


def _sites(base: Base) -> Iterator[tuple[str, _Site]]:
    """Every module that takes factors, by name; a norm is none, because its weight is no matrix."""
    for name, shape in base.shapes.items():
        module, _, kind = name.rpartition(".")
        if found := _EXPERTS.fullmatch(name):
            is_first = found["which"] == "gate_up_proj"
            if site := _experts(shape, bool(found["blocks"])):
                yield found["module"] + (_FIRST_OF_TWO if is_first else ""), site
        elif kind in _WEIGHTS and len(shape) == 2 and not _is_vocabulary(module):
            is_plain = kind == "weight" and name not in base.packed
            yield module, _Site(width_in=shape[1], width_out=shape[0]) if is_plain else _Site()
    if base.architecture in ADAPTED_VOCABULARIES:
        yield from _vocabularies(base)


def _experts(shape: Shape, is_quantised: bool) -> _Site | None:
    """The site of stacked experts; None where they are stored in another form than gpt-oss's."""
    match shape:
        case [count, out, blocks, block_bytes] if is_quantised:
            return _Site(blocks * block_bytes * _MXFP4_PER_BYTE, out, count)
        case [count, into, out] if not is_quantised:
            return _Site(into, out, count)
    return None


def _vocabularies(base: Base) -> Iterator[tuple[str, _Site]]:
    for name, (count, width) in _vocabulary_tensors(base):
        module = name.removesuffix(".weight")
        if module.endswith(_INPUT_VOCABULARY):
            yield module, _Site(width_in=count, width_out=width, is_embedding=True)
        # Where the two are tied, the checkpoint stores the input's matrix alone.
        yield _OUTPUT_VOCABULARY, _Site(width_in=width, width_out=count)


def _vocabulary_shapes(base: Base) -> list[Shape]:
    return [shape for _, shape in _vocabulary_tensors(base)]


def _vocabulary_tensors(base: Base) -> Iterator[tuple[str, Shape]]:
    for name, shape in base.shapes.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(shape) == 2 and _is_vocabulary(module):
            yield name, shape


def _is_vocabulary(module: str) -> bool:
    return module.rpartition(".")[2] in (_INPUT_VOCABULARY, _OUTPUT_VOCABULARY)
