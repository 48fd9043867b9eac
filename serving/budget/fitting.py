"""Fitting: the numbers of `serving.budget.speed` that come nearest to measured closed loops. Pure; no clock, no network.

`serving accept` refits THREE of them on the owner's GPUs from six short runs: what a layer costs, what a token's
arithmetic costs, and what every call costs besides. The others follow from the kernel and stay as they were fitted; with
another kernel the rate at which it reads experts is refitted too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import msgspec

from serving.budget.speed import ROUNDS, ClosedLoop, closed_loop, engine_speed
from serving.catalog import Model, MoeBackend, Profile, Speed

#: Refitted to an installation's own runs.
THREE = ("layer_us", "token_us", "first_token_ms")
#: Refitted besides where another kernel ran than the one that was fitted: it reads the experts at a rate of its own.
FOUR = (*THREE, "expert_tb_per_s")
#: Fitted to the runs that are published.
SIX = (*FOUR, "exchange_ns", "request_ns")
#: The fit's steps, coarse to fine.
FACTORS = (1.3, 1.1, 1.03, 1.01)
#: Weight of a run's TTFT beside its TPOT: it holds the chance of a short run.
TTFT_WEIGHT = 0.4


class Run(msgspec.Struct, frozen=True):
    """One measured closed loop of one engine: means over its calls."""

    model: Model
    profile: Profile
    concurrency: int
    prompt_tokens: float
    output_tokens: float
    ttft_s: float
    tpot_s: float
    #: Calls of each client, whose first came all at once; infinitely many where those were left out.
    rounds: float = ROUNDS

    @property
    def requests_per_s(self) -> float:
        return self.concurrency / (self.ttft_s + (self.output_tokens - 1) * self.tpot_s)


class Errors(msgspec.Struct, frozen=True):
    """(computed - measured) / measured."""

    ttft: float
    tpot: float
    requests: float


def computed(fitted: Speed, run: Run) -> ClosedLoop:
    """What the formula says of the same closed loop."""
    engine = engine_speed(run.model, run.profile, fitted)
    return closed_loop(engine, run.concurrency, run.prompt_tokens, run.output_tokens, run.rounds)


def errors(fitted: Speed, run: Run) -> Errors:
    found = computed(fitted, run)
    return Errors(
        found.ttft_s / run.ttft_s - 1, found.tpot_s / run.tpot_s - 1, found.requests_per_s / run.requests_per_s - 1
    )


def fit(runs: Sequence[Run], start: Speed, names: Sequence[str] = THREE) -> Speed:
    """`start` with the named numbers changed so that the runs are met best: each up or down for as long as that helps."""
    found, distance = start, _distance(runs, start)
    for factor in FACTORS:
        improved = True
        while improved:
            improved = False
            for beside in _beside(found, names, factor):
                if (nearer := _distance(runs, beside)) < distance - 1e-9:
                    found, distance, improved = beside, nearer, True
                    break
    return found


def _beside(fitted: Speed, names: Sequence[str], factor: float) -> list[Speed]:
    return [
        fitted.model_copy(update={name: getattr(fitted, name) * by}) for name in names for by in (factor, 1 / factor)
    ]


def _distance(runs: Sequence[Run], fitted: Speed) -> float:
    """How many times too long or too short, as logarithms: too much weighs as much as too little."""
    return sum(map(partial(_distance_of, fitted), runs))


def _distance_of(fitted: Speed, run: Run) -> float:
    found = computed(fitted, run)
    tpot, ttft = math.log(found.tpot_s / run.tpot_s), math.log(found.ttft_s / run.ttft_s)
    return tpot**2 + TTFT_WEIGHT**2 * ttft**2


def mean_error(values: Sequence[float]) -> float:
    """Mean of absolute errors."""
    return sum(map(abs, values)) / len(values)


def refit(runs: Sequence[Run], start: Speed, source: str, vllm_version: str, kernel: MoeBackend) -> Speed:
    """`start` refitted to an installation's own runs of one model with that kernel, and how far off it then is on them."""
    found = fit(runs, start, THREE if kernel == start.kernel else FOUR)
    off = [errors(found, run) for run in runs]
    return found.model_copy(
        update={
            "model": runs[0].model.name,
            "source": source,
            "kernel": kernel,
            "vllm_version": vllm_version,
            "ttft_error": round(mean_error([it.ttft for it in off]), 3),
            "tpot_error": round(mean_error([it.tpot for it in off]), 3),
            "worst_ttft_error": round(max(abs(it.ttft) for it in off), 3),
            "worst_tpot_error": round(max(abs(it.tpot) for it in off), 3),
        }
    )
