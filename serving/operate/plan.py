"""Plan: traffic and latency targets → a profile, engines and GPUs. Arithmetic only: computed, never measured here.

One engine is `serving.budget.speed`: a step of b running requests takes step(b), and a prompt adds A(b) to the steps that
run anyway. At `r` calls a second of `P` prompt tokens (those found in the prefix cache left out) and `O` output tokens
each, on each data rank:

* gap between tokens              ITL = step(b) / (1 − r·A(b))
* running requests                b = r·O·ITL, Little's law, solved for b
* time to the first token         what every call costs, two steps, the prompt, and a queue (M/D/1, its 95th percentile)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from serving.budget import budget, estimate, kv, refuse
from serving.budget.memory import architecture_of, context_of
from serving.budget.speed import STEPS_BEFORE, ClosedLoop, EngineSpeed, closed_loop, engine_speed
from serving.budget.weights import GIB
from serving.catalog import GPUS, Knee, Model, MoeBackend, Profile, Speed
from serving.errors import Refusal
from serving.operate.traffic import Traffic

#: Share of an engine's knee that is filled: `fill_ratio` of serving.engine.autoscale, which adds engines beyond it (a
#: test compares). The rest is headroom for what arrives within one start-up, and the only reserve.
FILL = 0.832
#: Repetitions in which the number of running requests settles, and what it may still move by then.
SETTLING, SETTLED = 1000, 1e-6
#: Quantile of the queueing time: 95 % of the calls wait no longer.
QUANTILE = 0.95
#: Share of a GPU's memory for KV below which a profile is never chosen automatically.
THIN_KV = 0.10
#: More engines than any installation has; beyond it the input is wrong.
REPLICAS_MAX = 4096
TOO_MANY = f"more than {REPLICAS_MAX:,} engines"


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
    """One engine's figures for this traffic; computed."""

    speed: EngineSpeed
    #: Prompt and output tokens of a running request, in the middle of its answer.
    context_tokens: float
    prefill_tokens_per_s: float
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
    #: The same if steps and first tokens are as far off as the worst of the measured runs, in either direction.
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
    #: The kernel that was measured, where the profile names another one: what `moe_backend` of the model has to be.
    moe_backend: MoeBackend | None


def kernel_beside(profile: Profile, fitted: Speed | None) -> MoeBackend | None:
    """The kernel that was measured, where `profile` names another one."""
    return fitted.kernel if fitted and fitted.kernel != profile.moe_backend else None


def with_kernel(profile: Profile, fitted: Speed | None) -> Profile:
    """`profile` with the kernel that was measured, so that a plan is of engines that can run it."""
    return profile.model_copy(update={"moe_backend": fitted.kernel}) if fitted else profile


def engine_under(
    model: Model, profile: Profile, traffic: Traffic, slo: LatencyTarget, fitted: Speed | None = None
) -> Engine:
    """One engine under this traffic; raises Refusal where the catalogue lacks the facts."""
    memory, attention = budget(model, profile), architecture_of(model).attention
    whole = round(traffic.prompt_tokens + traffic.output_tokens)
    fitting = memory.kv_gib * GIB / kv.request_bytes(attention, profile, whole) if attention else math.inf
    speed = engine_speed(model, profile, fitted)
    cached = traffic.prompt_tokens - _computed_tokens(traffic)
    knee = estimate(model, profile, fitted, slo.itl_s, traffic.prompt_tokens, traffic.output_tokens, cached)
    return Engine(
        speed=speed,
        context_tokens=traffic.prompt_tokens + traffic.output_tokens / 2,
        prefill_tokens_per_s=speed.prefill_tokens_per_s(_computed_tokens(traffic)),
        running_max=knee.running_requests,
        kv_requests=fitting * profile.data,
        knee=knee,
    )


def _computed_tokens(traffic: Traffic) -> float:
    """Tokens of a prompt that the prefix cache does not hold."""
    return max(1.0, traffic.prompt_tokens * (1 - traffic.prefix_share))


def off_by(engine: Engine, error: float) -> Engine:
    """The same engine with everything taking `1 + error` times as long, at the batch of the same knee."""
    speed = engine.speed.off_by(error)
    decode = engine.knee.decode_tokens_per_s / (1 + error)
    return msgspec.structs.replace(
        engine,
        speed=speed,
        prefill_tokens_per_s=engine.prefill_tokens_per_s / (1 + error),
        knee=engine.knee.model_copy(update={"decode_tokens_per_s": decode}),
    )


