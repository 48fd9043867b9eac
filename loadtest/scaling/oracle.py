"""Oracle: the fewest replicas that keep the SLO, by perfect foresight and with the same start-up.

It knows the work of every slice of the day: prompts at the prefill rate and outputs at the knee's decode rate. A slice
needs that work divided by one fill ratio, rounded up; a replica is wanted from one start-up before it is needed. The
fill ratio and the slice are searched, by simulating them, for the fewest GPU-hours that keep the attainment. All its
freedom is spent: a fill above 1 misses calls on purpose as long as fewer than 1 % are missed. What it does not know is
which call comes when within a slice, nor where calls are routed; and its fill is one for the whole day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.scaling.columns import Calls
from loadtest.scaling.compiled import run
from loadtest.scaling.simulator import Settings, SimulationResult
from serving.catalog import Knee
from serving.engine.autoscale import Demand, ReplicaSignal

#: Seconds of one slice.
SLICES_S = (20.0, 60.0)
#: Seconds between two looks at the schedule.
INTERVAL_S = 5.0
#: The range of fill ratios, and its halvings: to 0.02.
LEAST_FILL, MOST_FILL = 0.7, 1.3
HALVINGS = 5


@dataclass(slots=True)
class Schedule:
    """Replicas wanted per slice, known beforehand."""

    replicas: Sequence[int]
    slice_s: float
    name: str = "oracle"
    interval_s: float = INTERVAL_S

    def wanted(self, signals: list[ReplicaSignal], demand: Demand, now: float) -> int:
        return self.replicas[min(len(self.replicas) - 1, int(now / self.slice_s))]


def work(calls: Calls, knee: Knee, slice_s: float) -> list[float]:
    """Work arriving per slice, in replicas: seconds of work a second."""
    work_s = calls.prompt_tokens / knee.prefill_tokens_per_s + calls.output_tokens / knee.decode_tokens_per_s
    found: list[float] = (np.bincount((calls.arrived_at / slice_s).astype(int), work_s) / slice_s).tolist()
    return found


def schedule(per_slice: Sequence[float], fill_ratio: float, slice_s: float, startup_s: float) -> Schedule:
    """The greatest need between a slice and one start-up later (and a decision's interval)."""
    needs = [max(1, math.ceil(value / fill_ratio)) for value in per_slice]
    ahead = math.ceil((startup_s + INTERVAL_S) / slice_s)
    return Schedule([max(needs[index : index + ahead + 1]) for index in range(len(needs))], slice_s)


def without_foresight(
    per_slice: Sequence[float], fill_ratio: float, slice_s: float, startup_s: float, name: str
) -> Schedule:
    """What can be had of an exact knowledge of the present: a slice's need is answered when the slice is over.

    Needs are held for one start-up, as we do. What it misses cannot be promised without knowing the future.
    """
    needs = [1, *(max(1, math.ceil(value / fill_ratio)) for value in per_slice)]
    held = math.ceil(startup_s / slice_s)
    return Schedule([max(needs[max(0, index - held) : index + 1]) for index in range(len(needs))], slice_s, name)


@dataclass(frozen=True, slots=True)
class Oracle:
    """The best schedule found."""

    outcome: SimulationResult
    fill_ratio: float
    slice_s: float
    initial_replicas: int


def best(calls: Calls, knee: Knee, settings: Settings, attainment: float) -> Oracle:
    """The schedule with the fewest GPU-seconds among those that keep `attainment`."""
    found: Oracle | None = None
    for slice_s in SLICES_S:
        found = _best_of_slice(calls, knee, settings, attainment, slice_s, found)
    if found is None:
        raise ValueError(f"No schedule with a fill ratio above {LEAST_FILL} keeps an attainment of {attainment:.1%}.")
    return found


def _best_of_slice(
    calls: Calls, knee: Knee, settings: Settings, attainment: float, slice_s: float, known: Oracle | None
) -> Oracle | None:
    """The best schedule of this slice, or the `known` one; what cannot be better than that is not simulated."""
    per_slice = work(calls, knee, slice_s)
    enough, too_much = LEAST_FILL, MOST_FILL
    missed_at_most = (1 - attainment) * len(calls.arrived_at)
    for _ in range(HALVINGS):
        fill_ratio = (enough + too_much) / 2
        plan = schedule(per_slice, fill_ratio, slice_s, settings.startup_s)
        least_gpu_s = sum(plan.replicas) * slice_s * settings.model.gpus
        if known and least_gpu_s > 1.02 * known.outcome.gpu_s:  # Draining replicas and the day's last slice: under 2 %.
            enough = fill_ratio
            continue
        outcome = run(calls, plan, replace(settings, initial_replicas=plan.replicas[0]), missed_at_most)
        if outcome.missed <= missed_at_most and outcome.attainment >= attainment:
            enough = fill_ratio
            if known is None or outcome.gpu_s < known.outcome.gpu_s:
                known = Oracle(outcome, fill_ratio, slice_s, plan.replicas[0])
        else:
            too_much = fill_ratio
    return known
