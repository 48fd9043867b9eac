"""Flags: what a profile of the catalogue adds to vLLM's `serve` line (0.32). Pure.

Parallelism, the model and the address come from the launcher (`engine/command`).
"""

from __future__ import annotations

import json
from typing import Any

from serving.catalog import LoraLimits, Model, Profile, Speculation
from serving.errors import Refusal

#: Words that must have been there before, at least and at most, for what followed them to be guessed (vLLM's default is 5).
_NGRAM_MIN, _NGRAM_MAX = 2, 5


def tuning_flags(model: Model, profile: Profile) -> list[str]:
    """What a profile adds to the launcher's line: memory, cache, batches, kernel, adapters.

    Raises Refusal when it loads adapters of a model without limits.
    """
    adapters = _adapters(model) if profile.lora else []
    return [*_memory(profile), *_cache(profile), *_scheduling(profile), *_kernel(profile), *adapters]


def _memory(profile: Profile) -> list[str]:
    return [
        *("--gpu-memory-utilization", str(profile.gpu_memory_utilization)),
        "--enable-prefix-caching" if profile.prefix_caching else "--no-enable-prefix-caching",
    ]


def _cache(profile: Profile) -> list[str]:
    line = ["--kv-cache-dtype", profile.kv_cache_dtype]
    if profile.kv_cache_dtype != "auto":
        # Of a model that has any: they gain nothing and lose precision (ENG-54).
        line += ["--kv-cache-dtype-skip-layers", "sliding_window"]
    if profile.kv_offloading_gib:
        line += ["--kv-offloading-size", str(profile.kv_offloading_gib)]
        line += ["--kv-offloading-backend", profile.kv_offloading_backend]
    return line


def _scheduling(profile: Profile) -> list[str]:
    return [
        *("--max-num-seqs", str(profile.max_num_seqs)),
        *("--max-num-batched-tokens", str(profile.max_num_batched_tokens)),
        *("--stream-interval", str(profile.stream_interval)),
        "--async-scheduling" if profile.plans_ahead else "--no-async-scheduling",
    ]


def _kernel(profile: Profile) -> list[str]:
    # With adapters `auto` selects Marlin too (fused_moe/modular_kernel.py tries each kernel); explicit all the same,
    # because another kernel gave garbage with MXFP4 (vllm issue 29539).
    return ["--moe-backend", profile.moe_backend]


def _adapters(model: Model) -> list[str]:
    if model.lora is None:
        raise Refusal(f"The catalogue gives {model.name} no adapter limits, so it can load none.")
    return room_flags(model.lora)


def speculation_flags(speculation: Speculation | None, draft: str | None, tensor: int) -> list[str]:
    """What makes an engine guess ahead, on CPU and GPU alike; `draft` is the folder of its draft model, if it has one,
    which is spread over the same `tensor` ranks: on fewer each would hold all of it, and all of its KV heads."""
    if speculation is None:
        return []
    said: dict[str, Any] = {"method": speculation.method, "num_speculative_tokens": speculation.tokens}
    if speculation.method == "eagle3":
        said |= {"model": draft, "draft_tensor_parallel_size": tensor}
    else:
        said |= {"prompt_lookup_min": _NGRAM_MIN, "prompt_lookup_max": _NGRAM_MAX}
    return ["--speculative-config", json.dumps(said)]


def room_flags(limits: LoraLimits) -> list[str]:
    """Flags that reserve room for adapters, on CPU and GPU alike."""
    return [
        "--enable-lora",
        *("--max-loras", str(limits.max_adapters)),
        *("--max-lora-rank", str(limits.max_rank)),
        *("--max-cpu-loras", str(limits.max_cpu_adapters)),
    ]
