"""`serving plan`: arithmetic that can be done by hand, promises that are kept, and a refusal where none can be."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from serving import catalog
from serving.budget.speed import MEASURED
from serving.cli import app
from serving.config import ModelSettings
from serving.engine.autoscale import TUNING
from serving.errors import Refusal
from serving.operate import plan_text
from serving.operate.plan import (
    FILL,
    Engine,
    LatencyTarget,
    Plan,
    broken,
    engine_under,
    load_at,
    off_by,
    option,
    plan,
    replicas,
)
from serving.operate.traffic import Traffic, read_trace
from serving.operate.values import read

MODEL = catalog.MODELS["gpt-oss-120b"]
BALANCED = MODEL.profile("balanced", "h100")
CHAT = Traffic(40.0, 1500.0, 400.0, prefix_share=0.3)
SLO = LatencyTarget(2.0, 0.05)
ARGUMENTS = [
    "plan",
    "--model",
    "gpt-oss-120b",
    "--requests-per-s",
    "40",
    "--prompt-tokens",
    "1500",
    "--output-tokens",
    "400",
]


def of(traffic: Traffic = CHAT) -> Engine:
    return engine_under(MODEL, BALANCED, traffic, SLO)


def test_little_and_the_step_agree() -> None:
    """Running requests are those that arrive while one is answered, and each step takes what the budget's formula says."""
    at = load_at(of(), CHAT, 4.0)
    assert at is not None
    assert at.running == pytest.approx(4.0 * 400 * at.itl_s, rel=1e-4)
    speed = of().speed
    share = 4.0 * speed.prompt_s(1500 * 0.7, at.running)
    assert at.itl_s == pytest.approx(speed.step_s(at.running, 1500 + 400 / 2) / (1 - share))


def test_more_load_is_never_better() -> None:
    """Gap, first token and KV only grow with the rate, until the engine cannot keep up at all."""
    rates = [0.0, 1.0, 4.0, 8.0, 12.0, 16.0]
    found = [load_at(of(), CHAT, rate) for rate in rates]
    served = [it for it in found if it]
    assert len(served) >= 4
    for earlier, later in pairwise(served):
        assert earlier.itl_s < later.itl_s and earlier.ttft_p95_s <= later.ttft_p95_s
    assert load_at(of(), CHAT, 1000.0) is None


def test_engines_keep_the_promise_and_one_fewer_would_not() -> None:
    """The number is the smallest: what it names as its limit is what one engine fewer breaks."""
    for slo in (SLO, LatencyTarget(2.0, 0.02), LatencyTarget(0.1, 0.05)):
        count, limit = replicas(of(), CHAT, slo, CHAT.peak_per_s) or (0, "")
        assert count > 1
        assert broken(of(), load_at(of(), CHAT, CHAT.peak_per_s / count), CHAT, slo) == ""
        assert broken(of(), load_at(of(), CHAT, CHAT.peak_per_s / (count - 1)), CHAT, slo) == limit != ""


@pytest.mark.parametrize(("prompt", "output"), [(200.0, 1000.0), (1500.0, 400.0), (8000.0, 50.0)])
def test_no_engine_is_filled_further_than_the_autoscaler_does(prompt: float, output: float) -> None:
    """With promises that anything keeps, the work of an engine is still at most its share of the knee."""
    traffic = Traffic(100.0, prompt, output)
    engine = of(traffic)
    count, _ = replicas(engine, traffic, LatencyTarget(1000.0, 10.0), 100.0) or (0, "")
    work = 100.0 * (prompt / engine.prefill_tokens_per_s + output / engine.knee.decode_tokens_per_s)
    assert work / count <= FILL


def test_a_cached_prefix_saves_engines_and_a_peak_costs_them() -> None:
    """What is in the prefix cache is not computed again; the busiest minute is what is bought for."""
    long = Traffic(40.0, 6000.0, 200.0)
    cached = Traffic(40.0, 6000.0, 200.0, prefix_share=0.8)
    peak = Traffic(40.0, 6000.0, 200.0, peak_ratio=2.0)
    counts = [option(MODEL, BALANCED, it, SLO).replicas for it in (cached, long, peak)]
    assert counts == sorted(counts) and len(set(counts)) == 3  # type: ignore[type-var]


