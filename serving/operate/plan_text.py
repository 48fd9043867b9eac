"""Plan, as text: the arithmetic for a person, the same as JSON, and a values file for the chart."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import yaml

from serving.budget.speed import errors_are
from serving.catalog import GPUS, Speed
from serving.config import EngineSettings
from serving.operate.plan import FILL, EnginePlan, Load, Option, Plan

#: What the arithmetic leaves out; printed with every plan.
ASSUMPTIONS = (
    "Calls arrive at random and spread evenly over engines; bursts within a minute are not included.",
    "Ranks of expert parallelism and stages of pipelines are computed as tensor ranks are, and were not measured.",
    "Headroom is for bursts shorter than a start-up and is taken once, in the number of engines; those to spare are for failures.",
    "The directory counts whole prompts: with a prefix share, a fleet that follows its load asks for more than this.",
)


def sources(plan: Plan | EnginePlan, fitted: Speed) -> tuple[str, ...]:
    """Where the figures come from, and how far they may be off; printed with every plan."""
    found = (
        f"Computed from step times {_measured(fitted)} (serving/budget/speed.py); nothing was measured here.",
        f"Their errors, {errors_are(fitted)}: TPOT {fitted.tpot_error:.0%} in the mean and {fitted.worst_tpot_error:.0%} at worst,"
        f" TTFT {fitted.ttft_error:.0%} and {fitted.worst_ttft_error:.0%}.",
    )
    if (kernel := plan.moe_backend) is None:
        return found
    return (
        *found,
        f"The kernel that was measured is not the profile's: for these figures set `moe_backend: {kernel}` of the model.",
    )


def _measured(fitted: Speed) -> str:
    return f"{fitted.source}; vLLM {fitted.vllm_version}, kernel {fitted.kernel}"


def _notes(plan: Plan) -> tuple[str, ...]:
    fitted = plan.engine.speed.fitted
    ranges = (
        f"The range of engines takes steps to be {fitted.worst_tpot_error:.0%} and first tokens {fitted.worst_ttft_error:.0%}"
        " longer or shorter, as far as the worst TPOT and TTFT were."
    )
    return (*sources(plan, fitted), ranges, *ASSUMPTIONS)


def page(plan: Plan) -> str:
    """What `serving plan` prints."""
    traffic, slo, chosen = plan.traffic, plan.slo, plan.chosen
    lines = [
        f"{plan.model}: {traffic.requests_per_s:.3g} calls/s ({traffic.peak_per_s:.3g} in the busiest minute),"
        f" {traffic.prompt_tokens:,.0f} prompt and {traffic.output_tokens:,.0f} output tokens, {traffic.prefix_share:.0%} of"
        f" prompts cached ({traffic.source}).",
        f"Promised: first token within {slo.ttft_s:g} s for 95 of 100, {slo.itl_s * 1e3:g} ms between tokens on average.",
        "",
        *_table(plan),
        "",
        f"Chosen: {chosen.profile} on {chosen.gpus_per_engine} × {GPUS[chosen.gpu].title}. {plan.reason}",
        *_arithmetic(plan),
        "",
        *_order(plan),
        "",
        *(f"* {it}" for it in _notes(plan)),
    ]
    return "\n".join(lines)


def _table(plan: Plan) -> list[str]:
    head = f"{'profile':14}{'GPUs each':>10}{'engines':>9}{'range':>11}{'GPUs':>7}{'ITL ms':>8}{'TTFT p95 s':>12}  one engine fewer would miss"
    return [f"{head} (all computed)", *(_row(it) for it in plan.options)]


def _row(it: Option) -> str:
    start = f"{it.profile:14}{f'{it.gpus_per_engine} {it.gpu}':>10}"
    if it.replicas is None or it.load is None:
        return f"{start}{'—':>9}{'':11}{'':7}{'':8}{'':12}  never: {it.limit}"
    spread = f"{it.replicas_low or '?'}–{it.replicas_high or '?'}"
    note = f"; by choice only: {it.by_choice_only}" if it.by_choice_only else ""
    return f"{start}{it.replicas:9}{spread:>11}{it.gpus:7}{it.load.itl_s * 1e3:8.1f}{it.load.ttft_p95_s:12.2f}  {it.limit}{note}"


def _arithmetic(plan: Plan) -> list[str]:
    traffic, engine, load = plan.traffic, plan.engine, plan.chosen.load
    if load is None:
        return []
    speed, batch = engine.speed, load.running / engine.speed.data
    prompt = traffic.prompt_tokens * (1 - traffic.prefix_share)
    step_s, prompt_s = speed.step_s(batch, engine.context_tokens), speed.prompt_s(prompt, batch)
    read_ms, each_ms = speed.experts_s * 1e3, (step_s - speed.base_s) * 1e3
    touched = 1 - (1 - speed.touched) ** load.running
    running = f"{load.running:.2g}" if load.running < 10 else f"{load.running:,.0f}"
    return [
        "Each engine in the busiest minute (computed):",
        f"  calls      {traffic.peak_per_s:.3g} / {plan.replicas} = {load.requests_per_s:.3g} a second",
        f"  a step     {speed.base_s * 1e3:.1f} ms whatever is in it + {touched:.0%} of {read_ms:.1f} ms for all experts +"
        f" {each_ms - touched * read_ms:.1f} ms for {running} requests = {step_s * 1e3:.1f} ms",
        f"  prompts    {load.requests_per_s:.3g} × {prompt:,.0f} tokens in {prompt_s * 1e3:.0f} ms each = {load.prefill_share:.0%} of its time",
        f"  ITL        {step_s * 1e3:.1f} ms / (1 − {load.prefill_share:.2f}) = {load.itl_s * 1e3:.1f} ms; {load.longest_gap_s * 1e3:.0f} ms"
        f" beside a whole chunk of a prompt",
        f"  TTFT       {load.ttft_s:.2f} s on average, {load.ttft_p95_s:.2f} s for 95 of 100",
        f"  running    {running} of {engine.running_max:,.0f} at its knee, the most that the promised gap, its batch and its KV"
        f" cache allow; KV cache {load.kv_share:.0%} full",
        f"  headroom   at most {FILL:.0%} of the work at its knee is planned for",
    ]


def _order(plan: Plan) -> list[str]:
    each = plan.chosen.gpus_per_engine
    rows = (
        ("at the mean rate", plan.replicas_mean),
        ("in the busiest minute", plan.replicas),
        ("with one engine to spare", plan.replicas_spare),
        (f"with one node of {plan.gpus_per_node} GPUs to spare", plan.replicas_node_loss),
    )
    lines = [f"  {name:32}{count:9}{count * each:6}" for name, count in rows]
    head = f"{'To order (computed):':34}{'engines':>9}{'GPUs':>6}"
    return [head, *lines, f"  nodes of {plan.gpus_per_node} GPUs, with one engine to spare: {plan.nodes}"]


def as_json(plan: Plan) -> str:
    """The same as one JSON object; every figure in it is computed."""
    return _json({"label": "computed", "plan": plan, "assumptions": _notes(plan)})


def engine_page(plan: EnginePlan) -> str:
    """What `serving plan --concurrency` prints."""
    loop, fitted = plan.loop, plan.speed.fitted
    return "\n".join(
        [
            f"{plan.model} on {plan.gpus} × {GPUS[plan.gpu].title}, {plan.concurrency} clients that call again at once,"
            f" {plan.prompt_tokens:,.0f} prompt and {plan.output_tokens:,.0f} output tokens (computed):",
            f"  TTFT       {loop.ttft_s * 1e3:.0f} ms in the mean of ten calls each, the beginning included",
            f"  TPOT       {loop.tpot_s * 1e3:.2f} ms",
            f"  calls      {loop.requests_per_s:.3g} a second",
            f"  output     {loop.requests_per_s * plan.output_tokens:,.0f} tokens a second",
            *(f"* {it}" for it in sources(plan, fitted)),
        ]
    )


def engine_as_json(plan: EnginePlan) -> str:
    """The same as one JSON object, with kernel, version and source beside the figures."""
    fitted, loop = plan.speed.fitted, plan.loop
    asked = {
        name: getattr(plan, name)
        for name in ("model", "gpu", "gpus", "tensor", "concurrency", "prompt_tokens", "output_tokens")
    }
    engine = {
        "ttft_s": loop.ttft_s,
        "tpot_s": loop.tpot_s,
        "requests_per_s": loop.requests_per_s,
        "kernel": fitted.kernel,
        "vllm_version": fitted.vllm_version,
        "source": fitted.source,
        "ttft_error": fitted.ttft_error,
        "tpot_error": fitted.tpot_error,
        "worst_ttft_error": fitted.worst_ttft_error,
        "worst_tpot_error": fitted.worst_tpot_error,
        "moe_backend": plan.moe_backend,
    }
    return _json({"label": "computed", **asked, "engine": engine, "assumptions": sources(plan, fitted)})


def _json(answer: Mapping[str, object]) -> str:
    plain = msgspec.to_builtins(answer, enc_hook=lambda shape: shape.model_dump(mode="json"))
    return msgspec.json.format(msgspec.json.encode(plain)).decode()


def values(plan: Plan) -> str:
    """Values for the chart: a fleet between the mean and the busiest minute with one engine to spare."""
    model = {
        "name": plan.model,
        "min_replicas": plan.replicas_mean + (1 if plan.replicas_mean == plan.replicas else 0),
        "max_replicas": plan.replicas_spare,
    }
    if plan.moe_backend:
        model["moe_backend"] = plan.moe_backend
    content: dict[str, object] = {"gpu": plan.chosen.gpu, "profile": plan.chosen.profile, "models": [model]}
    if plan.gpus_per_node != EngineSettings().gpus_per_node:
        content["engine"] = {"settings": {"gpus_per_node": plan.gpus_per_node}}
    head = (
        "# Written by `serving plan`: computed, not measured.\n"
        f"# Step times {_measured(plan.engine.speed.fitted)}.\n"
        f"# {plan.traffic.requests_per_s:.3g} calls/s, {plan.traffic.prompt_tokens:,.0f} + {plan.traffic.output_tokens:,.0f}"
        f" tokens, {plan.slo.ttft_s:g} s and {plan.slo.itl_s * 1e3:g} ms: {_size(plan.chosen, plan.chosen.load)}\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False)


def _size(chosen: Option, load: Load | None) -> str:
    found = "" if load is None else f", {load.itl_s * 1e3:.1f} ms between tokens"
    engines = "engine" if chosen.replicas == 1 else "engines"
    return f"{chosen.replicas} {engines} of {chosen.gpus_per_engine} {chosen.gpu}{found}."