def load_at(engine: Engine, traffic: Traffic, rate: float) -> Load | None:
    """One engine at `rate` calls a second; None when it cannot keep up at all."""
    speed, prompt, each = engine.speed, _computed_tokens(traffic), rate / engine.speed.data
    batch = _running(engine, traffic, each)
    if batch is None:
        return None
    step_s, prompt_s = speed.step_s(batch, engine.context_tokens), speed.prompt_s(prompt, batch)
    busy = each * prompt_s
    alone = speed.first_token_s + STEPS_BEFORE * step_s + prompt_s
    return Load(
        requests_per_s=rate,
        running=batch * speed.data,
        itl_s=step_s / (1 - busy),
        longest_gap_s=step_s + speed.prompt_s(min(prompt, speed.chunk_tokens), batch),
        ttft_s=alone + busy * prompt_s / (2 * (1 - busy)),
        ttft_p95_s=alone + _queue_s(busy, prompt_s),
        kv_share=batch * speed.data / engine.kv_requests,
        prefill_share=busy,
    )


def _running(engine: Engine, traffic: Traffic, rate: float) -> float | None:
    """Requests that run on a data rank at `rate` calls a second, by Little's law; None if ever more would."""
    prompt, batch = _computed_tokens(traffic), 0.0
    for _ in range(SETTLING):
        busy = rate * engine.speed.prompt_s(prompt, batch)
        if busy >= 1:
            return None
        before, batch = (
            batch,
            rate * traffic.output_tokens * engine.speed.step_s(batch, engine.context_tokens) / (1 - busy),
        )
        if batch > SETTLING * engine.running_max:
            return None
        if abs(batch - before) <= SETTLED * batch:
            return batch
    return None


def _queue_s(busy: float, service_s: float) -> float:
    """The 95th percentile of the wait for a single server with equal jobs: the exponential tail of the waiting time."""
    if busy <= 1 - QUANTILE:
        return 0.0
    return service_s / (2 * (1 - busy)) * math.log(busy / (1 - QUANTILE))


def broken(engine: Engine, load: Load | None, traffic: Traffic, slo: LatencyTarget) -> str:
    """The first target or limit that an engine under this load misses; empty when it meets all."""
    if load is None:
        return "cannot keep up"
    work = load.requests_per_s * (
        _computed_tokens(traffic) / engine.prefill_tokens_per_s
        + traffic.output_tokens / engine.knee.decode_tokens_per_s
    )
    limits = (
        ("gap between tokens", load.itl_s > slo.itl_s),
        ("time to first token", load.ttft_p95_s > slo.ttft_s),
        ("running requests", load.running > engine.running_max),
        ("KV cache", load.kv_share > engine.knee.kv_cache_ratio),
        ("headroom", work > FILL),
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


def option(
    model: Model,
    profile: Profile,
    traffic: Traffic,
    slo: LatencyTarget,
    gpus_per_node: int = 8,
    fitted: Speed | None = None,
) -> Option:
    """One profile, planned for the busiest minute, as an installation with `engine.gpus_per_node` of this many has it."""
    profile = profile.override(gpus_per_node=gpus_per_node)
    planned = Option(profile.name, profile.gpu, profile.gpus_per_engine, None)
    try:
        refuse(model, with_kernel(profile, fitted))
    except Refusal as refusal:
        return msgspec.structs.replace(planned, limit=str(refusal))
    if (whole := traffic.prompt_tokens + traffic.output_tokens) > context_of(model, profile):
        limit = f"{whole:,.0f} tokens exceed the context of {context_of(model, profile):,}"
        return msgspec.structs.replace(planned, limit=limit)
    engine = engine_under(model, profile, traffic, slo, fitted)
    idle = load_at(engine, traffic, 0.0)
    found = replicas(engine, traffic, slo, traffic.peak_per_s)
    if found is None:
        limit = broken(engine, idle, traffic, slo) or TOO_MANY
        return msgspec.structs.replace(planned, limit=limit, idle=idle)
    count, limit = found
    better, worse = (_replicas_off(engine, traffic, slo, it) for it in (-1, 1))
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


def _replicas_off(engine: Engine, traffic: Traffic, slo: LatencyTarget, sign: int) -> tuple[int, str] | None:
    """The same with steps longer (`sign` 1) or shorter (-1) by the worst error of TPOT, and first tokens by that of TTFT."""
    fitted = engine.speed.fitted
    steps, first_token = ((1 + it) ** sign for it in (fitted.worst_tpot_error, fitted.worst_ttft_error))
    # First tokens are off by as much as steps already; the rest of their error is taken off the promise.
    promised = msgspec.structs.replace(slo, ttft_s=slo.ttft_s * steps / first_token)
    return replicas(off_by(engine, steps - 1), traffic, promised, traffic.peak_per_s)


def _by_choice_only(model: Model, profile: Profile) -> str:
    if profile.lora:
        return "it keeps room for adapters"
    if profile.nodes > 1:
        return f"each engine spans {profile.nodes} nodes, whose network is not computed here: measure it"
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
    fitted: Speed | None = None,
) -> Plan:
    """The profile with the fewest GPUs that meets the target. Raises Refusal with the nearest where none does."""
    profiles = [it for it in model.profiles if gpu in (None, it.gpu)]
    if not profiles:
        model.profile(profile, gpu)  # Refuses, and lists those there are.
    options = tuple(option(model, it, traffic, slo, gpus_per_node, fitted) for it in profiles)
    chosen = _choose(model, options, profile, slo)
    its_profile = model.profile(chosen.profile, chosen.gpu)
    engine = engine_under(model, its_profile, traffic, slo, fitted)
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
        moe_backend=kernel_beside(its_profile, fitted),
    )


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
        nearest = min(by_choice, key=lambda it: (it.gpus, it.gpus_per_engine))
        engines = "1 engine" if nearest.replicas == 1 else f"{nearest.replicas} engines"
        raise Refusal(
            f"{model.name} meets it only with a profile that is never chosen automatically: --profile {nearest.profile} with"
            f" {engines} of {nearest.gpus_per_engine} {nearest.gpu} ({nearest.by_choice_only})."
        )
    raise Refusal(_none_keeps(model, named, slo))


