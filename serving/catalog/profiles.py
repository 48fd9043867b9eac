"""Profiles: how each model is spread over GPUs, with the reason and its source beside it.

gpt-oss names its MoE kernel. Left to itself, vLLM 0.32 on Hopper takes Triton where it can and Marlin where it cannot
(fused_moe/oracle/mxfp4.py), and the figures cited here, and the memory computed, are Marlin's. `serving accept` says where another one is faster (ENG-52).
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.catalog.shapes import Profile

GPUSTACK = (
    "docs.gpustack.ai/latest/performance-lab/gpt-oss-120b/h100: total tokens/s 6.1k at TP=1, 16.0k at TP=2 (ShareGPT)"
)
TIGHT = "vllm issues 23278 (−2.14 GiB of KV), 27508 (+1.71 GiB at 0.95), 33155, with vLLM's default of 1,024 sequences"
EXPERTS = "vllm PR 25488: DP=2 with EP improved TTFT and hurt TPOT; 34259: Triton kernels with EP crashed on SM90"
SHARDS = (
    "computed (SCL-7): twice the GPUs take 0.7 to 0.9 of the time per token, because launches and communication of each"
    " layer stay as they are; 8 KV heads are the limit"
)

GPT_OSS_120B = (
    Profile(
        name="balanced",
        gpu="h100",
        reason="The default: two H100s hold the weights and leave most of a GPU for KV.",
        source=GPUSTACK,
        tensor=2,
        moe_backend="marlin",
    ),
    Profile(
        name="latency",
        gpu="h100",
        reason="Fewer milliseconds per token for few users: four GPUs share each token's weights and arithmetic.",
        source=SHARDS,
        tensor=4,
        max_num_seqs=128,
        max_num_batched_tokens=4096,
        moe_backend="marlin",
    ),
    Profile(
        name="latency-tp8",
        gpu="h100",
        reason="The fewest milliseconds per token, at a whole node for one engine.",
        source=SHARDS,
        tensor=8,
        max_num_seqs=128,
        max_num_batched_tokens=4096,
        moe_backend="marlin",
    ),
    Profile(
        name="throughput",
        gpu="h100",
        reason="Most tokens per GPU for batch work: more sequences at once, so each token takes longer.",
        source=f"{GPUSTACK}; steps of 8,192 tokens as there (ENG-55)",
        tensor=2,
        gpu_memory_utilization=0.92,
        max_num_seqs=512,
        moe_backend="marlin",
    ),
    Profile(
        name="dp8-ep",
        gpu="h100",
        reason="One copy of the experts for eight data ranks: more KV than the same GPUs hold as balanced engines; measure both.",
        source=EXPERTS,
        data=8,
        expert=True,
        max_num_seqs=128,
        max_num_batched_tokens=4096,
        moe_backend="marlin",
    ),
    Profile(
        name="tp8-ep",
        gpu="h100",
        reason="latency-tp8 with whole experts on each rank, which need less padding; measure it against latency-tp8.",
        source=EXPERTS,
        tensor=8,
        expert=True,
        max_num_seqs=128,
        max_num_batched_tokens=4096,
        moe_backend="marlin",
    ),
    Profile(
        name="tight",
        gpu="h100",
        reason="One H100 for one engine, by choice only: it fits because few sequences need little memory to sample.",
        source=TIGHT,
        gpu_memory_utilization=0.95,
        max_num_seqs=32,
        max_num_batched_tokens=2048,
        moe_backend="marlin",
    ),
    Profile(
        name="lora",
        gpu="h100",
        reason="Balanced with adapters: Marlin is the MXFP4 kernel whose adapters are right.",
        source="vllm issue 29539: Triton gave garbage; computed: adapters of every expert take GiB per slot",
        tensor=2,
        moe_backend="marlin",
        lora=True,
    ),
    Profile(
        name="balanced",
        gpu="h200",
        reason="The default: one H200 holds the weights and as much KV again, and an engine is one GPU.",
        source="computed",
        max_num_seqs=256,
        moe_backend="marlin",
    ),
    Profile(
        name="latency",
        gpu="h200",
        reason="Fewer milliseconds per token for few users: four GPUs share each token's weights and arithmetic.",
        source=SHARDS,
        tensor=4,
        max_num_seqs=128,
        max_num_batched_tokens=4096,
        moe_backend="marlin",
    ),
    Profile(
        name="throughput",
        gpu="h200",
        reason="Most tokens per GPU for batch work: more sequences at once, so each token takes longer.",
        source="computed; steps of 8,192 tokens (ENG-55)",
        gpu_memory_utilization=0.92,
        max_num_seqs=512,
        moe_backend="marlin",
    ),
    Profile(
        name="dp8-ep",
        gpu="h200",
        reason="One copy of the experts for eight data ranks: more KV than the same GPUs hold as balanced engines; measure both.",
        source=EXPERTS,
        data=8,
        expert=True,
        moe_backend="marlin",
    ),
)

GPT_OSS_20B = (
    Profile(
        name="balanced",
        gpu="h100",
        reason="The default: one H100 holds it four times over.",
        source="docs.gpustack.ai/latest/performance-lab/gpt-oss-20b/h100: 19.1k total tokens/s at TP=1 (ShareGPT)",
        moe_backend="marlin",
    ),
    Profile(
        name="latency",
        gpu="h100",
        reason="Fewer milliseconds per token for few users.",
        source=SHARDS,
        tensor=2,
        max_num_seqs=128,
        max_num_batched_tokens=4096,
        moe_backend="marlin",
    ),
    Profile(
        name="throughput",
        gpu="h100",
        reason="Most tokens per GPU for batch work.",
        source="docs.gpustack.ai/latest/performance-lab/gpt-oss-20b/h100",
        max_num_seqs=1024,
        moe_backend="marlin",
    ),
    Profile(
        name="lora",
        gpu="h100",
        reason="Balanced with adapters: Marlin is the MXFP4 kernel whose adapters are right.",
        source="vllm issue 29539: Triton gave garbage",
        moe_backend="marlin",
        lora=True,
    ),
    Profile(
        name="balanced",
        gpu="h200",
        reason="The default, where there are only H200s.",
        source="computed",
        moe_backend="marlin",
    ),
)

#: Of the other models: one that fits, to start from.
OTHERS: Mapping[str, tuple[Profile, ...]] = {
    "qwen3-30b-a3b-instruct": (
        Profile(name="balanced", gpu="h100", reason="Weights and one full context on two GPUs.", source="computed", tensor=2),
        Profile(name="balanced", gpu="h200", reason="Weights and one full context on one GPU.", source="computed"),
    ),
    "qwen3-32b": (
        Profile(name="balanced", gpu="h100", reason="Weights and KV for a team on two GPUs.", source="computed", tensor=2),
        Profile(name="balanced", gpu="h200", reason="Weights and KV for a team on one GPU.", source="computed"),
    ),
    "llama-3.3-70b-instruct": (
        Profile(name="balanced", gpu="h100", reason="bf16 weights fill two GPUs; four leave room for KV.", source="computed", tensor=4),
        Profile(name="balanced", gpu="h200", reason="bf16 weights and KV on two GPUs.", source="computed", tensor=2),
    ),
    "deepseek-v3.1": (
        Profile(name="balanced", gpu="h200", reason="FP8 weights fill most of a node.", source="computed", tensor=8),
        Profile(
            name="dp16-ep",
            gpu="h200",
            reason="MLA's cache is whole on every tensor rank; data ranks each hold other requests.",
            source="computed",
            data=16,
            expert=True,
            max_num_batched_tokens=4096,
        ),
    ),
    "kimi-k2-instruct": (
        Profile(
            name="balanced",
            gpu="h200",
            reason="FP8 weights need two nodes: tensor ranks within a node, pipeline stages between them.",
            source="computed",
            tensor=8,
            pipeline=2,
        ),
    ),
}  # fmt: skip
