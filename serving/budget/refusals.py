"""Refusals: what vLLM would fail at minutes later, or silently get wrong, is refused in one sentence before anything starts.

Each names its source and version. What vLLM handles by itself is not here: experts that do not divide, more ranks than
KV heads where the model class copies them, structured output with speculation.
"""

from __future__ import annotations

from serving.budget import kv
from serving.budget.memory import architecture_of, budget, context_of
from serving.budget.weights import GIB
from serving.catalog import (
    Architecture,
    Format,
    LoraLimits,
    Model,
    MoeBackend,
    Profile,
    Speculation,
    Speed,
    draft_of,
    is_measured_of,
)
from serving.errors import Refusal
from serving.wire import Task

#: Kernels that vLLM 0.32 has for experts of each format on Hopper (fused_moe/oracle: mxfp4.py, fp8.py, unquantized.py).
KERNELS: dict[Format, frozenset[MoeBackend]] = {
    "mxfp4": frozenset({"marlin", "triton", "triton_unfused", "flashinfer_cutlass"}),
    "fp8": frozenset({"marlin", "triton", "flashinfer_cutlass"}),
    "bf16": frozenset({"triton", "flashinfer_cutlass"}),
}
#: Of these, the kernels that take adapters and are right with them.
LORA_KERNELS: dict[Format, frozenset[MoeBackend]] = {
    "mxfp4": frozenset({"marlin"}),
    "fp8": frozenset({"marlin", "triton"}),
    "bf16": frozenset({"triton"}),
}


def refuse(model: Model, profile: Profile, prefix_routing: bool = False) -> None:
    """Raise Refusal when an engine of `model` under `profile` cannot work on nodes of its `gpus_per_node` GPUs.

    `prefix_routing` says whether the gateway sends requests to replicas by the prefixes these hold.
    """
    architecture = architecture_of(model)
    _refuse_uneven_heads(model, architecture, profile)
    _refuse_experts_of_a_dense_model(model, architecture, profile)
    _refuse_missing_kernels(model, architecture, profile)
    _refuse_parts_of_nodes(model, profile)
    _refuse_broken_adapters(model, architecture, profile)
    if prefix_routing and not profile.prefix_caching:
        raise Refusal(
            f"Profile {profile.name} turns prefix caching off, so prefix routing would find nothing to reuse: change one"
            " of the two (vLLM 0.32, --enable-prefix-caching)."
        )
    if context_of(model, profile) > model.context_tokens:
        raise Refusal(
            f"Profile {profile.name} promises {profile.context_tokens} tokens and {model.name} was trained for"
            f" {model.context_tokens} (vLLM 0.32, config/model.py: max_model_len)."
        )
    refuse_features(model, profile, on_cpu=False)
    _refuse_other_caches(model, architecture, profile)
    _refuse_little_memory(model, architecture, profile)


def refuse_on_cpu(model: Model, profile: Profile) -> None:
    """Raise Refusal when vLLM's CPU build cannot run `model` under `profile`; memory is not checked."""
    if model.profiles:
        raise Refusal(
            f"{model.name} is meant for GPUs, and its profile is {profile.name}: name one of its own, of which the first is"
            f" {model.profiles[0].name} on {model.profiles[0].gpu} (deploy/README.md, Profiles)."
        )
    architecture = architecture_of(model)
    _refuse_uneven_heads(model, architecture, profile)
    _refuse_experts_of_a_dense_model(model, architecture, profile)
    refuse_features(model, profile, on_cpu=True)
    if profile.lora and architecture.experts is not None:
        raise Refusal(
            f"Adapters on {model.name} crash its engine on a CPU at the first request, with an adapter or without: its experts then need"
            " Triton (seen with vLLM 0.32's CPU build)."
        )