def _none_keeps(model: Model, options: Sequence[Option], slo: LatencyTarget) -> str:
    asked = f"{slo.ttft_s:g} s to the first token and {slo.itl_s * 1e3:g} ms between tokens"
    able = [(it, it.idle) for it in options if it.idle]
    if not able:
        return f"No profile of {model.name} can serve this: {options[0].limit.rstrip('.')}."
    if any(it.limit == TOO_MANY for it, _ in able):
        return f"{model.name} would take {TOO_MANY} for so many calls: are they right?"
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
    own, next_best = (it.gpus + it.gpus_per_engine for it in (chosen, nearest))
    beside = "takes as many" if own == next_best else f"takes {next_best}"
    return f"The fewest GPUs with one engine to spare: {own}; {nearest.profile} on {nearest.gpu} {beside}."


def _nodes(engines: int, gpus: int, gpus_per_node: int) -> int:
    """Nodes for this many engines of `gpus` each; an engine that fits on one node is never split over two."""
    if gpus <= gpus_per_node:
        return math.ceil(engines / (gpus_per_node // gpus))
    return engines * math.ceil(gpus / gpus_per_node)


class EnginePlan(msgspec.Struct, frozen=True):
    """One engine in a closed loop, beside which a published run can be laid; computed."""

    model: str
    gpu: str
    #: Of the engine, all ranks together.
    gpus: int
    tensor: int
    concurrency: int
    prompt_tokens: float
    output_tokens: float
    loop: ClosedLoop
    speed: EngineSpeed
    #: As in a Plan.
    moe_backend: MoeBackend | None


def one_engine(
    model: Model, profile: Profile, concurrency: int, prompt_tokens: float, output_tokens: float, fitted: Speed | None
) -> EnginePlan:
    """An engine of `profile` with this many clients that call again at once. Raises Refusal when they do not fit into it."""
    if (whole := prompt_tokens + output_tokens) > (context := context_of(model, profile)):
        raise Refusal(f"{whole:,.0f} tokens exceed the context of {context:,}.")
    tokens = round(whole)
    asked = with_kernel(profile, fitted).model_copy(update={"context_tokens": tokens})
    refuse(model, asked)
    attention = architecture_of(model).attention
    held = budget(model, asked).kv_gib * GIB / kv.request_bytes(attention, asked, tokens) if attention else math.inf
    if concurrency > held * asked.data:
        raise Refusal(
            f"{concurrency:,} requests of {tokens:,} tokens do not fit into the KV cache of {asked.gpus_per_engine} {asked.gpu}:"
            f" {int(held * asked.data):,} do."
        )
    if concurrency > (most := asked.max_num_seqs * asked.data):
        raise Refusal(
            f"{concurrency:,} clients are more than the {most:,} requests that an engine of profile {asked.name} runs at once."
        )
    speed = engine_speed(model, asked, fitted)
    loop = closed_loop(speed, concurrency, prompt_tokens, output_tokens)
    return EnginePlan(
        model=model.name,
        gpu=asked.gpu,
        gpus=asked.gpus_per_engine,
        tensor=asked.tensor,
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        loop=loop,
        speed=speed,
        moe_backend=kernel_beside(profile, fitted),
    )