def test_ranges_are_those_of_a_model_that_is_off() -> None:
    """An engine that is slower needs more of them, a faster one fewer: the range holds the number between."""
    found = option(
        MODEL, MODEL.profile("throughput", "h100"), Traffic(80.0, 1500.0, 400.0, 0.3), LatencyTarget(2.0, 0.03)
    )
    assert found.replicas_low is not None and found.replicas is not None and found.replicas_high is not None
    assert found.replicas_low <= found.replicas <= found.replicas_high
    assert found.replicas_low < found.replicas_high
    slow = off_by(of(), 0.2)
    assert slow.speed.step_s(30, 1700) == pytest.approx(1.2 * of().speed.step_s(30, 1700))
    assert slow.prefill_tokens_per_s == pytest.approx(of().prefill_tokens_per_s / 1.2)
    assert slow.knee.decode_tokens_per_s == pytest.approx(of().knee.decode_tokens_per_s / 1.2, rel=0.01)


@pytest.mark.parametrize(("worst_ttft_error", "is_met"), [(0.10, True), (0.25, False)])
def test_first_tokens_are_off_by_their_own_worst_error(worst_ttft_error: float, is_met: bool) -> None:
    """Steps 10 % longer keep a promise with 15 % to spare; a TTFT that is 25 % longer is beyond it with any number of engines."""
    fitted = MEASURED.model_copy(update={"worst_ttft_error": worst_ttft_error})
    idle = load_at(of(), CHAT, 0.0)
    assert idle is not None
    found = option(MODEL, BALANCED, CHAT, LatencyTarget(idle.ttft_p95_s * 1.15, 0.05), fitted=fitted)
    assert found.replicas is not None and (found.replicas_high is not None) == is_met


def test_the_fewest_gpus_win_with_one_engine_to_spare() -> None:
    """A small load takes the smallest engine, not the fastest, and of equals the catalogue's default; the reason names
    the next best."""
    made = plan(MODEL, Traffic(2.0, 1000.0, 200.0), SLO, "h100")
    assert (made.chosen.profile, made.replicas, made.replicas_spare) == ("balanced", 1, 2)
    assert made.replicas_node_loss == 1 + 4
    assert "GPUs" in made.reason


@pytest.mark.parametrize("name", ["tight", "lora", "dp8-ep"])
def test_some_profiles_are_taken_by_choice_only(name: str) -> None:
    """Little KV, room for adapters, ranks whose traffic is not computed: planned, shown, and chosen only by name."""
    traffic = Traffic(1.0, 1000.0, 200.0)
    made = plan(MODEL, traffic, SLO, "h100")
    (shown,) = (it for it in made.options if it.profile == name)
    assert shown.by_choice_only and made.chosen is not shown
    assert plan(MODEL, traffic, SLO, "h100", name).chosen.profile == name


def test_a_promise_nobody_can_keep_names_the_nearest() -> None:
    """The refusal says which profile comes nearest, and with what."""
    with pytest.raises(Refusal, match=r"No profile .* meets .* 1 ms .* The nearest is \S+ on 8 h100: .* ms"):
        plan(MODEL, CHAT, LatencyTarget(2.0, 0.001), "h100")
    with pytest.raises(Refusal, match="exceed the context of 131,072"):
        plan(MODEL, Traffic(1.0, 131_000.0, 400.0), SLO, "h100")
    with pytest.raises(Refusal, match="no GPU profile on a100; it has balanced on h100"):
        plan(MODEL, CHAT, SLO, "a100")
    for endless in (math.inf, 1e300):
        with pytest.raises(Refusal, match="more than 4,096 engines"):
            plan(MODEL, Traffic(endless, 1500.0, 400.0), SLO, "h100")


