"""Knee: what one replica of a profile can do, estimated from its GPU's data sheet before anything was measured.

A roofline. Prompts are limited by arithmetic, output by reading the weights and every running request's KV once a step.
`serving.engine.autoscale` divides work by these rates, so a measured `Knee` in the settings is worth more.
"""

from __future__ import annotations

from serving.budget import kv
from serving.budget.memory import architecture_of, budget
from serving.budget.weights import GIB
from serving.catalog import GPUS, Attention, Knee, Model, Profile

#: Share of `max_num_seqs` at which a replica counts as full; assumed, until a measurement on a GPU says it.
KNEE_RATIO = 0.5
#: Share of the GPUs' arithmetic that prefill reaches: GPUStack's 34.5k total tokens/s of gpt-oss-120b on two H100s with
#: long prompts (docs.gpustack.ai/latest/performance-lab/gpt-oss-120b/h100) x 2 x 5.13e9 FLOP / (2 x 989.4 TFLOP/s).
MFU = 0.18
#: Share of the memory's bandwidth that a decode step reaches. Assumed; it puts ShareGPT (1.1 prompt tokens an output
#: token, a batch of 256) at 16.7k total tokens/s where that page measured 16.0k, and gpt-oss-20b on one H100 at 18.2k
#: where its page measured 19.1k.
BANDWIDTH_RATIO = 0.7
#: Tokens of KV a running request holds on average; assumed: a chat of Azure's trace (means of 1,155 in and 211 out).
CONTEXT_TOKENS = 1260
#: Weights from a local disk; assumed. 61 GiB take a minute.
LOAD_GIB_PER_S = 1.0
#: Processes, compiled graphs from a warm cache, CUDA graphs: Qwen3-32B starts in 44 s with its weights in the page cache
#: (vllm PR 32191), a 3B model's engine in 34 s and its first answer after 59 s (vllm issue 20264).
FIXED_STARTUP_S = 60.0


def estimate(model: Model, profile: Profile) -> Knee:
    """The knee of one engine of `model` under `profile`; computed. Raises Refusal where the catalogue lacks the facts."""
    batch = max(1, round(profile.max_num_seqs * KNEE_RATIO))
    return Knee(
        running_requests=batch * profile.data,
        prefill_tokens_per_s=round(prefill_tokens_per_s(model, profile)),
        decode_tokens_per_s=round(batch * profile.data / step_s(model, profile, batch, CONTEXT_TOKENS)),
        startup_s=round(FIXED_STARTUP_S + model.disk_mib / 1024 / LOAD_GIB_PER_S),
    )


def prefill_tokens_per_s(model: Model, profile: Profile) -> float:
    """Prompt tokens a second of the whole engine: two FLOP a token for each parameter it passes."""
    budget(model, profile)  # Refuses a GPU that is not known.
    flops = GPUS[profile.gpu].bf16_tflops * 1e12 * profile.gpus_per_engine * MFU
    return flops / (2 * architecture_of(model).active_parameters)


def step_s(model: Model, profile: Profile, batch: int, context_tokens: int) -> float:
    """Seconds until each of a data rank's `batch` requests has one more token.

    Each pipeline stage reads its weights and its share of the KV (a large batch touches every expert), one stage after
    another; to that, the arithmetic of one token for every request of every rank.
    """
    memory, attention = budget(model, profile), architecture_of(model).attention
    kv_bytes = _read_bytes(attention, profile, context_tokens) if attention else 0.0
    read_bytes = profile.pipeline * memory.weights_gib * GIB + batch * kv_bytes
    reading_s = read_bytes / (GPUS[profile.gpu].bandwidth_tb_per_s * 1e12 * BANDWIDTH_RATIO)
    return reading_s + batch * profile.data / prefill_tokens_per_s(model, profile)


def _read_bytes(attention: Attention, profile: Profile, tokens: int) -> float:
    """Bytes of KV that one step reads on one GPU of each stage for a request of `tokens`."""
    seen = attention.full_layers * tokens + attention.sliding_layers * min(attention.window, tokens)
    return seen * kv.layer_bytes_per_token(attention, profile)
