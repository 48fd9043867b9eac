"""A profile's flags are what the installed vLLM parses and its configuration accepts.

What a machine without a GPU cannot show: kernel choice, device capability, and the memory that is really left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from serving import catalog
from serving.budget import KERNELS, LORA_KERNELS, kv, placed
from serving.catalog import Architecture, Format, LoraLimits, Model, MoeBackend, Profile
from serving.config import EngineSettings, ModelSettings, Settings
from serving.engine import command, specs
from serving.engine.command import EngineSpec
from serving.engine.flags import tuning_flags
from serving.engine.specs import engine_spec
from serving.errors import Refusal
from serving.wire import Task

#: On the CPU one default profile stands for the local models, which have none of their own.
CPU = Profile(name="any", gpu="h100", reason="Flags alone.", source="this test")
PAIRS = [(model, profile) for model in catalog.MODELS.values() for profile in model.profiles or (CPU,)]
#: All but the encoder, whose configuration is another family's.
GENERATORS = [(model, profile) for model, profile in PAIRS if model.task is Task.GENERATE]
BIG = catalog.find("gpt-oss-120b")
BALANCED = BIG.profile("balanced", "h100")


def name(value: object) -> str:
    if isinstance(value, Profile):
        return f"{value.name}-{value.gpu}"
    return value.name if isinstance(value, Model) else str(value)


def parsed(line: list[str]) -> argparse.Namespace:
    """What `vllm serve` understands of a line."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments: argparse.Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(line)
    validate_parsed_serve_args(arguments)
    return arguments


def line(model: Model, profile: Profile, checkpoint: Path = Path("checkpoint")) -> list[str]:
    """What production starts an engine with, whatever the budget would say: nothing is refused of an unknown shape."""
    unknown = model.model_copy(update={"architecture": None, "profiles": (profile,)})
    settings = Settings(home=Path("/nowhere"), engine=EngineSettings(gpus_per_node=profile.gpus_per_node))
    wanted = ModelSettings(name=model.name, profile=profile.name)
    whole = command.arguments(engine_spec(unknown, wanted, checkpoint, settings, Path("secret")), 8000)
    return whole[whole.index("serve") + 1 :]


def config_json(model: Model, architecture: Architecture) -> dict[str, Any]:
    """A `config.json` of the architecture's shape, as far as vLLM's configuration reads it."""
    attention, experts = architecture.attention, architecture.experts
    assert attention is not None
    types = {
        "GptOssForCausalLM": "gpt_oss",
        "Qwen3MoeForCausalLM": "qwen3_moe",
        "Qwen3ForCausalLM": "qwen3",
        "LlamaForCausalLM": "llama",
        "DeepseekV3ForCausalLM": "deepseek_v3",
    }
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": types[architecture.name],
        "dtype": "bfloat16",
        "hidden_size": architecture.hidden,
        "vocab_size": architecture.vocabulary,
        "num_hidden_layers": attention.full_layers + attention.sliding_layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads if attention.latent_dim else attention.kv_heads,
        "max_position_embeddings": model.context_tokens,
    }
    if attention.latent_dim is None:
        config["head_dim"] = attention.head_dim
    if attention.sliding_layers:
        config["sliding_window"] = attention.window
    if experts is None:
        return config
    if experts.format == "mxfp4":
        config["quantization_config"] = {"quant_method": "mxfp4"}
    counts = {"num_local_experts": experts.count, "num_experts": experts.count, "n_routed_experts": experts.count}
    return config | counts | {"moe_intermediate_size": experts.intermediate, "num_experts_per_tok": experts.active}


def engine_config(model: Model, profile: Profile, folder: Path) -> Any:
    """vLLM's whole configuration, validated, for the CPU this runs on."""
    # A reasoning parser wants the vocabulary; its name is checked in test_command.
    return _configured(model, line(model.model_copy(update={"reasoning_parser": None}), profile, folder), folder)


def configured(model: Model, spec: EngineSpec, folder: Path) -> Any:
    """The same of a spec as production makes it."""
    without = msgspec.structs.replace(spec, reasoning_parser=None, checkpoint=str(folder))
    whole = command.arguments(without, 8000)
    return _configured(model, whole[whole.index("serve") + 1 :], folder)


def _configured(model: Model, words: list[str], folder: Path) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    assert model.architecture is not None
    (folder / "config.json").write_text(json.dumps(config_json(model, model.architecture)))
    arguments = parsed([*words, "--skip-tokenizer-init"])
    arguments.model = arguments.model_tag  # as `vllm serve` does
    return AsyncEngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)


