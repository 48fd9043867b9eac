"""Sampled: a large fleet, of which one replica and one call in so many are simulated, each of them exactly.

Routing by committed tokens keeps the replicas of a large fleet alike, so a part of it with that part of the calls behaves
as the whole does. The policy decides for the whole: it is shown every simulated replica as often as it stands for. What
this leaves out: the sample's arrivals are noisier than the whole's, and its replicas come and go in steps of `weight`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec

from loadtest.scaling.columns import drawn
from loadtest.scaling.compiled import run
from loadtest.scaling.simulator import Policy, Settings, SimulationResult
from loadtest.scaling.traces import Shape, TracedCall
from serving.engine.autoscale import Demand, ReplicaSignal

#: Replicas that are simulated of a larger fleet, about.
SAMPLE = 40


class OfWhole:
    """A policy for the whole fleet, asked by a sample of it."""

    def __init__(self, whole: Policy, weight: int) -> None:
        self._whole, self._weight = whole, weight
        self.name, self.interval_s = whole.name, whole.interval_s

    def wanted(self, signals: list[ReplicaSignal], demand: Demand, now: float) -> int:
        """The sample's share, to the nearest replica, of what the whole should have."""
        every = [signal for signal in signals for _ in range(self._weight)]
        return max(1, round(self._whole.wanted(every, _times(demand, self._weight), now) / self._weight))


def _times(demand: Demand, weight: int) -> Demand:
    return msgspec.structs.replace(
        demand,
        waiting_requests=demand.waiting_requests * weight,
        waiting_prompt_tokens=demand.waiting_prompt_tokens * weight,
        arrived_prompt_tokens_per_s=demand.arrived_prompt_tokens_per_s * weight,
        expected_output_tokens_per_s=demand.expected_output_tokens_per_s * weight,
    )


def weight_of(replicas: int) -> int:
    """How many replicas each simulated one stands for: 1 up to twice the sample, and that is exact."""
    return max(1, round(replicas / SAMPLE)) if replicas > 2 * SAMPLE else 1


def fleet_day(
    source: list[TracedCall], shape: Shape, seed: int, policy: Policy, settings: Settings, weight: int
) -> SimulationResult:
    """A day of a whole fleet; `shape`, `policy` and `settings` are the whole's."""
    calls = drawn(source, replace(shape, top_rate=shape.top_rate / weight), seed)
    part = replace(
        settings,
        max_replicas=math.ceil(settings.max_replicas / weight),
        initial_replicas=max(1, round(settings.initial_replicas / weight)),
    )
    outcome = run(calls, OfWhole(policy, weight), part)
    counted = {
        name: getattr(outcome, name) * weight
        for name in ("arrived", "met", "ttft_missed", "itl_missed", "shed", "unfinished", "gpu_s", "most_replicas")
    }
    return replace(outcome, **counted)
