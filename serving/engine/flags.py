"""Flags: a profile of the catalogue as vLLM `serve` flags (0.32). Pure; the launcher adds address, checkpoint and secret.

What belongs to one pod of several (`--nnodes`, `--node-rank`, `--data-parallel-address` ...) is known where pods are
placed, and added there.
"""

from __future__ import annotations

from serving.catalog import LoraLimits, Model, Profile
from serving.errors import Refusal
from serving.wire import Task


def gpu_flags(model: Model, profile: Profile) -> list[str]:
    """All flags that make vLLM run `model` as `profile` says; raises Refusal when it loads adapters without limits."""
    context = profile.context_tokens or model.context_tokens
    return [*_parallel(profile), "--max-model-len", str(context), *tuning_flags(model, profile), *_task(model)]


def tuning_flags(model: Model, profile: Profile) -> list[str]:
    """Those of them that neither divide the engine nor describe the model: memory, batches, kernel, adapters."""
    adapters = _adapters(model) if profile.lora else []
    return [*_memory(profile), *_scheduling(profile), *_kernel(profile), *adapters]


def _parallel(profile: Profile) -> list[str]:
    line = [
        *("--tensor-parallel-size", str(profile.tensor)),
        *("--pipeline-parallel-size", str(profile.pipeline)),
        *("--data-parallel-size", str(profile.data)),
        *("--api-server-count", str(profile.api_servers)),
    ]
    return [*line, "--enable-expert-parallel"] if profile.expert else line


def _memory(profile: Profile) -> list[str]:
    return [
        *("--gpu-memory-utilization", str(profile.gpu_memory_utilization)),
        *("--kv-cache-dtype", "auto"),
        "--enable-prefix-caching" if profile.prefix_caching else "--no-enable-prefix-caching",
    ]


def _scheduling(profile: Profile) -> list[str]:
    return [
        *("--max-num-seqs", str(profile.max_num_seqs)),
        *("--max-num-batched-tokens", str(profile.max_num_batched_tokens)),
        *("--stream-interval", str(profile.stream_interval)),
        "--async-scheduling" if profile.async_scheduling else "--no-async-scheduling",
    ]


def _kernel(profile: Profile) -> list[str]:
    # With adapters `auto` ends at Marlin too (fused_moe/modular_kernel.py asks each kernel), said aloud all the same:
    # with MXFP4 another kernel gave garbage (vllm issue 29539).
    return ["--moe-backend", profile.moe_backend]


def _adapters(model: Model) -> list[str]:
    if model.lora is None:
        raise Refusal(f"The catalogue gives {model.name} no adapter limits, so it can load none.")
    return room_flags(model.lora)


def room_flags(limits: LoraLimits) -> list[str]:
    """Those that make an engine keep room for adapters, on CPU and GPU alike."""
    return [
        "--enable-lora",
        *("--max-loras", str(limits.max_adapters)),
        *("--max-lora-rank", str(limits.max_rank)),
        *("--max-cpu-loras", str(limits.max_cpu_adapters)),
    ]


def _task(model: Model) -> list[str]:
    line = ["--tokenizer", model.tokenizer] if model.tokenizer else []
    if model.task is Task.EMBED:
        return [*line, "--runner", "pooling"]
    if model.tool_parser:
        line += ["--enable-auto-tool-choice", "--tool-call-parser", model.tool_parser]
    if model.reasoning_parser:
        line += ["--reasoning-parser", model.reasoning_parser]
    return line