def refuse_features(model: Model, profile: Profile, on_cpu: bool) -> None:
    """Raise Refusal for a kernel, a KV cache or guesses that cannot work whatever shape `model` has."""
    if on_cpu and profile.moe_backend != "auto":
        raise Refusal(
            f"{model.name} runs on a CPU, where vLLM has one kernel for experts: leave `moe_backend` unset"
            " (vLLM 0.32, fused_moe/oracle)."
        )
    if on_cpu and (profile.kv_cache_dtype != "auto" or profile.kv_offloading_gib):
        raise Refusal(
            f"{model.name} runs on a CPU, whose KV cache is in the host's memory already: leave `kv_cache_dtype` and"
            " `kv_offloading_gib` unset (vLLM 0.32, v1/kv_offload/cpu/spec.py refuses the second too)."
        )
    if profile.kv_offloading_backend != "native" and not profile.kv_offloading_gib:
        raise Refusal(
            f"{model.name} is to keep KV on its hosts with {profile.kv_offloading_backend}, and none of it: set"
            " `kv_offloading_gib`, or leave `kv_offloading_backend` unset (vLLM 0.32, config/cache.py)."
        )
    if profile.kv_offloading_gib and profile.nodes > 1:
        raise Refusal(
            f"An engine of {model.name} over {profile.nodes} nodes keeps no KV on its hosts: each would hold a file for all"
            " ranks (vLLM 0.32, v1/kv_offload/cpu/shared_offload_region.py)."
        )
    if profile.speculation:
        _refuse_guesses(model, profile, profile.speculation)


def _refuse_guesses(model: Model, profile: Profile, speculation: Speculation) -> None:
    if model.task is not Task.GENERATE:
        raise Refusal(f"{model.name} generates no tokens, so none can be guessed: leave `speculation` unset.")
    if speculation.method != "eagle3":
        return
    if draft_of(model) is None:
        raise Refusal(
            f"The catalogue has no draft model for {model.name}: take `speculation: {{method: ngram}}`, or leave it unset."
        )
    if profile.pipeline > 1:
        raise Refusal(
            f"The draft of {model.name} reads three of its layers, which {profile.pipeline} pipeline stages would hold apart:"
            " leave `speculation` or `pipeline` unset (vLLM 0.32, models/gpt_oss.py: aux_hidden_states)."
        )


def refuse_room(model: Model, wanted: LoraLimits, api_servers: int, nodes: int) -> None:
    """Raise Refusal when engines of `model` cannot reserve the room for adapters that the settings want."""
    if model.lora is None:
        raise Refusal(f"The catalogue gives {model.name} no adapter limits, so it can load none: leave `lora` unset.")
    for name, most in model.lora.model_dump().items():
        if (asked := getattr(wanted, name)) > most:
            raise Refusal(
                f"`lora.{name}` of {model.name} is {asked} and the catalogue allows {most}: its memory was computed for that."
            )
    if api_servers > 1:
        raise Refusal(
            f"An engine that loads adapters has one HTTP front end and engine.api_servers asks for {api_servers}: each would"
            " number adapters on its own (vLLM 0.32, entrypoints/cli/serve.py refuses it too)."
        )
    if nodes > 1:
        raise Refusal(
            f"An engine of {model.name} over {nodes} nodes loads no adapters: each node's workers would read them from"
            " where only the first has them (vLLM 0.32, lora/worker_manager.py)."
        )


def refuse_speed(model: Model, profile: Profile, speed: Speed) -> None:
    """Raise Refusal when `speed` was measured of another model, or of a kernel that engines of `profile` do not run.

    Which kernel `auto` comes to is vLLM's choice and not known here: the operator's word is taken.
    """
    if not is_measured_of(speed, model):
        raise Refusal(
            f"The `speed` of {model.name} was measured of {speed.model}, which is neither that model nor a `base` with"
            " weights of its formats: measure it (`serving accept --speed-out`), or leave `speed` unset."
        )
    if profile.moe_backend not in ("auto", speed.kernel):
        raise Refusal(
            f"The `speed` of {model.name} was measured with the kernel {speed.kernel} and its engines run {profile.moe_backend}:"
            f" set `moe_backend: {speed.kernel}`, or leave `speed` unset."
        )


def _refuse_uneven_heads(model: Model, architecture: Architecture, profile: Profile) -> None:
    attention, tensor = architecture.attention, profile.tensor
    if attention is None:
        return
    if attention.heads % tensor:
        raise Refusal(
            f"{model.name} has {attention.heads} attention heads, which {tensor} tensor ranks cannot share evenly"
            " (vLLM 0.32, config/model.py: verify_with_parallel_config)."
        )
    if attention.replicates_kv_heads or attention.latent_dim is not None:
        return
    if attention.kv_heads % tensor:
        raise Refusal(
            f"{model.name} has {attention.kv_heads} KV heads, which {tensor} tensor ranks cannot share evenly, and"
            " its model class does not copy them (vLLM 0.32, models/gpt_oss.py: num_key_value_heads // tp_size)."
        )


