"""Others: models of other families, to start from. Architecture facts are those of each checkpoint's public config.json.

They have been budgeted and their flags parsed; none of them has been served by this package.
"""

from __future__ import annotations

from serving.catalog.profiles import OTHERS as PROFILES
from serving.catalog.shapes import Architecture, Attention, Experts, HubSource, LoraLimits, Model


def _dense(layers: int, heads: int, kv_heads: int, head_dim: int = 128) -> Attention:
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, full_layers=layers)


def _latent(layers: int, heads: int) -> Attention:
    """DeepSeek's MLA: 512 latent and 64 rotary elements per token and layer."""
    return Attention(heads=heads, kv_heads=1, head_dim=128, full_layers=layers, latent_dim=512 + 64)


OTHERS = (
    Model(
        name="qwen3-30b-a3b-instruct",
        summary="Qwen3-30B-A3B-Instruct-2507: a mixture of experts with 3 billion active parameters; it does not reason aloud.",
        source=HubSource(id="Qwen/Qwen3-30B-A3B-Instruct-2507"),
        context_tokens=262_144,
        default_output_tokens=8192,
        download_mib=58_240,
        disk_mib=58_240,
        license="Apache-2.0",
        tool_parser="hermes",
        architecture=Architecture(
            name="Qwen3MoeForCausalLM",
            parameters=30.5e9,
            active_parameters=3.3e9,
            hidden=2048,
            vocabulary=151_936,
            attention=_dense(layers=48, heads=32, kv_heads=4),
            experts=Experts(count=128, active=8, layers=48, intermediate=768, format="bf16"),
            source="huggingface.co/Qwen/Qwen3-30B-A3B-Instruct-2507 config.json",
        ),
        profiles=PROFILES["qwen3-30b-a3b-instruct"],
    ),
    Model(
        name="qwen3-32b",
        summary="Qwen3-32B: a dense model that reasons unless told not to.",
        source=HubSource(id="Qwen/Qwen3-32B"),
        context_tokens=40_960,
        default_output_tokens=8192,
        download_mib=62_500,
        disk_mib=62_500,
        license="Apache-2.0",
        tool_parser="hermes",
        reasoning_parser="qwen3",
        architecture=Architecture(
            name="Qwen3ForCausalLM",
            parameters=32.8e9,
            active_parameters=32.8e9,
            hidden=5120,
            vocabulary=151_936,
            attention=_dense(layers=64, heads=64, kv_heads=8),
            source="huggingface.co/Qwen/Qwen3-32B config.json",
        ),
        lora=LoraLimits(),
        profiles=PROFILES["qwen3-32b"],
    ),
    Model(
        name="llama-3.3-70b-instruct",
        summary="Llama-3.3-70B-Instruct: a dense model; its license asks for a sign-up at the hub.",
        source=HubSource(id="meta-llama/Llama-3.3-70B-Instruct"),
        context_tokens=131_072,
        default_output_tokens=8192,
        download_mib=134_600,
        disk_mib=134_600,
        license="llama3.3",
        tool_parser="llama3_json",
        architecture=Architecture(
            name="LlamaForCausalLM",
            parameters=70.55e9,
            active_parameters=70.55e9,
            hidden=8192,
            vocabulary=128_256,
            attention=_dense(layers=80, heads=64, kv_heads=8),
            source="huggingface.co/meta-llama/Llama-3.3-70B-Instruct config.json",
        ),
        lora=LoraLimits(),
        profiles=PROFILES["llama-3.3-70b-instruct"],
    ),
    Model(
        name="deepseek-v3.1",
        summary="DeepSeek-V3.1: 671 billion parameters, 37 billion active, FP8, for a node of H200s.",
        source=HubSource(id="deepseek-ai/DeepSeek-V3.1"),
        context_tokens=131_072,
        default_output_tokens=8192,
        download_mib=656_000,
        disk_mib=656_000,
        license="MIT",
        tool_parser="deepseek_v31",
        reasoning_parser="deepseek_v3",
        architecture=Architecture(
            name="DeepseekV3ForCausalLM",
            parameters=671e9,
            active_parameters=37e9,
            hidden=7168,
            vocabulary=129_280,
            format="fp8",
            attention=_latent(layers=61, heads=128),
            experts=Experts(count=256, active=8, layers=58, intermediate=2048, format="fp8"),
            source="github.com/deepseek-ai/DeepSeek-V3, inference/configs/config_671B.json",
        ),
        profiles=PROFILES["deepseek-v3.1"],
    ),
    Model(
        name="kimi-k2-instruct",
        summary="Kimi-K2-Instruct: a trillion parameters, 32 billion active, FP8, for two nodes of H200s.",
        source=HubSource(id="moonshotai/Kimi-K2-Instruct"),
        context_tokens=131_072,
        default_output_tokens=8192,
        download_mib=982_000,
        disk_mib=982_000,
        license="Modified MIT",
        tool_parser="kimi_k2",
        architecture=Architecture(
            name="DeepseekV3ForCausalLM",
            parameters=1.026e12,
            active_parameters=32e9,
            hidden=7168,
            vocabulary=163_840,
            format="fp8",
            attention=_latent(layers=61, heads=64),
            experts=Experts(count=384, active=8, layers=60, intermediate=2048, format="fp8"),
            source="huggingface.co/moonshotai/Kimi-K2-Instruct config.json",
        ),
        profiles=PROFILES["kimi-k2-instruct"],
    ),
)