def test_an_engine_larger_than_a_node_is_taken_by_choice_only() -> None:
    """On nodes of four GPUs an engine of eight spans two, whose network no figure here knows; another one is chosen."""
    made = plan(MODEL, CHAT, SLO, "h100", gpus_per_node=4)
    (whole,) = (it for it in made.options if it.profile == "latency-tp8")
    assert whole.replicas and "spans 2 nodes" in whole.by_choice_only
    assert made.nodes == math.ceil(made.replicas_spare * made.chosen.gpus_per_engine / 4)
    with pytest.raises(Refusal, match=r"--profile tight with 2 engines of 1 h100 \(under 10%"):
        plan(MODEL, Traffic(10.0, 1000.0, 200.0), SLO, "h100", gpus_per_node=1)
    named = plan(MODEL, CHAT, SLO, "h100", "latency-tp8", gpus_per_node=4)
    assert named.nodes == 2 * named.replicas_spare and named.replicas_node_loss == named.replicas + 1


def test_ranks_that_fill_no_whole_nodes_are_refused() -> None:
    """As the engine plane would: eight GPUs are no whole pods of six."""
    made = plan(MODEL, CHAT, SLO, "h100", gpus_per_node=6)
    (uneven,) = (it for it in made.options if it.profile == "latency-tp8")
    assert uneven.replicas is None and "leaves one pod short" in uneven.limit


def test_an_engine_is_not_split_between_nodes() -> None:
    """A node of six GPUs holds one engine of four, whatever is left over."""
    made = plan(MODEL, CHAT, SLO, "h100", gpus_per_node=6, profile="latency")
    assert made.chosen.gpus_per_engine == 4 and made.nodes == made.replicas_spare


def test_an_engine_is_filled_as_far_as_the_autoscaler_fills_it() -> None:
    """A plan that filled engines further would be corrected by the directory at once."""
    assert TUNING.fill_ratio == FILL


def test_the_reserve_is_taken_once() -> None:
    """The knee is what the promised gap allows, and nothing less; what is kept free of it is `FILL`, and only that."""
    tight, loose = (engine_under(MODEL, BALANCED, CHAT, LatencyTarget(2.0, it)) for it in (0.015, 0.05))
    assert tight.running_max < loose.running_max == BALANCED.max_num_seqs
    count, limit = replicas(loose, CHAT, SLO, 400.0) or (0, "")
    at = load_at(loose, CHAT, 400.0 / count)
    assert limit == "headroom" and at is not None and at.running > 0.3 * loose.running_max


def page(made: Plan) -> str:
    return plan_text.page(made)


def test_the_arithmetic_is_shown_and_labelled() -> None:
    """Every block of figures says that it is computed; nothing claims to be measured by us."""
    text = page(plan(MODEL, CHAT, SLO, "h100"))
    for expected in ("(all computed)", "busiest minute (computed)", "To order (computed)", "nothing was measured here"):
        assert expected in text
    assert "ms / (1 − " in text
    measured = text.partition("* Computed from step times ")[2]
    for expected in ("InferenceX", "vLLM 0.18.0, kernel marlin", "runs kept out of the fit", "TTFT 7% and 25%"):
        assert expected in measured
    assert "steps to be 10% and first tokens 25% longer or shorter" in measured
    dense = page(plan(catalog.MODELS["qwen3-32b"], Traffic(1.0, 500.0, 100.0), SLO, "h100"))
    assert "step times assumed" in dense and "errors, assumed: TPOT 25%" in dense


def test_the_command_prints_json_and_a_values_file(tmp_path: Path) -> None:
    """The values are ones that preflight reads and settings take: as many engines as the plan says."""
    file = tmp_path / "values.yaml"
    result = CliRunner().invoke(app, [*ARGUMENTS, "--json", "--values-out", str(file)])
    answer = json.loads(result.stdout)
    assert answer["label"] == "computed"
    written = yaml.safe_load(file.read_text())
    (model,) = [ModelSettings.model_validate(it) for it in written["models"]]
    assert model.max_replicas == answer["plan"]["replicas_spare"]
    assert 1 <= model.min_replicas <= model.max_replicas
    (pods,) = read([file]).engine_pods
    assert (pods.model, pods.gpu, pods.most) == ("gpt-oss-120b", "h100", model.max_replicas)