def _refuse_experts_of_a_dense_model(model: Model, architecture: Architecture, profile: Profile) -> None:
    if profile.expert and architecture.experts is None:
        raise Refusal(
            f"{model.name} has no experts to spread: leave expert parallelism off"
            " (vLLM 0.32, config/model.py: _verify_with_expert_parallelism)."
        )


def _refuse_missing_kernels(model: Model, architecture: Architecture, profile: Profile) -> None:
    if profile.moe_backend == "auto":
        return
    experts = architecture.experts
    if experts is None:
        raise Refusal(
            f"{model.name} has no experts and profile {profile.name} names a kernel for them: leave `moe_backend` unset"
            " (vLLM 0.32, config/kernel.py)."
        )
    known = KERNELS[experts.format]
    if profile.moe_backend not in known:
        raise Refusal(
            f"vLLM 0.32 has no kernel {profile.moe_backend} for the {experts.format} experts of {model.name}; it has"
            f" {', '.join(sorted(known))} (fused_moe/oracle)."
        )


def _refuse_parts_of_nodes(model: Model, profile: Profile) -> None:
    if profile.gpus_per_engine % profile.pod_gpus:
        raise Refusal(
            f"Profile {profile.name} of {model.name} spreads {profile.gpus_per_engine} GPUs over pods of"
            f" {profile.pod_gpus}, which leaves one pod short (vLLM 0.32, config/parallel.py: nnodes)."
        )


def _refuse_broken_adapters(model: Model, architecture: Architecture, profile: Profile) -> None:
    if not profile.lora:
        return
    if model.lora is None:
        raise Refusal(f"The catalogue gives {model.name} no adapter limits, so profile {profile.name} can load none.")
    experts = architecture.experts
    if experts is None or profile.moe_backend == "auto":
        return
    known = LORA_KERNELS[experts.format]
    if profile.moe_backend not in known:
        is_garbage = profile.moe_backend == "triton_unfused"
        raise Refusal(
            f"Adapters on {model.name} need the kernel {' or '.join(sorted(known))}, and profile {profile.name} asks for"
            f" {profile.moe_backend}, which"
            f" {'gave garbage' if is_garbage else 'takes none, and vLLM then does not start'}"
            f" ({'vLLM issue 29539' if is_garbage else 'vLLM 0.32, fused_moe/modular_kernel.py: supports_lora'})."
        )


def _refuse_other_caches(model: Model, architecture: Architecture, profile: Profile) -> None:
    attention = architecture.attention
    if profile.kv_cache_dtype == "fp8" and attention and attention.latent_dim is not None:
        raise Refusal(
            f"The cache of {model.name} is a latent, whose 8 bits are a format of their own that was not checked here: leave"
            " `kv_cache_dtype` unset (vLLM 0.32, config/cache.py: fp8_ds_mla)."
        )
    if profile.kv_offloading_backend == "lmcache" and attention and attention.sliding_layers:
        raise Refusal(
            f"LMCache turns vLLM's hybrid KV manager off, and {attention.sliding_layers} sliding layers of {model.name} would"
            " then keep every token: leave `kv_offloading_backend` unset (vLLM 0.32, config/vllm.py: supports_hma)."
        )


def _refuse_little_memory(model: Model, architecture: Architecture, profile: Profile) -> None:
    memory = budget(model, profile)
    if memory.kv_gib <= 0:
        raise Refusal(
            f"{model.name} does not fit {profile.gpus_per_engine} {profile.gpu}: {memory.weights_gib:.1f} GiB of weights,"
            f" {memory.adapters_gib:.1f} of adapters and {memory.workspace_gib:.1f} of workspace on each exceed"
            f" {memory.usable_gib:.1f} (computed for vLLM 0.32; v1/core/kv_cache_utils.py refuses it too)."
        )
    if architecture.attention is None:
        return
    needed = kv.request_bytes(architecture.attention, profile, memory.context_tokens) / GIB
    if needed > memory.kv_gib:
        raise Refusal(
            f"{memory.kv_gib:.1f} GiB are left for KV and one request of {memory.context_tokens} tokens needs"
            f" {needed:.1f}: promise less, or take more GPUs (vLLM 0.32, v1/core/kv_cache_utils.py refuses it too)."
        )
