"""Plan: traffic and latency targets → a profile, engines and GPUs. Arithmetic only: computed or cited, never measured.

One engine is the roofline of `serving.budget.knee`: one step of all running requests takes `a + c·batch` seconds, and
prefill takes its share of the time. At `r` calls a second of `P` prompt tokens (those found in the prefix cache left
out) and `O` output tokens each:

* share of time spent on prompts  p = r·P / prefill rate
* running requests                b = r·O·(a + c·b) / (1 − p), Little's law, solved for b
* gap between tokens              ITL = (a + c·b) / (1 − p)
* time to the first token         the prompt beside the running requests, and a queue (M/D/1, its 95th percentile)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from serving.budget import budget, estimate, kv, refuse
from serving.budget.knee import KNEE_RATIO, prefill_tokens_per_s, step_s
from serving.budget.memory import architecture_of, context_of
from serving.budget.weights import GIB
from serving.catalog import GPUS, Knee, Model, Profile
from serving.errors import Refusal
from serving.operate.traffic import Traffic

#: Share of an engine's knee that is filled: `fill_ratio` of serving.engine.autoscale, which adds engines beyond it (a
#: test compares). The rest is headroom for what arrives within one start-up.
FILL = 0.79
#: How far the model of a replica was off on points it was not fitted to: means of absolute errors against vLLM on a CPU
#: (SCL-6; loadtest/scaling/measured). Not measured on these GPUs.
TTFT_ERROR = 0.09
ITL_ERROR = 0.20
#: Quantile of the queueing time: 95 % of the calls wait no longer.
QUANTILE = 0.95
#: Share of a GPU's memory for KV below which a profile is never chosen automatically.
THIN_KV = 0.10
#: More engines than any installation has; beyond it the input is wrong.
REPLICAS_MAX = 4096


class LatencyTarget(msgspec.Struct, frozen=True):
    """The promised latency, in seconds."""

    #: To the first token, for 95 of 100 calls.
    ttft_s: float
    #: Between two tokens, the mean of an answer.
    itl_s: float


class Load(msgspec.Struct, frozen=True):
    """One engine's latency and use at one rate of calls; computed."""

    requests_per_s: float
    running: float
    itl_s: float
    #: Longest pause of a running answer: one step with a full chunk of another request's prompt.
    longest_gap_s: float
    ttft_s: float
    ttft_p95_s: float
    kv_share: float
    prefill_share: float


class Engine(msgspec.Struct, frozen=True):
    """One engine's figures for this traffic; computed from the GPU's data sheet."""

    prefill_tokens_per_s: float
    #: Seconds of a step without running requests, and what each request adds.
    base_step_s: float
    per_request_s: float
    chunk_tokens: int
    data: int
    running_max: float
    #: Requests of these lengths that the KV cache holds at once.
    kv_requests: float
    knee: Knee


class Option(msgspec.Struct, frozen=True):
    """One profile, planned; or why it cannot be."""

    profile: str
    gpu: str
    gpus_per_engine: int
    #: None where no number of engines meets the target.
    replicas: int | None
    #: The same if the arithmetic is as far off as it was on a CPU, in either direction.
    replicas_low: int | None = None
    replicas_high: int | None = None
    load: Load | None = None
    idle: Load | None = None
    #: What decided the number.
    limit: str = ""
    #: Why it is not chosen automatically.
    by_choice_only: str = ""

    @property
    def gpus(self) -> int:
        return (self.replicas or 0) * self.gpus_per_engine


class Plan(msgspec.Struct, frozen=True):
    """What to install."""

    model: str
    traffic: Traffic
    slo: LatencyTarget
    chosen: Option
    reason: str
    options: tuple[Option, ...]
    engine: Engine
    #: Engines for the busiest minute, one more for one that fails, and enough to lose a whole node.
    replicas: int
    replicas_spare: int
    replicas_node_loss: int
    #: Engines at the mean rate: the least of a fleet that follows its load.
    replicas_mean: int
    nodes: int
    gpus_per_node: int


def engine_under(model: Model, profile: Profile, traffic: Traffic) -> Engine:
    """One engine under this traffic; raises Refusal where the catalogue lacks the facts."""
    memory, attention = budget(model, profile), architecture_of(model).attention
    context = round(traffic.prompt_tokens + traffic.output_tokens / 2)
    base = step_s(model, profile, 0, context)
    whole = round(traffic.prompt_tokens + traffic.output_tokens)
    fitting = memory.kv_gib * GIB / kv.request_bytes(attention, profile, whole) if attention else math.inf
    return Engine(
        prefill_tokens_per_s=prefill_tokens_per_s(model, profile),
        base_step_s=base,
        per_request_s=step_s(model, profile, 1, context) - base,
        chunk_tokens=profile.max_num_batched_tokens,
        data=profile.data,
        running_max=profile.max_num_seqs * KNEE_RATIO * profile.data,
        kv_requests=fitting * profile.data,
        knee=estimate(model, profile),
    )


