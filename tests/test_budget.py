"""The budget is vLLM's arithmetic, agrees with the starts that others have published, and refuses in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.scaling.model import H100_TP2, STARTUP_S
from loadtest.scaling.policies import knee_of
from serving import catalog
from serving.budget import KERNELS, budget, estimate, kv, refuse, refuse_on_cpu, text, workspace
from serving.budget.weights import BYTES, GIB, local_experts, padded_widths
from serving.catalog import Attention, Model, Profile
from serving.errors import Refusal

README = Path(__file__).resolve().parent.parent / "deploy" / "README.md"
BIG = catalog.find("gpt-oss-120b")
BALANCED = BIG.profile("balanced", "h100")
#: The same without a kernel, for models with other experts or none.
PLAIN = BALANCED.model_copy(update={"moe_backend": "auto"})
PAIRS = [(model, profile) for model in catalog.MODELS.values() for profile in model.profiles]


def changed(profile: Profile = BALANCED, **knobs: object) -> Profile:
    return Profile.model_validate(profile.model_dump() | knobs)


def attention_of(model: Model) -> Attention:
    assert model.architecture is not None and model.architecture.attention is not None
    return model.architecture.attention


def vllm_config(profile: Profile, tokens: int) -> Any:
    """As much of vLLM's configuration as its cache specs ask."""
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=tokens),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        max_in_flight_tokens=kv.tokens_in_flight(profile),
    )


