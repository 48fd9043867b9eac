"""Weights: how many GiB of a model one GPU holds, padded as vLLM's kernel pads them."""

from __future__ import annotations

from math import ceil

from serving.catalog import Architecture, Experts, LoraLimits, Model, Profile, draft_used

GIB = 2**30
#: Bytes a parameter; MXFP4 is 4 bits and an 8-bit scale for every 32 (OCP MX specification 1.0).
BYTES = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 4.25 / 8}
#: Gate, up and down projection.
_PROJECTIONS = 3
_BF16 = 2
#: Estimated: A and B of seven projections in hidden widths per layer; 20 for Llama-3.3-70B, 26 for Qwen3-32B, undivided.
_DENSE_ADAPTER_WIDTHS = 26


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple not below `value`."""
    return ceil(value / multiple) * multiple


def expert_ranks(profile: Profile) -> int:
    """GPUs of one stage that share its experts: vLLM spreads them over tensor × data ranks, with EP and without."""
    return profile.tensor * profile.data


def local_experts(experts: Experts, profile: Profile) -> int:
    """Experts on the fullest rank; what does not divide goes to the first ranks (vLLM 0.32, expert_map_manager.py)."""
    return ceil(experts.count / expert_ranks(profile)) if profile.expert else experts.count


def padded_widths(architecture: Architecture, experts: Experts, profile: Profile) -> tuple[int, int]:
    """Hidden and intermediate width of one expert on one rank, as its kernel holds them.

    Marlin with MXFP4: hidden to 256, intermediate to 128 (vLLM 0.32, fused_moe/oracle/mxfp4.py). Other kernels pad less
    (Triton: 64.38 GiB against 65.97 in vLLM issue 33155), so Marlin's figure holds for all of them, and for `auto`.
    """
    intermediate = ceil(experts.intermediate / (1 if profile.expert else expert_ranks(profile)))
    if experts.format != "mxfp4":
        return architecture.hidden, intermediate
    return round_up(architecture.hidden, 256), round_up(intermediate, 128)


def expert_gib(architecture: Architecture, profile: Profile) -> float:
    """GiB of routed experts on the fullest GPU, padding included."""
    experts = architecture.experts
    if experts is None:
        return 0.0
    hidden, intermediate = padded_widths(architecture, experts, profile)
    each = _PROJECTIONS * hidden * intermediate * BYTES[experts.format]
    return ceil(experts.layers / profile.pipeline) * local_experts(experts, profile) * each / GIB


def rest_gib(architecture: Architecture, profile: Profile) -> float:
    """GiB of everything else on the fullest GPU: attention, embedding, output, shared experts.

    Tensor ranks share it, data ranks each have a copy, and the largest pipeline stage carries an embedding. Small parts
    that vLLM copies to every rank (norms, routers, MLA's down-projections) are counted as shared.
    """
    embedding = architecture.hidden * architecture.vocabulary
    if profile.pipeline == 1:
        stage = _rest_parameters(architecture)
    else:
        stage = (_rest_parameters(architecture) - 2 * embedding) / profile.pipeline + embedding
    return stage * BYTES[architecture.format] / profile.tensor / GIB


def draft_gib(model: Model, profile: Profile) -> float:
    """GiB of the model that guesses tokens ahead on one GPU: tensor ranks share it, data ranks each have one."""
    draft = draft_used(model, profile.speculation)
    if draft is None or draft.architecture is None:
        return 0.0
    return draft.architecture.parameters * BYTES["bf16"] / profile.tensor / GIB


def adapter_gib(architecture: Architecture, limits: LoraLimits, profile: Profile) -> float:
    """GiB that vLLM sets aside for adapters of the routed experts (0.32, lora/layers/fused_moe.py), or of a dense model.

    Per expert and slot: A of gate-up and B of down over the whole hidden width, the others over this rank's slice.
    """
    experts = architecture.experts
    if experts is None:
        each = limits.max_rank * _DENSE_ADAPTER_WIDTHS * architecture.hidden * _BF16
        return limits.max_adapters * _layers(architecture) * each / GIB
    hidden, intermediate = padded_widths(architecture, experts, profile)
    each = limits.max_rank * (2 * hidden + 3 * intermediate) * _BF16
    held = ceil(experts.layers / profile.pipeline) * local_experts(experts, profile)
    return limits.max_adapters * held * each / GIB


def pinned_adapter_gib(model: Model) -> float:
    """GiB of host memory that one adapter of the largest rank takes in each worker: whole, before ranks share it."""
    if model.architecture is None or model.lora is None:
        return 0.0
    whole = Profile(name="whole", gpu="none", reason="One rank holds all.", source="computed")
    return round(adapter_gib(model.architecture, model.lora, whole) / model.lora.max_adapters, 2)


def _rest_parameters(architecture: Architecture) -> float:
    experts = architecture.experts
    if experts is None:
        return architecture.parameters
    each = _PROJECTIONS * architecture.hidden * experts.intermediate
    return architecture.parameters - experts.layers * experts.count * each


def _layers(architecture: Architecture) -> int:
    attention = architecture.attention
    return attention.full_layers + attention.sliding_layers if attention else 0