@pytest.mark.parametrize(("model", "profile"), PAIRS, ids=name)
def test_vllm_parses_every_flag(model: Model, profile: Profile) -> None:
    """Each model under each profile: the parser takes the whole line, and understands it as it was meant."""
    arguments = parsed(line(model, profile))

    assert (arguments.tensor_parallel_size, arguments.pipeline_parallel_size) == (profile.tensor, profile.pipeline)
    assert (arguments.data_parallel_size, arguments.enable_expert_parallel) == (profile.data, profile.expert)
    assert arguments.max_model_len == model.context_tokens
    assert (arguments.max_num_seqs, arguments.max_num_batched_tokens) == (
        profile.max_num_seqs,
        profile.max_num_batched_tokens,
    )
    assert arguments.enable_prefix_caching is profile.prefix_caching
    assert arguments.async_scheduling is profile.async_scheduling
    assert (arguments.moe_backend, arguments.stream_interval) == (profile.moe_backend, 1)
    assert bool(arguments.enable_lora) is profile.lora
    assert arguments.tool_call_parser == model.tool_parser


@pytest.mark.parametrize(("model", "profile"), GENERATORS, ids=name)
def test_vllm_accepts_the_configuration(model: Model, profile: Profile, tmp_path: Path) -> None:
    """Each profile passes vLLM's own cross-checks: heads against ranks, experts against EP, adapters against slots."""
    config = engine_config(model, profile, tmp_path)

    assert config.parallel_config.world_size == profile.tensor * profile.pipeline
    assert config.parallel_config.enable_expert_parallel is profile.expert
    assert config.kernel_config.moe_backend == profile.moe_backend
    assert model.architecture is not None and model.architecture.attention is not None
    if model.architecture.attention.latent_dim is None:  # on a CPU vLLM turns prefix caching off for MLA
        assert config.cache_config.enable_prefix_caching is profile.prefix_caching
    assert (config.lora_config is not None) is profile.lora


@pytest.mark.parametrize(
    ("model", "profile"),
    [
        (BIG, BALANCED.override(tensor=1, data=6, expert=True)),
        (catalog.find("qwen3-30b-a3b-instruct"), BALANCED.override(tensor=8)),
        (BIG, BIG.profile("lora", "h100").override(tensor=4, expert=True)),
        (BIG, BALANCED.override(tensor=8, pipeline=2)),
        (catalog.find("qwen3-32b"), BALANCED.override(tensor=1, data=2)),
    ],
    ids=["uneven-experts", "more-ranks-than-kv-heads", "adapters-with-ep", "two-nodes", "dense-data-ranks"],
)
def test_what_we_do_not_refuse_vllm_accepts(model: Model, profile: Profile, tmp_path: Path) -> None:
    """serving.budget lets these pass because vLLM's own configuration does."""
    engine_config(model, profile, tmp_path)


def test_what_we_refuse_of_its_source_is_still_there() -> None:
    """gpt-oss's model class divides KV heads without copying them."""
    from vllm.model_executor.models import gpt_oss

    assert "config.num_key_value_heads // tp_size" in Path(gpt_oss.__file__).read_text()


def test_every_kernel_is_one_that_vllm_has_for_such_experts() -> None:
    """Of each format: what may be asked for is what vLLM maps to a kernel, with adapters where it takes them; it refuses the rest."""
    from vllm.model_executor.layers.fused_moe.oracle import fp8, mxfp4, unquantized

    oracles: dict[Format, tuple[Any, Any]] = {
        "mxfp4": (mxfp4.map_mxfp4_backend, mxfp4.backend_to_kernel_cls),
        "fp8": (fp8.map_fp8_backend, fp8.backend_to_kernel_cls),
        "bf16": (unquantized.map_unquantized_backend, unquantized.backend_to_kernel_cls),
    }
    for experts, (mapped, classes) in oracles.items():
        for kernel in set(get_args(MoeBackend)) - {"auto"}:
            if kernel not in KERNELS[experts]:
                with pytest.raises(ValueError, match="is not supported for"):
                    mapped(kernel)
                continue
            backends = mapped(kernel)
            takes = [it.supports_lora() for one in _listed(backends) for it in _listed(classes(one))]
            if kernel in LORA_KERNELS[experts]:
                assert all(takes), (experts, kernel)
            elif kernel != "triton_unfused":  # it takes them, and gave garbage
                assert not any(takes), (experts, kernel)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("kernel", sorted(KERNELS["mxfp4"]))
