"""gpt-oss: what this package is for. Facts from OpenAI's model card and reference code (github.com/openai/gpt-oss)."""

from __future__ import annotations

from serving.catalog import profiles
from serving.catalog.shapes import Architecture, Attention, Experts, HubSource, LoraLimits, Model

_SOURCE = "OpenAI's model card and github.com/openai/gpt-oss; revision as pinned by public users of that checkpoint"


def _attention(layers: int) -> Attention:
    return Attention(
        heads=64,
        kv_heads=8,
        head_dim=64,
        full_layers=layers // 2,
        sliding_layers=layers // 2,
        window=128,
        # vLLM 0.32, models/gpt_oss.py: `num_key_value_heads // tp_size`, which is 0 above 8 ranks.
        replicates_kv_heads=False,
    )


GPT_OSS_120B = Model(
    name="gpt-oss-120b",
    summary="OpenAI's gpt-oss-120b: 117 billion parameters, 5 billion active, for H100s.",
    source=HubSource(id="openai/gpt-oss-120b", revision="b5c939de8f754692c1647ca79fbf85e8c1e70f8a"),
    context_tokens=131072,
    default_output_tokens=8192,
    download_mib=62_260,
    disk_mib=62_260,
    license="Apache-2.0",
    tool_parser="openai",
    reasoning_parser="openai_gptoss",
    architecture=Architecture(
        name="GptOssForCausalLM",
        parameters=116.83e9,
        active_parameters=5.13e9,
        hidden=2880,
        vocabulary=201_088,
        attention=_attention(layers=36),
        experts=Experts(count=128, active=4, layers=36, intermediate=2880, format="mxfp4"),
        source=_SOURCE,
    ),
    draft="gpt-oss-120b-eagle3",
    lora=LoraLimits(max_adapters=2, max_rank=16, max_cpu_adapters=16),
    profiles=profiles.GPT_OSS_120B,
)

GPT_OSS_20B = Model(
    name="gpt-oss-20b",
    summary="OpenAI's gpt-oss-20b: 21 billion parameters, 3.6 billion active, for one GPU.",
    source=HubSource(id="openai/gpt-oss-20b", revision="6cee5e81ee83917806bbde320786a8fb61efebee"),
    context_tokens=131072,
    default_output_tokens=8192,
    download_mib=13_110,
    disk_mib=13_110,
    license="Apache-2.0",
    tool_parser="openai",
    reasoning_parser="openai_gptoss",
    architecture=Architecture(
        name="GptOssForCausalLM",
        parameters=20.91e9,
        active_parameters=3.61e9,
        hidden=2880,
        vocabulary=201_088,
        attention=_attention(layers=24),
        experts=Experts(count=32, active=4, layers=24, intermediate=2880, format="mxfp4"),
        source=_SOURCE,
    ),
    draft="gpt-oss-20b-eagle3",
    lora=LoraLimits(max_adapters=4, max_rank=16, max_cpu_adapters=16),
    profiles=profiles.GPT_OSS_20B,
)


def _eagle3(size: str) -> Model:
    """Red Hat's EAGLE3 head: one layer of Llama's shape over three of the large model's. Its size is an upper bound: the
    published shape (draft vocabulary of 32,000, an embedding of its own) has 0.8e9 parameters."""
    return Model(
        name=f"gpt-oss-{size}-eagle3",
        summary=f"Guesses tokens for gpt-oss-{size}; it is no model to ask.",
        source=HubSource(id=f"RedHatAI/gpt-oss-{size}-speculator.eagle3"),
        context_tokens=131072,
        download_mib=1_720,
        disk_mib=1_720,
        license="Apache-2.0",
        sanity=None,
        architecture=Architecture(
            name="Eagle3Speculator",
            parameters=0.9e9,
            active_parameters=0.9e9,
            hidden=2880,
            vocabulary=201_088,
            attention=Attention(heads=64, kv_heads=8, head_dim=64, full_layers=1),
            source="huggingface.co: RedHatAI/gpt-oss-*-speculator.eagle3 (model cards), lmsys/EAGLE3-gpt-oss-120b-bf16 (0.9B)",
        ),
    )


EAGLE3 = (_eagle3("120b"), _eagle3("20b"))