def specs(attention: Attention, profile: Profile) -> tuple[Any, Any]:
    """vLLM's own specs of a full and of a sliding layer on one rank, their pages of one size as vLLM makes them."""
    import torch
    from vllm.v1.core.kv_cache_utils import unify_kv_cache_spec_page_size
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec

    if attention.latent_dim is not None:
        mla = {"num_kv_heads": 1, "head_size": attention.latent_dim, "dtype": torch.bfloat16}
        return MLAAttentionSpec(block_size=kv.BLOCK_TOKENS, **mla), None
    heads = max(1, attention.kv_heads // profile.tensor)
    shape = {"num_kv_heads": heads, "head_size": attention.head_dim, "dtype": torch.bfloat16}
    is_small = profile.kv_cache_dtype == "fp8"
    full = FullAttentionSpec(block_size=kv.BLOCK_TOKENS, **shape | ({"dtype": torch.float8_e4m3fn} if is_small else {}))
    if not attention.sliding_layers:
        return full, None
    sliding = SlidingWindowSpec(block_size=kv.BLOCK_TOKENS, sliding_window=attention.window, **shape)
    unified: dict[str, Any] = unify_kv_cache_spec_page_size({"full": full, "sliding": sliding})
    return unified["full"], unified["sliding"]


SMALL = [
    (model, changed(profile, kv_cache_dtype="fp8")) for model, profile in PAIRS if not attention_of(model).latent_dim
]


@pytest.mark.parametrize("tokens", [1, 129, 8192, 40_000, 131_072])
@pytest.mark.parametrize(("model", "profile"), [*PAIRS, *SMALL], ids=lambda value: value.name)
def test_kv_is_what_vllms_specs_compute(model: Model, profile: Profile, tokens: int) -> None:
    """Full, sliding and MLA layers, replicated heads and tokens in flight: byte for byte vLLM's `max_memory_usage_bytes`."""
    attention = attention_of(model)
    full, sliding = specs(attention, profile)
    config = vllm_config(profile, tokens)
    layers = -(-attention.full_layers // profile.pipeline)

    assert kv.full_bytes(attention, profile, tokens) == layers * full.max_memory_usage_bytes(config)
    if sliding is not None:
        expected = attention.sliding_layers * sliding.max_memory_usage_bytes(config)
        assert kv.sliding_bytes(attention, profile, tokens) == expected


def test_kv_of_gpt_oss_is_as_published() -> None:
    """36 and 24 KiB a token; 293 MiB of sliding layers at 8,192 batched tokens, about 580 when planning ahead, which none does
    that guesses by repetition."""
    alone, ahead = changed(tensor=1, async_scheduling=False), changed(tensor=1)
    guessing = changed(tensor=1, speculation={"method": "ngram"})
    attention = attention_of(BIG)

    assert kv.bytes_per_token(attention, alone) == 36 * 1024
    assert kv.bytes_per_token(attention_of(catalog.find("gpt-oss-20b")), alone) == 24 * 1024
    assert kv.sliding_bytes(attention, alone, 131_072) / 2**20 == pytest.approx(293, abs=1)
    assert kv.sliding_bytes(attention, ahead, 131_072) / 2**20 == pytest.approx(580, abs=2)
    assert kv.sliding_bytes(attention, guessing, 131_072) == kv.sliding_bytes(attention, alone, 131_072)


def test_eight_bits_and_the_hosts_memory_hold_more() -> None:
    """Long contexts: twice as many requests of 128k, but for what sliding layers keep; 256 GiB hold 7.5 million tokens besides."""
    plain, small = budget(BIG, BALANCED), budget(BIG, changed(kv_cache_dtype="fp8"))

    assert small.kv_gib == plain.kv_gib and small.sliding_kv_bytes == plain.sliding_kv_bytes
    assert 1.7 * plain.requests_128k < small.requests_128k <= 2 * plain.requests_128k + 1
    on_hosts = budget(BIG, changed(kv_offloading_gib=128, data=2))
    assert on_hosts.host_kv_gib == 256 and on_hosts.host_kv_tokens == 256 * 2**20 // 36
    assert "256 GiB of /dev/shm" in text.page(BIG, changed(kv_offloading_gib=128, data=2))


def test_a_draft_model_takes_its_share() -> None:
    """Its weights on every rank, a layer more of KV for each token, sliding layers padded to as many, and guesses to sample."""
    guessing = changed(speculation={"method": "eagle3", "tokens": 3})
    plain, drafted = budget(BIG, BALANCED), budget(BIG, guessing)
    attention = attention_of(BIG)

    assert drafted.other_weights_gib - plain.other_weights_gib == pytest.approx(0.9e9 * 2 / 2 / GIB, abs=0.01)
    assert drafted.workspace_gib > plain.workspace_gib
    assert drafted.kv_bytes_per_token * 18 == plain.kv_bytes_per_token * 19
    assert [len(it.layer_names) for it in groups(attention, guessing)] == [18, 19]
    assert drafted.sliding_kv_bytes * 18 == plain.sliding_kv_bytes * 19, "vLLM pads the smaller group"
    assert budget(BIG, changed(speculation={"method": "ngram"})).kv_bytes_per_token == plain.kv_bytes_per_token


def groups(attention: Attention, profile: Profile) -> list[Any]:
    """How vLLM groups the layers of a model and its draft."""
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size

    full, sliding = specs(attention, profile)
    layers = {f"model.{index}": it for index, it in enumerate([sliding] * 18 + [full] * 18)} | {"draft.36": full}
    found: list[Any] = _get_kv_cache_groups_uniform_page_size(layers)
    return found


def test_one_h100_loads_what_was_measured() -> None:
    """gpt-oss-120b with Marlin at TP=1 took 65.97 GiB (vllm issue 23278)."""
    assert budget(BIG, BIG.profile("tight", "h100")).weights_gib == pytest.approx(65.97, abs=0.2)


@pytest.mark.parametrize(
    ("utilization", "batched", "free_gib"), [(0.90, 8192, -2.14), (0.95, 1024, 1.71)], ids=["23278", "27508"]
)
def test_free_kv_is_what_two_others_measured(utilization: float, batched: int, free_gib: float) -> None:
    """Both ran 1,024 sequences on one H100, when CUDA graphs did not yet come out of the share: within half a GiB."""
    profile = changed(tensor=1, gpu_memory_utilization=utilization, max_num_batched_tokens=batched, max_num_seqs=1024)
    memory = budget(BIG, profile)

    assert memory.kv_gib + workspace.CUDA_GRAPHS_GIB == pytest.approx(free_gib, abs=0.5)


@pytest.mark.parametrize(("tensor", "intermediate"), [(1, 2944), (2, 1536), (4, 768), (8, 384)])
def test_experts_are_padded_as_vllms_kernel_pads_them(tensor: int, intermediate: int) -> None:
    """Hidden 2,880 becomes 3,072, and the slice of 2,880 a multiple of 128: vLLM's own rounding for Marlin."""
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4

    assert BIG.architecture is not None and BIG.architecture.experts is not None
    ours = padded_widths(BIG.architecture, BIG.architecture.experts, changed(tensor=tensor))
    theirs = mxfp4.mxfp4_round_up_hidden_size_and_intermediate_size(
        mxfp4.Mxfp4MoeBackend.MARLIN, 2880, -(-2880 // tensor)
    )
    assert ours == theirs == (3072, intermediate)
    for kernel in KERNELS["mxfp4"]:
        for backend in mxfp4.map_mxfp4_backend(kernel):
            others = mxfp4.mxfp4_round_up_hidden_size_and_intermediate_size(backend, 2880, -(-2880 // tensor))
            assert others[0] <= ours[0] and others[1] <= ours[1], f"{kernel} pads more than the budget counts"


def test_data_ranks_spread_experts_and_copy_the_rest() -> None:
    """DP attention with EP: an eighth of the experts and all of the rest on each GPU."""
    one, eight = budget(BIG, changed(tensor=1)), budget(BIG, BIG.profile("dp8-ep", "h100"))

    assert eight.expert_weights_gib == pytest.approx(one.expert_weights_gib / 8, abs=0.01)
    assert eight.other_weights_gib == one.other_weights_gib


def test_one_copy_of_the_experts_leaves_more_kv() -> None:
    """What dp8-ep is for: more KV on eight GPUs than four balanced engines have on them."""
    assert budget(BIG, BIG.profile("dp8-ep", "h100")).kv_tokens > 4 * budget(BIG, BALANCED).kv_tokens


def test_ranks_together_hold_the_model() -> None:
    """bf16 and FP8 experts are not padded: what the ranks hold adds up to the parameters, however they are spread."""
    for name, profile in (
        ("llama-3.3-70b-instruct", changed(tensor=4)),
        ("qwen3-30b-a3b-instruct", changed(tensor=2, expert=True)),
        ("deepseek-v3.1", changed(tensor=8)),
    ):
        model = catalog.find(name)
        assert model.architecture is not None
        held_gib = budget(model, profile).weights_gib * profile.gpus_per_engine
        whole_gib = model.architecture.parameters * BYTES[model.architecture.format] / GIB
        assert held_gib == pytest.approx(whole_gib, rel=0.001), name


@pytest.mark.parametrize(("model", "profile"), PAIRS, ids=lambda value: value.name)
def test_every_profile_of_the_catalogue_holds(model: Model, profile: Profile) -> None:
    """What we offer is not refused, prefix routing included, and holds a request of the promised context."""
    refuse(model, profile, prefix_routing=True)
    memory = budget(model, profile)

    spent = memory.weights_gib + memory.adapters_gib + memory.workspace_gib + memory.kv_gib
    assert spent == pytest.approx(memory.usable_gib, abs=0.05)
    assert memory.kv_tokens >= memory.context_tokens
    assert memory.requests_8k >= 1


REFUSED = {
    "heads": (BIG, changed(tensor=3), r"64 attention heads, which 3 tensor ranks .*config/model\.py"),
    "kv heads": (BIG, changed(tensor=16), r"8 KV heads, which 16 tensor ranks .*models/gpt_oss\.py"),
    "no experts": (catalog.find("qwen3-32b"), changed(PLAIN, expert=True), r"no experts to spread.*config/model\.py"),
    "odd pods": (BIG, changed(tensor=4, pipeline=3), r"spreads 12 GPUs over pods of 8.*nnodes"),
    "weights": (BIG, changed(tensor=1, max_num_seqs=1024), r"does not fit 1 h100: 65\.9 GiB of weights.*vLLM 0\.32"),
    "kv": (BIG, changed(BIG.profile("tight", "h100"), max_num_seqs=512), r"one request of 131072 tokens needs 4\.6.*0\.32"),
    "context": (BIG, changed(context_tokens=200_000), r"promises 200000 tokens.*131072.*max_model_len"),
    "adapters": (BIG, changed(lora=True, moe_backend="triton_unfused"), r"need the kernel marlin.*garbage.*29539"),
    "adapters' start": (BIG, changed(lora=True, moe_backend="flashinfer_cutlass"), r"takes none.*0\.32.*supports_lora"),
    "kernel": (catalog.find("qwen3-30b-a3b-instruct"), changed(), r"no kernel marlin for the bf16 experts.*fused_moe/oracle"),
    "no kernel": (catalog.find("qwen3-32b"), changed(), r"no experts and profile balanced names a kernel"),
    "no limits": (catalog.find("deepseek-v3.1"), changed(lora=True, gpu="h200", tensor=8), "no adapter limits"),
    "latent": (catalog.find("deepseek-v3.1"), changed(PLAIN, kv_cache_dtype="fp8", gpu="h200", tensor=8), r"latent.*fp8_ds_mla"),
    "hosts": (BIG, changed(kv_offloading_gib=64, data=8), r"over 2 nodes keeps no KV.*shared_offload_region"),
    "lmcache": (BIG, changed(kv_offloading_gib=64, kv_offloading_backend="lmcache"), r"hybrid KV manager.*18 sliding.*supports_hma"),
    "no host": (BIG, changed(kv_offloading_backend="lmcache"), r"with lmcache, and none of it: set `kv_offloading_gib`"),
    "no draft": (catalog.find("qwen3-32b"), changed(PLAIN, speculation={"method": "eagle3"}), r"no draft model.*ngram"),
    "draft": (BIG, changed(speculation={"method": "eagle3"}, pipeline=2), r"reads three of its layers.*aux_hidden_states"),
    "gpu": (BIG, changed(gpu="abacus"), "no GPU called 'abacus'; known are h100, h200"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_sentence(case: str) -> None:
    """Before anything starts, with the figure that is wrong and where that is known from."""
    model, profile, sentence = REFUSED[case]

    with pytest.raises(Refusal, match=sentence) as refused:
        refuse(model, profile)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_ranks_that_fill_no_whole_nodes_are_refused() -> None:
    """Eight GPUs are two nodes of four, and no whole nodes of six."""
    eight = BIG.profile("dp8-ep", "h100")
    refuse(BIG, eight.override(gpus_per_node=4))
    with pytest.raises(Refusal, match=r"8 GPUs over pods of 6, which leaves one pod short.*config/parallel\.py"):
        refuse(BIG, eight.override(gpus_per_node=6))


def test_prefix_routing_needs_prefix_caching() -> None:
    """Routing by prefixes that no engine keeps would only unbalance the fleet; without routing, caching may be off."""
    profile = changed(prefix_caching=False)

    with pytest.raises(Refusal, match=r"prefix caching off.*vLLM 0\.32"):
        refuse(BIG, profile, prefix_routing=True)
    refuse(BIG, profile, prefix_routing=False)


def test_adapters_on_experts_are_refused_on_a_cpu() -> None:
    """They would kill the engine at its first request; a dense model's work there, as does the rest of gpt-oss."""
    tiny, dense = catalog.find("tiny-gpt-oss"), catalog.find("smollm2-135m-instruct")

    with pytest.raises(Refusal, match=r"on a CPU at the first request.*vLLM 0\.32"):
        refuse_on_cpu(tiny, changed(PLAIN, lora=True))
    with pytest.raises(Refusal, match=r"9 attention heads, which 2 tensor ranks"):
        refuse_on_cpu(dense, changed(PLAIN, tensor=2))
    for knob in ({"kv_cache_dtype": "fp8"}, {"kv_offloading_gib": 1}):
        with pytest.raises(Refusal, match=r"in the host's memory already"):
            refuse_on_cpu(tiny, changed(PLAIN, **knob))
    refuse_on_cpu(tiny, changed(PLAIN, tensor=2, expert=True))
    refuse_on_cpu(dense, changed(PLAIN, tensor=1, lora=True))
    refuse_on_cpu(dense, changed(PLAIN, tensor=1, speculation={"method": "ngram"}))
    with pytest.raises(Refusal, match="generates no tokens"):
        refuse_on_cpu(catalog.find("all-minilm-l6-v2"), changed(PLAIN, tensor=1, speculation={"method": "ngram"}))


def test_a_model_without_facts_is_refused() -> None:
    """What nothing is known of is not guessed."""
    with pytest.raises(Refusal, match="no architecture facts"):
        refuse(BIG.model_copy(update={"architecture": None}), BALANCED)


HANDLED = {
    "experts that do not divide": (BIG, changed(tensor=1, data=6, expert=True)),
    "more ranks than KV heads": (catalog.find("qwen3-30b-a3b-instruct"), changed(PLAIN, tensor=8)),
    "MLA on any number of ranks": (catalog.find("deepseek-v3.1"), changed(PLAIN, gpu="h200", tensor=16)),
    "adapters with the kernel left to vLLM": (BIG, changed(lora=True, moe_backend="auto")),
    "adapters with EP": (BIG, changed(tensor=4, lora=True, expert=True)),
    "pipeline stages across nodes": (BIG, changed(tensor=8, pipeline=2)),
    "data ranks of a dense model": (catalog.find("qwen3-32b"), changed(PLAIN, gpu="h200", data=2)),
}


@pytest.mark.parametrize("case", HANDLED)
def test_what_vllm_handles_is_not_refused(case: str) -> None:
    """vLLM 0.32 spreads remainders, copies heads and takes Marlin for adapters by itself: no reason to say no."""
    model, profile = HANDLED[case]

    refuse(model, profile)


def test_experts_that_do_not_divide_are_vllms_remainder() -> None:
    """128 experts over six ranks: the fullest holds 22, as in vLLM's own map."""
    from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

    assert BIG.architecture is not None and BIG.architecture.experts is not None
    fullest = max(determine_expert_map(6, rank, 128)[0] for rank in range(6))
    assert local_experts(BIG.architecture.experts, changed(tensor=1, data=6, expert=True)) == fullest == 22


def test_the_estimated_knee_is_that_of_the_judge() -> None:
    """The replica that autoscaling is judged with is this engine, but for its smaller chunk."""
    knee, judged = estimate(BIG, BALANCED), knee_of(H100_TP2, STARTUP_S, 2.0)

    assert knee.running_requests == pytest.approx(judged.running_requests, rel=0.02)
    assert knee.decode_tokens_per_s == pytest.approx(judged.decode_tokens_per_s, rel=0.02)
    assert knee.prefill_tokens_per_s == pytest.approx(judged.prefill_tokens_per_s, rel=0.2)
    assert knee.startup_s == pytest.approx(STARTUP_S, rel=0.25)


@pytest.mark.parametrize(("model", "profile"), PAIRS, ids=lambda value: value.name)
def test_every_profile_has_a_knee_within_its_limits(model: Model, profile: Profile) -> None:
    """No more requests than run at once, no more output than the same arithmetic could prefill."""
    knee = estimate(model, profile)

    assert 1 <= knee.running_requests <= budget(model, profile).batch_limit
    assert 0 < knee.decode_tokens_per_s < knee.prefill_tokens_per_s


def test_more_gpus_never_lower_the_knee() -> None:
    """Tensor ranks share weights and arithmetic, not what a layer costs; data ranks each bring a batch and share the experts."""
    for more in (changed(tensor=4), changed(tensor=2, data=2, expert=True)):
        for name in ("decode_tokens_per_s", "prefill_tokens_per_s"):
            ratio = getattr(estimate(BIG, more), name) / getattr(estimate(BIG, BALANCED), name)
            assert 1.25 < ratio < 2.7, (more.name, name, ratio)


def test_the_readme_holds_the_table_of_today() -> None:
    """deploy/README.md equals what is computed; `python -c` with text.with_table writes it anew."""
    document = README.read_text()

    assert text.with_table(document, BIG, catalog.find("gpt-oss-20b")) == document


def serving(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"SERVING_HOME": str(home)}
    command = [sys.executable, "-m", "serving", "models", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_prints_a_page_and_json(tmp_path: Path) -> None:
    """A person reads a page that says what is computed; a program reads the same figures."""
    page = serving("budget", "gpt-oss-120b", "--gpu", "h100", "--profile", "balanced", home=tmp_path)
    output = serving("budget", "gpt-oss-120b", "--json", home=tmp_path)
    answer = json.loads(output.stdout)

    assert page.returncode == 0 and "computed for vLLM 0.32" in page.stdout and "2 × H100-80GB" in page.stdout
    assert answer["profile"]["gpus_per_engine"] == 2
    assert answer["budget"]["kv_tokens"] == budget(BIG, BALANCED).kv_tokens
    assert answer["knee"].items() >= estimate(BIG, BALANCED).model_dump().items()
    assert "InferenceX" in answer["knee"]["source"]
    assert (
        "Its knee (computed" in page.stdout and f"{answer['knee']['prefill_tokens_per_s']:,.0f} tokens/s" in page.stdout
    )


def test_an_engine_over_nodes_says_what_its_knee_leaves_out(tmp_path: Path) -> None:
    """Eight GPUs in nodes of four are two pods; no measured run knows the network between them."""
    arguments = ["gpt-oss-120b", "--profile", "dp8-ep", "--gpus-per-node"]
    for per_node, spans in (("4", True), ("8", False)):
        page = serving("budget", *arguments, per_node, home=tmp_path).stdout
        assert ("2 × 4 GPUs" in page) is ("between its 2 nodes: not in these figures" in page) is spans


def test_the_command_refuses_with_exit_code_1(tmp_path: Path) -> None:
    """One sentence on standard error, and nothing on standard output."""
    for arguments in (["gpt-oss-120b", "--profile", "dp8-ep", "--gpus-per-node", "6"], ["smollm2-135m-instruct"]):
        result = serving("budget", *arguments, home=tmp_path)
        assert result.returncode == 1 and result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1


def test_the_list_names_every_model_and_where_it_runs(tmp_path: Path) -> None:
    """Local models and GPU models stand in one list, each with what it needs."""
    lines = serving("list", home=tmp_path).stdout.splitlines()

    assert {line.split()[0] for line in lines} == set(catalog.MODELS)
    assert any("hub openai/gpt-oss-120b" in line and "balanced on 2 × h100" in line for line in lines)
    assert any("smollm2" in line and line.endswith("CPU") for line in lines)