def test_a_kernel_of_the_settings_reaches_vllms_configuration(kernel: MoeBackend, tmp_path: Path) -> None:
    """`moe_backend` of a model is said to vLLM in its profile's place, which accepts it; with adapters all but Marlin are refused."""
    wanted = ModelSettings(name=BIG.name, profile="balanced", gpu="h100", moe_backend=kernel)
    placed_as = placed(BIG, wanted)
    assert placed_as is not None
    config = engine_config(BIG, placed_as, tmp_path)
    assert config.kernel_config.moe_backend == kernel

    with_room = wanted.model_copy(update={"lora": LoraLimits(max_adapters=1)})
    if kernel == "marlin":
        placed(BIG, with_room)
    else:
        with pytest.raises(Refusal, match="need the kernel marlin"):
            placed(BIG, with_room)


def test_eight_bits_of_kv_leave_sliding_layers_alone(tmp_path: Path) -> None:
    """vLLM takes `fp8` for the layers that see everything, and its configuration accepts it; without it nothing is skipped."""
    cache = engine_config(BIG, BALANCED.model_copy(update={"kv_cache_dtype": "fp8"}), tmp_path).cache_config
    assert (cache.cache_dtype, cache.kv_cache_dtype_skip_layers) == ("fp8", ["sliding_window"])
    cache = engine_config(BIG, BALANCED, tmp_path).cache_config
    assert (cache.cache_dtype, cache.kv_cache_dtype_skip_layers) == ("auto", [])


def test_kv_on_the_host_keeps_the_hybrid_manager(tmp_path: Path) -> None:
    """vLLM's own connector, with the bytes that were asked for, keeps sliding layers apart; LMCache's does not, and is refused."""
    import vllm
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    config = engine_config(BIG, BALANCED.model_copy(update={"kv_offloading_gib": 64}), tmp_path)
    assert config.kv_transfer_config.kv_connector_extra_config["cpu_bytes_to_use"] == 64 * 2**30
    assert KVConnectorFactory.supports_hma_config(config.kv_transfer_config)
    # It cannot be imported without LMCache's package.
    connectors = Path(vllm.__file__).parent / "distributed/kv_transfer/kv_connector/v1"
    assert "SupportsHMA" not in (connectors / "lmcache_mp_connector.py").read_text()


@pytest.mark.parametrize("name", ["gpt-oss-120b", "gpt-oss-20b"])
def test_a_draft_model_passes_vllms_configuration(name: str, tmp_path: Path) -> None:
    """EAGLE3 with a head of the published shape, from its own folder: vLLM checks it against the model, and takes three tokens."""
    model, draft = catalog.find(name), catalog.DRAFTS[f"{name}-eagle3"]
    home = tmp_path / "home"
    wanted = ModelSettings.model_validate(
        {"name": name, "profile": "balanced", "gpu": "h100", "speculation": {"method": "eagle3"}}
    )
    spec = engine_spec(model, wanted, tmp_path, Settings(home=home), Path("secret"))
    assert (
        spec.draft is not None
        and Path(spec.draft).parent == home / "models"
        and Path(spec.draft).name.startswith(draft.name)
    )
    Path(spec.draft).mkdir(parents=True)
    layer = {
        "model_type": "llama", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 1, "head_dim": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 201_088, "max_position_embeddings": 131_072,
    }  # fmt: skip
    proposal = {"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    speculators = {
        "algorithm": "eagle3", "default_proposal_method": "greedy", "proposal_methods": [proposal],
        "verifier": {"architectures": ["GptOssForCausalLM"], "name_or_path": f"openai/{name}"},
    }  # fmt: skip
    head = {
        "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", "draft_vocab_size": 32_000,
        "norm_before_residual": True, "transformer_layer_config": layer, "speculators_config": speculators,
    }  # fmt: skip
    (Path(spec.draft) / "config.json").write_text(json.dumps(head))
    config = configured(model, spec, tmp_path).speculative_config
    said = (config.method, config.num_speculative_tokens, config.draft_tensor_parallel_size)
    assert said == ("eagle3", 3, model.profile("balanced", "h100").tensor)


def test_guessing_by_repetition_needs_no_draft(tmp_path: Path) -> None:
    """The same setting on a CPU and on GPUs: vLLM's n-gram proposer, beside which no step is planned ahead."""
    for name, more in (("smollm2-135m-instruct", {}), ("gpt-oss-120b", {"profile": "balanced", "gpu": "h100"})):
        model = catalog.find(name)
        wanted = ModelSettings.model_validate({"name": name, "speculation": {"method": "ngram", "tokens": 2}} | more)
        spec = engine_spec(model, wanted, tmp_path, Settings(home=tmp_path), Path("secret"))
        said = configured(model, spec, tmp_path).speculative_config
        assert (said.method, said.num_speculative_tokens, spec.draft) == ("ngram", 2, None)