def off_by(engine: Engine, steps: float, prompts: float) -> Engine:
    """The same engine with every step and every prompt taking this many times as long."""
    decode = engine.knee.decode_tokens_per_s / steps
    return msgspec.structs.replace(
        engine,
        prefill_tokens_per_s=engine.prefill_tokens_per_s / prompts,
        base_step_s=engine.base_step_s * steps,
        per_request_s=engine.per_request_s * steps,
        knee=engine.knee.model_copy(update={"decode_tokens_per_s": decode}),
    )


def load_at(engine: Engine, traffic: Traffic, rate: float) -> Load | None:
    """One engine at `rate` calls a second; None when it cannot keep up at all."""
    prompt = max(1.0, traffic.prompt_tokens * (1 - traffic.prefix_share))
    prefill = rate * prompt / engine.prefill_tokens_per_s
    if prefill >= 1:
        return None
    per_rank = rate * traffic.output_tokens / (1 - prefill) / engine.data
    if per_rank * engine.per_request_s >= 1:
        return None
    batch = per_rank * engine.base_step_s / (1 - per_rank * engine.per_request_s)
    step = engine.base_step_s + engine.per_request_s * batch
    # A prompt is computed in chunks, and each chunk shares its step with the running requests.
    alone = prompt / engine.prefill_tokens_per_s + math.ceil(prompt / engine.chunk_tokens) * step
    busy = rate * alone / engine.data
    if busy >= 1:
        return None
    return Load(
        requests_per_s=rate,
        running=batch * engine.data,
        itl_s=step / (1 - prefill),
        longest_gap_s=step + min(prompt, engine.chunk_tokens) / engine.prefill_tokens_per_s,
        ttft_s=alone + busy * alone / (2 * (1 - busy)),
        ttft_p95_s=alone + _queue_s(busy, alone),
        kv_share=batch * engine.data / engine.kv_requests,
        prefill_share=prefill,
    )


def _queue_s(busy: float, service_s: float) -> float:
    """The 95th percentile of the wait for a single server with equal jobs: the exponential tail of the waiting time."""
    if busy <= 1 - QUANTILE:
        return 0.0
    return service_s / (2 * (1 - busy)) * math.log(busy / (1 - QUANTILE))


def broken(engine: Engine, load: Load | None, traffic: Traffic, slo: LatencyTarget) -> str:
    """The first target or limit that an engine under this load misses; empty when it meets all."""
    if load is None:
        return "throughput"
    work = load.requests_per_s * (
        traffic.prompt_tokens * (1 - traffic.prefix_share) / engine.prefill_tokens_per_s
        + traffic.output_tokens / engine.knee.decode_tokens_per_s
    )
    limits = (
        ("gap between tokens", load.itl_s > slo.itl_s),
        ("time to first token", load.ttft_p95_s > slo.ttft_s),
        ("running requests", load.running > engine.running_max),
        ("KV cache", load.kv_share > engine.knee.kv_cache_ratio),
        ("fill", work > FILL),
    )
    return next((name for name, is_broken in limits if is_broken), "")


def replicas(engine: Engine, traffic: Traffic, slo: LatencyTarget, rate: float) -> tuple[int, str] | None:
    """The fewest engines that can share `rate`, and what one fewer would miss; None when no number meets the target."""
    if broken(engine, load_at(engine, traffic, 0.0), traffic, slo) or broken(
        engine, load_at(engine, traffic, rate / REPLICAS_MAX), traffic, slo
    ):
        return None
    low, high = 0, REPLICAS_MAX  # `high` meets the target, `low` does not.
    while high - low > 1:
        middle = (low + high) // 2
        if broken(engine, load_at(engine, traffic, rate / middle), traffic, slo):
            low = middle
        else:
            high = middle
    limit = broken(engine, load_at(engine, traffic, rate / low), traffic, slo) if low else "one engine is the least"
    return high, limit


def option(model: Model, profile: Profile, traffic: Traffic, slo: LatencyTarget, gpus_per_node: int = 8) -> Option:
    """One profile, planned for the busiest minute."""
    planned = Option(profile.name, profile.gpu, profile.gpus_per_engine, None)
    try:
        refuse(model, profile, gpus_per_node)
    except Refusal as refusal:
        return msgspec.structs.replace(planned, limit=str(refusal))
    if (whole := traffic.prompt_tokens + traffic.output_tokens) > context_of(model, profile):
        limit = f"{whole:,.0f} tokens exceed the context of {context_of(model, profile):,}"
        return msgspec.structs.replace(planned, limit=limit)
    engine = engine_under(model, profile, traffic)
    idle = load_at(engine, traffic, 0.0)
    found = replicas(engine, traffic, slo, traffic.peak_per_s)
    if found is None:
        limit = broken(engine, idle, traffic, slo) or "throughput"
        return msgspec.structs.replace(planned, limit=limit, idle=idle)
    count, limit = found
    better = replicas(off_by(engine, 1 / (1 + ITL_ERROR), 1 / (1 + TTFT_ERROR)), traffic, slo, traffic.peak_per_s)
    worse = replicas(off_by(engine, 1 + ITL_ERROR, 1 + TTFT_ERROR), traffic, slo, traffic.peak_per_s)
    return msgspec.structs.replace(
        planned,
        replicas=count,
        replicas_low=better[0] if better else None,
        replicas_high=worse[0] if worse else None,
        load=load_at(engine, traffic, traffic.peak_per_s / count),
        idle=idle,
        limit=limit,
        by_choice_only=_by_choice_only(model, profile),
    )