def test_a_plan_for_other_nodes_is_installed_on_such(tmp_path: Path) -> None:
    """Else the chart would ask for pods of eight GPUs where a node has four."""
    file, settings = tmp_path / "values.yaml", tmp_path / "settings.yaml"
    settings.write_text("engine: {gpus_per_node: 4}\n")
    for more in ([*ARGUMENTS, "--gpus-per-node", "4"], ["--settings", str(settings), *ARGUMENTS]):
        result = CliRunner().invoke(app, [*more, "--profile", "latency-tp8", "--values-out", str(file)])
        assert "nodes of 4 GPUs" in result.stdout
        (pods,) = read([file]).engine_pods
        assert pods.gpus == 4 and pods.most % 2 == 0


def test_what_is_missing_is_asked_for() -> None:
    """Without traffic there is no plan."""
    result = CliRunner().invoke(app, ["plan", "--model", "gpt-oss-120b"])
    assert isinstance(result.exception, Refusal) and "--trace" in str(result.exception)


def test_a_trace_of_azures_form(tmp_path: Path) -> None:
    """Rate, lengths and the busiest minute over the mean, counted by hand."""
    rows = [f"2023-11-16 18:{minute:02}:00.0000000,100,20" for minute in (0, 1, 2, 2, 2, 4)]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    found = read_trace(trace)
    assert (found.requests_per_s, found.prompt_tokens, found.output_tokens) == (6 / 240, 100, 20)
    assert found.peak_ratio == pytest.approx((3 / 60) / (6 / 240))


def test_a_trace_of_mooncakes_form_knows_its_prefixes(tmp_path: Path) -> None:
    """Leading blocks that were seen before are shared; a block seen again behind a new one is not."""
    rows = [
        {"timestamp": 0, "input_length": 1024, "output_length": 10, "hash_ids": [1, 2]},
        {"timestamp": 30_000, "input_length": 1100, "output_length": 30, "hash_ids": [1, 2, 3]},
        {"timestamp": 60_000, "input_length": 1024, "output_length": 20, "hash_ids": [9, 2]},
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_trace(trace).prefix_share == pytest.approx(1024 / (1024 + 1100 + 1024))
    result = CliRunner().invoke(app, ["plan", "--model", "gpt-oss-20b", "--trace", str(trace), "--requests-per-s", "5"])
    assert "5 calls/s" in result.stdout and "33% of prompts cached" in result.stdout


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", '{"timestamp": 0}\n', "TIMESTAMP,ContextTokens,GeneratedTokens\n"]
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_trace_that_is_none_is_one_sentence(tmp_path: Path, content: str, suffix: str) -> None:
    """Whatever is in the file, a Refusal says what is expected."""
    trace = tmp_path / f"trace{suffix}"
    trace.write_text(content)
    with pytest.raises(Refusal, match="trace"):
        read_trace(trace)


@pytest.mark.parametrize(
    "row",
    [
        '{"timestamp": 0, "input_length": -5, "output_length": 5}',
        '{"timestamp": 0, "input_length": 0, "output_length": 5}',
        '{"timestamp": 0, "input_length": 5, "output_length": NaN}',
        '{"timestamp": Infinity, "input_length": 5, "output_length": 5}',
        f'{{"timestamp": 0, "input_length": {"9" * 400}, "output_length": 5}}',
        "[" * 100_000,
    ],
    ids=["negative", "empty", "no number", "never", "endless", "nested"],
)
def test_a_trace_of_calls_that_cannot_be_is_refused(tmp_path: Path, row: str) -> None:
    """A plan for minus five hundred tokens would be one for too few GPUs."""
    (tmp_path / "t.jsonl").write_text(f'{row}\n{{"timestamp": 1000, "input_length": 5, "output_length": 5}}\n')
    with pytest.raises(Refusal, match="is neither Azure's CSV"):
        read_trace(tmp_path / "t.jsonl")


def test_a_trace_in_no_order_is_read(tmp_path: Path) -> None:
    """Several gateways' logs, one after the other."""
    rows = [{"timestamp": at, "input_length": 5, "output_length": 5} for at in (2000, 0, 1000)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read_trace(tmp_path / "t.jsonl").requests_per_s == 1.5