def test_experts_of_a_dense_model_are_vllms_refusal_too(tmp_path: Path) -> None:
    """vLLM turns down expert parallelism without experts, as we do."""
    with pytest.raises(ValueError, match=r"[Ee]xpert"):
        engine_config(catalog.find("qwen3-32b"), BALANCED.override(expert=True), tmp_path)


def test_tokens_in_flight_are_vllms(tmp_path: Path) -> None:
    """What sliding layers reserve for is vLLM's own count, with and without planning ahead."""
    for is_async in (True, False):
        profile = BALANCED.model_copy(update={"async_scheduling": is_async})
        config = engine_config(BIG, profile, tmp_path)
        config.scheduler_config.async_scheduling = is_async  # a CPU engine never plans ahead
        assert config.max_in_flight_tokens == kv.tokens_in_flight(profile)


def test_heads_that_do_not_divide_are_vllms_refusal_too(tmp_path: Path) -> None:
    """The check is alive: vLLM turns the same profile down that we do."""
    with pytest.raises(ValueError, match="must be divisible by tensor parallel size"):
        engine_config(BIG, BALANCED.override(tensor=3), tmp_path)


def test_tuning_flags_leave_the_rest_to_the_launcher() -> None:
    """The launcher says how an engine is divided and what its model is: neither is said twice."""
    launchers = {"parallel-size", "expert-parallel", "max-model-len", "parser", "api-server"}
    tuning = tuning_flags(BIG, BIG.profile("lora", "h100"))

    assert set(tuning) < set(line(BIG, BIG.profile("lora", "h100")))
    assert [flag for flag in tuning for word in launchers if word in flag] == []


def test_off_is_said_aloud() -> None:
    """vLLM's defaults are on for both; a profile without them says so."""
    profile = CPU.model_copy(update={"prefix_caching": False, "async_scheduling": False})
    assert {"--no-enable-prefix-caching", "--no-async-scheduling"} <= set(line(catalog.find("gpt-oss-20b"), profile))


def test_adapters_need_limits() -> None:
    """A profile that loads adapters of a model without limits is refused; with them the slots are vLLM's."""
    model, profile = catalog.find("gpt-oss-20b"), CPU.model_copy(update={"lora": True})
    arguments = parsed(line(model, profile))

    assert model.lora == LoraLimits(
        max_adapters=arguments.max_loras, max_rank=arguments.max_lora_rank, max_cpu_adapters=arguments.max_cpu_loras
    )
    with pytest.raises(Refusal, match="no adapter limits"):
        line(model.model_copy(update={"lora": None}), profile)


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_settings_give_any_profile_room_for_adapters(name: str, tmp_path: Path) -> None:
    """With `lora` in a model's settings its GPU engines keep exactly that room, and gpt-oss's experts use Marlin."""
    from vllm.model_executor.layers.fused_moe.experts.marlin_moe import MarlinExperts
    from vllm.model_executor.layers.fused_moe.oracle.mxfp4 import (
        Mxfp4MoeBackend,
        backend_to_kernel_cls,
        map_mxfp4_backend,
    )

    model, room = catalog.find(name), {"max_adapters": 1, "max_rank": 8, "max_cpu_adapters": 2}
    for profile in model.profiles:
        wanted = ModelSettings.model_validate({"name": name, "profile": profile.name, "gpu": profile.gpu, "lora": room})
        spec = specs.engine_spec(model, wanted, tmp_path, Settings(), tmp_path / "secret")
        arguments = parsed(["--model", "checkpoint", *spec.flags])
        limits = (arguments.max_loras, arguments.max_lora_rank, arguments.max_cpu_loras)
        assert (arguments.enable_lora, *limits) == (True, 1, 8, 2) and spec.lora == LoraLimits.model_validate(room)
        (chosen,) = map_mxfp4_backend(arguments.moe_backend)
        assert chosen is Mxfp4MoeBackend.MARLIN and backend_to_kernel_cls(chosen) == [MarlinExperts]


def test_the_embedding_model_pools() -> None:
    """An embedding model is run as one, whatever the profile."""
    assert parsed(line(catalog.find("all-minilm-l6-v2"), CPU)).runner == "pooling"
