"""Findings: what an acceptance measures, and how each result is judged. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from serving.catalog import Model, Profile
from serving.operate import exposition
from serving.operate.checks import Answer, Check, no, yes
from serving.operate.measure import Greedy, MeasuredCall, Step

#: Changes when a key of the report changes in meaning.
SCHEMA = "gpt-oss-serving/acceptance/1"
#: Two tokens closer than this are a tie: engines sum over ranks in different orders (tests/long/test_parallel).
TIE_LOGPROB = 0.125
#: How far the measured KV cache may fall below the computed one, whose workspace is an estimate.
KV_TOLERANCE = 0.10


class Subject(msgspec.Struct, frozen=True):
    """A model under test, with its profile where the operator named one."""

    name: str
    model: Model | None = None
    profile: Profile | None = None


class Machine(msgspec.Struct, frozen=True):
    """A kind of node: how many there are, their GPUs and driver."""

    gpu_product: str
    gpus: int
    driver: str
    nodes: int


class Place(msgspec.Struct, frozen=True):
    """Where it was measured."""

    kubernetes: str = "unknown"
    machines: tuple[Machine, ...] = ()
    #: Names and digests or tags, without registries.
    images: tuple[str, ...] = ()
    client: str = ""
    serving: str = ""


class Equality(msgspec.Struct, frozen=True):
    """Greedy answers of two models, or of one asked twice, prompt by prompt."""

    first: str
    second: str
    #: Prompt number → `equal`, `tie at 7 (0.03)`, `differs at 7 (1.20)`, or an error.
    prompts: Mapping[int, str]


class Kv(msgspec.Struct, frozen=True):
    """Tokens of KV cache that an engine has, beside what was computed."""

    model: str
    measured_tokens: int
    computed_tokens: int | None


class Ladder(msgspec.Struct, frozen=True):
    """Throughput of one model over concurrency; measured here. The knee beside it is computed."""

    model: str
    profile: str
    prompt_words: int
    output_tokens: int
    steps: tuple[Step, ...]
    computed_decode_tokens_per_s: float | None = None


class Disruption(msgspec.Struct, frozen=True):
    """What happened to streams when an engine's pod was deleted."""

    kind: str
    engines_ready: int
    open_then: int
    failed: Mapping[str, int]
    #: Calls that began after the deletion, and how many of them failed.
    later_calls: int
    later_failed: int
    #: Seconds until as many engines were ready again; None: not within the bounds.
    whole_again_s: float | None


class Report(msgspec.Struct, frozen=True):
    """The report, fit to be shared. Every figure is measured here unless its key says `computed`."""

    schema: str
    label: str
    made_at: str
    place: Place
    checks: tuple[Check, ...]
    equality: tuple[Equality, ...]
    kv: tuple[Kv, ...]
    ladders: tuple[Ladder, ...]
    disruptions: tuple[Disruption, ...]
    #: Names of the checks whose steps did not finish; what they measured until then is included.
    not_run: tuple[str, ...] = ()