def _by_choice_only(model: Model, profile: Profile) -> str:
    if profile.lora:
        return "it keeps room for adapters"
    if profile.expert:
        return "communication between its ranks is not computed here: measure it"
    if budget(model, profile).kv_gib < THIN_KV * GPUS[profile.gpu].memory_gib:
        return f"under {THIN_KV:.0%} of each GPU is left for KV"
    return ""


def plan(
    model: Model,
    traffic: Traffic,
    slo: LatencyTarget,
    gpu: str | None = None,
    profile: str | None = None,
    gpus_per_node: int = 8,
) -> Plan:
    """The profile with the fewest GPUs that meets the target. Raises Refusal with the nearest where none does."""
    profiles = [it for it in model.profiles if gpu in (None, it.gpu)]
    if not profiles:
        model.profile(profile, gpu)  # Refuses, and lists those there are.
    options = tuple(option(model, it, traffic, slo, gpus_per_node) for it in profiles)
    chosen = _choose(model, options, profile, slo)
    engine = engine_under(model, _profile_of(model, chosen), traffic)
    mean = replicas(engine, traffic, slo, traffic.requests_per_s)
    count = chosen.replicas or 0
    per_node = max(1, gpus_per_node // chosen.gpus_per_engine)
    return Plan(
        model=model.name,
        traffic=traffic,
        slo=slo,
        chosen=chosen,
        reason=_reason(chosen, options, profile),
        options=options,
        engine=engine,
        replicas=count,
        replicas_spare=count + 1,
        replicas_node_loss=count + per_node,
        replicas_mean=mean[0] if mean else count,
        nodes=_nodes(count + 1, chosen.gpus_per_engine, gpus_per_node),
        gpus_per_node=gpus_per_node,
    )


def _profile_of(model: Model, chosen: Option) -> Profile:
    return model.profile(chosen.profile, chosen.gpu)


def _choose(model: Model, options: Sequence[Option], profile: str | None, slo: LatencyTarget) -> Option:
    named = [it for it in options if profile in (None, it.profile)]
    if not named:
        model.profile(profile)  # Refuses, and lists those there are.
    keeping = [it for it in named if it.replicas is not None and (profile or not it.by_choice_only)]
    if keeping:
        # Every plan includes one spare engine, which decides between profiles too. Ties go to the smaller engine (less
        # is lost with it), then to the catalogue's order, whose first is the default.
        return min(keeping, key=lambda it: (it.gpus + it.gpus_per_engine, it.gpus_per_engine))
    by_choice = [it for it in named if it.replicas is not None]
    if by_choice:
        nearest = min(by_choice, key=lambda it: it.gpus)
        raise Refusal(
            f"{model.name} meets it only with a profile that is never chosen automatically: --profile {nearest.profile} with"
            f" {nearest.replicas} engines of {nearest.gpus_per_engine} {nearest.gpu} ({nearest.by_choice_only})."
        )
    raise Refusal(_none_keeps(model, named, slo))


def _none_keeps(model: Model, options: Sequence[Option], slo: LatencyTarget) -> str:
    asked = f"{slo.ttft_s:g} s to the first token and {slo.itl_s * 1e3:g} ms between tokens"
    able = [(it, it.idle) for it in options if it.idle]
    if not able:
        return f"No profile of {model.name} can serve this: {options[0].limit.rstrip('.')}."
    nearest, idle = min(able, key=lambda it: max(it[1].itl_s / slo.itl_s, it[1].ttft_p95_s / slo.ttft_s))
    return (
        f"No profile of {model.name} meets {asked}. The nearest is {nearest.profile} on {nearest.gpus_per_engine}"
        f" {nearest.gpu}: {idle.ttft_p95_s:.2f} s and {idle.itl_s * 1e3:.1f} ms without other load (computed)."
    )


def _reason(chosen: Option, options: Sequence[Option], profile: str | None) -> str:
    if profile:
        return f"{profile} was asked for."
    others = [it for it in options if it.replicas is not None and not it.by_choice_only and it is not chosen]
    if not others:
        return "No other profile meets the target."
    nearest = min(others, key=lambda it: it.gpus + it.gpus_per_engine)
    return (
        f"The fewest GPUs with one engine to spare: {chosen.gpus + chosen.gpus_per_engine}, where {nearest.profile} on"
        f" {nearest.gpu} takes {nearest.gpus + nearest.gpus_per_engine}."
    )


def _nodes(engines: int, gpus: int, gpus_per_node: int) -> int:
    """Nodes for this many engines of `gpus` each; an engine that fits on one node is never split over two."""
    if gpus <= gpus_per_node:
        return math.ceil(engines / (gpus_per_node // gpus))
    return engines * math.ceil(gpus / gpus_per_node)