def counted(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {error}" for error, count in errors.items())


# --- (a) The same answers -----------------------------------------------------------------------------------------------


def equality_title(first: str, second: str) -> str:
    return f"{first} says the same twice" if first == second else f"{first} and {second} say the same"


def compare(first: Greedy, second: Greedy) -> str:
    """Where two greedy answers first differ, and whether that was a tie by the first answer's own log probabilities."""
    if first.error or second.error:
        return first.error or second.error
    if first.text == second.text and first.tokens == second.tokens:
        return "equal"
    pairs = zip(first.tokens, second.tokens, strict=False)
    position = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if position is None:
        return "differs in length"
    likeliest = first.likeliest[position] if position < len(first.likeliest) else {}
    left, right = likeliest.get(first.tokens[position]), likeliest.get(second.tokens[position])
    if left is None or right is None:
        return f"differs at {position}"
    gap = abs(left - right)
    return f"{'tie' if gap < TIE_LOGPROB else 'differs'} at {position} ({gap:.2f})"


def check_equality(found: Equality) -> Check:
    name = equality_title(found.first, found.second)
    results = Counter(result.split(" ")[0] for result in found.prompts.values())
    counted = ", ".join(f"{count} {result}" for result, count in results.items())
    if set(results) <= {"equal", "tie"}:
        return yes(name, f"Of {len(found.prompts)} greedy answers: {counted}.")
    if "differs" in results:
        return no(name, f"Of {len(found.prompts)} greedy answers: {counted}.")
    return Check(name, Answer.UNKNOWN, f"The answers did not come: {counted}.", "curl BASE_URL/v1/completions")


# --- (b) KV cache -------------------------------------------------------------------------------------------------------


def kv_title(model: str) -> str:
    return f"KV cache of {model}"


def kv_tokens(metrics: str) -> int | None:
    """Tokens of KV cache by an engine's own metrics, its data ranks together; raises ValueError."""
    ranks = [it for it in exposition.samples(metrics) if it.name == "vllm:cache_config_info"]
    tokens = [
        int(it.labels["kv_cache_size_tokens"]) for it in ranks if it.labels.get("kv_cache_size_tokens", "").isdigit()
    ]
    return sum(tokens) or None


def check_kv(found: Kv) -> Check:
    name, measured, computed = kv_title(found.model), found.measured_tokens, found.computed_tokens
    if computed is None:
        says = f"{measured:,} tokens; name a profile to compare: --model NAME=PROFILE."
        return Check(name, Answer.UNKNOWN, says)
    says = f"{measured:,} tokens measured, {computed:,} computed ({measured / computed - 1:+.0%})."
    return (yes if measured >= computed * (1 - KV_TOLERANCE) else no)(name, says)


# --- (c) Throughput -----------------------------------------------------------------------------------------------------


def ladder_title(model: str) -> str:
    return f"Load on {model}"


def said(step: Step) -> str:
    """A rung in one line, errors first."""
    failed = sum(step.errors.values())
    ttft = f"{step.ttft_s.p50:.3f} s" if step.ttft_s else "—"
    itl = f"{step.itl_s.p50 * 1e3:.1f} ms" if step.itl_s else "—"
    return f"{failed} of {step.calls} failed, {step.output_tokens_per_s:,.0f} output tokens/s, TTFT {ttft}, ITL {itl}"


def check_ladder(found: Ladder) -> Check:
    name = ladder_title(found.model)
    failed = Counter[str]()
    for step in found.steps:
        failed.update(step.errors)
    best = max(found.steps, key=lambda it: it.output_tokens_per_s)
    says = f"At most {best.output_tokens_per_s:,.0f} output tokens/s, with {best.concurrency} clients"
    if failed:
        return no(name, f"Calls failed: {counted(failed)}. {says}.", "serving status")
    return yes(name, f"{says}; no call failed.")


# --- (d) Drain and failover ---------------------------------------------------------------------------------------------


def disruption_title(kind: str) -> str:
    return f"An engine that {'leaves' if kind == 'drain' else 'dies'}"


def watched(
    kind: str, engines: int, outcomes: Sequence[MeasuredCall], gone_at: float, whole_at: float | None
) -> Disruption:
    """Sum up the calls around `gone_at`; calls that had ended before do not count."""
    then = [it for it in outcomes if it.started_at <= gone_at < it.ended_at]
    later = [it for it in outcomes if it.started_at > gone_at]
    return Disruption(
        kind=kind,
        engines_ready=engines,
        open_then=len(then),
        failed=dict(Counter(it.error for it in then if it.error)),
        later_calls=len(later),
        later_failed=sum(bool(it.error) for it in later),
        whole_again_s=None if whole_at is None else whole_at - gone_at,
    )


def check_disruption(found: Disruption) -> Check:
    """The promise: draining an engine fails no call; killing one fails only its own streams, each with an error event."""
    name = disruption_title(found.kind)
    failed = counted(found.failed) or "none"
    says = f"{found.open_then} streams were open and {failed} failed; of {found.later_calls} later calls {found.later_failed}"
    again = (
        "not whole again in time" if found.whole_again_s is None else f"whole again after {found.whole_again_s:.0f} s"
    )
    says = f"{says}; {again}."
    if found.whole_again_s is None:
        return no(name, says, "serving status")
    if found.engines_ready == 1 and (found.later_failed or found.failed):
        # No engine was left to take the calls: they wait, perhaps too long.
        return Check(name, Answer.UNKNOWN, f"{says} It was the only one: try with two.", "serving status")
    is_silent_cut = any("in the stream" not in error for error in found.failed)
    if found.later_failed or (found.kind == "drain" and found.failed) or is_silent_cut:
        return no(name, says, "serving status")
    return yes(name, says)
