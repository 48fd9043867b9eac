"""The judge: attainment and GPU-hours of every policy, on days made of real traces, beside the oracle.

    python -m loadtest.scaling --traces DIR [--seeds 3] [--hours 24] [--startup-s 120] [--only Azure]
    python -m loadtest.scaling --traces DIR --gpus 10000 [--requests-per-s 45000]
    python -m loadtest.scaling --traces DIR --errors [--hours 6]

The second simulates a day of a fleet of so many GPUs under our policy; the third says how far its samples are off.

Tuned on Azure's trace with seeds 1, 2 and 11 to 13 and Mooncake's with 1, 11 and 12; SCL-9 says what was seen of the others. The world itself
(SLOs, chunk size) was set after a look at seed 1 of both traces. A day takes half a minute on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from loadtest.scaling import oracle, sampled
from loadtest.scaling.columns import Calls, columns
from loadtest.scaling.compiled import run
from loadtest.scaling.model import H100_TP2, STARTUP_S, SimulatedSlo
from loadtest.scaling.policies import Hpa, Ours, ServeDefault, knee_of
from loadtest.scaling.simulator import Policy, Settings, SimulationResult
from loadtest.scaling.traces import AZURE, MOONCAKE, STEEP, Shape, TracedCall, read_azure, read_mooncake, stretch
from serving.engine.autoscale import TUNING, Bounds

#: Share of calls inside their SLO that everyone is asked for.
TARGET = 0.99
MAX_REPLICAS = 30
#: Requests per replica of H100_TP2: of 8 to 96, in steps of 4 near it, the cheapest that kept 99 % on Azure, seed 1.
#: (Serve ships with 2, which asks for every replica there is.)
SERVE_TARGET = 20.0
HPA_TARGET = 68.0
#: Replicas that our policy asks for at most on days with a workload's `top_rate`.
REPLICAS_AT_TOP = 17
#: What the names of days end with whose bursts rise faster than a replica starts.
STEEP_DAY = ", steep bursts"
#: Seconds over which the policy without foresight, but without noise either, knows the present.
NOW_S = 20.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A source and how it is stretched: about 12 replicas at the top of the day, 3.5 at night."""

    source: str
    thinning: int
    top_rate: float
    slo: SimulatedSlo


AZURE_DAY = Workload(AZURE, thinning=8, top_rate=17.0, slo=SimulatedSlo(ttft_s=2.0))
#: Ten times longer prompts: one of 126k tokens alone keeps a replica 4 s. This limit is assumed.
MOONCAKE_DAY = Workload(MOONCAKE, thinning=1, top_rate=17.0, slo=SimulatedSlo(ttft_s=5.0))


@dataclass(frozen=True, slots=True)
class Case:
    """One day to judge."""

    name: str
    workload: Workload
    shape: Shape
    seed: int


def cases(seeds: int, hours: float) -> Iterator[Case]:
    shape = Shape(top_rate=AZURE_DAY.top_rate, day_s=3600 * hours, bursts_per_day=hours / 2)
    steep = replace(shape, height=STEEP["height"], rise_s=STEEP["rise_s"])
    for seed in range(1, seeds + 1):
        yield Case(f"Azure {seed} (tuning)", AZURE_DAY, shape, seed)
    for seed in range(101, 101 + seeds):
        yield Case(f"Azure {seed}", AZURE_DAY, shape, seed)
    for seed in range(1, seeds + 1):
        yield Case(f"Mooncake {seed}", MOONCAKE_DAY, replace(shape, top_rate=MOONCAKE_DAY.top_rate), seed)
    yield Case(f"Azure 1{STEEP_DAY}", AZURE_DAY, steep, 1)
    yield Case(f"Mooncake 1{STEEP_DAY}", MOONCAKE_DAY, replace(steep, top_rate=MOONCAKE_DAY.top_rate), 1)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy on one day."""

    case: str
    policy: str
    outcome: SimulationResult
    oracle_gpu_s: float

    @property
    def ratio(self) -> float:
        return self.outcome.gpu_s / self.oracle_gpu_s

    def __str__(self) -> str:
        outcome = self.outcome
        return (
            f"{self.case:26}{self.policy:22}{outcome.attainment:9.2%}{outcome.gpu_s / 3600:10.0f}{self.ratio:9.2f}"
            f"{outcome.changes:9}{outcome.ttft_missed:10}{outcome.itl_missed:9}{outcome.shed:9}"
        )


HEADER = (
    f"{'day':26}{'policy':22}{'inside':>9}{'GPU-hours':>10}{'/oracle':>9}{'changes':>9}"
    f"{'late TTFT':>10}{'slow ITL':>9}{'shed':>9}"
)


def judge(calls: Calls, case: Case, startup_s: float) -> Iterator[Row]:
    """The oracle first: what everyone is compared with, and the number of replicas everyone begins with."""
    workload = case.workload
    model = H100_TP2.thinned(workload.thinning)
    knee = knee_of(model, startup_s, workload.slo.ttft_s, workload.slo.itl_s)
    settings = Settings(model, workload.slo, startup_s, MAX_REPLICAS)
    ideal = oracle.best(calls, knee, settings, TARGET)
    yield Row(case.name, "oracle", ideal.outcome, ideal.outcome.gpu_s)
    settings = replace(settings, initial_replicas=ideal.initial_replicas)
    per_slice = oracle.work(calls, knee, NOW_S)
    policies: tuple[Policy, ...] = (
        Ours(knee, Bounds(1, MAX_REPLICAS)),
        oracle.without_foresight(per_slice, TUNING.fill_ratio, NOW_S, startup_s, "exact, no foresight"),
        ServeDefault(SERVE_TARGET / workload.thinning, name=f"Serve, target {SERVE_TARGET:.0f}"),
        Hpa(HPA_TARGET / workload.thinning, name=f"HPA, target {HPA_TARGET:.0f}"),
    )
    for policy in policies:
        yield Row(case.name, policy.name, run(calls, policy, settings), ideal.outcome.gpu_s)


def totals(rows: list[Row]) -> Iterator[str]:
    """Every policy over all days but those with steep bursts: calls inside of all calls, GPU-hours over all of the oracle's."""
    ordinary = [row for row in rows if not row.case.endswith(STEEP_DAY)]
    for name in dict.fromkeys(row.policy for row in ordinary):
        of_policy = [row for row in ordinary if row.policy == name]
        known = sum(row.outcome.finished + row.outcome.shed for row in of_policy)
        inside = sum(row.outcome.met for row in of_policy) / known
        ratio = sum(row.outcome.gpu_s for row in of_policy) / sum(row.oracle_gpu_s for row in of_policy)
        changes = sum(row.outcome.changes for row in of_policy)
        yield f"{'all, without steep bursts':26}{name:22}{inside:9.2%}{'':10}{ratio:9.2f}{changes:9}"


def fleet_day(
    source: list[TracedCall],
    workload: Workload,
    replicas: int,
    requests_per_s: float | None,
    hours: float,
    startup_s: float,
    weight: int,
    seed: int = 1,
) -> SimulationResult:
    """A day of at most so many whole replicas under our policy; without a rate, as many calls as fill them at its top."""
    knee = knee_of(H100_TP2, startup_s, workload.slo.ttft_s, workload.slo.itl_s)
    top_rate = requests_per_s or replicas / REPLICAS_AT_TOP * workload.top_rate * workload.thinning
    shape = Shape(top_rate=top_rate, day_s=3600 * hours, bursts_per_day=hours / 2)
    settings = Settings(H100_TP2, workload.slo, startup_s, replicas, initial_replicas=replicas // 2)
    return sampled.fleet_day(source, shape, seed, Ours(knee, Bounds(1, replicas)), settings, weight)


ERRORS_HEADER = f"{'day':12}{'replicas':>9}{'sampled':>9}{'inside':>9}{'GPU-hours':>11}{'off, points':>12}{'off':>10}"
FLEET_HEADER = (
    f"{'day':12}{'calls':>16}{'inside':>9}{'GPU-hours':>11}{'most GPUs':>11}{'shed':>9}{'1 of':>6}{'took':>8}"
)


def fleet_row(name: str, outcome: SimulationResult, weight: int, took_s: float) -> str:
    return (
        f"{name:12}{outcome.arrived:16,}{outcome.attainment:9.2%}{outcome.gpu_s / 3600:11,.0f}"
        f"{outcome.most_replicas * H100_TP2.gpus:11,}{outcome.shed:9}{weight:6}{took_s:6.0f} s"
    )


def errors(
    source: list[TracedCall],
    name: str,
    workload: Workload,
    hours: float,
    startup_s: float,
    fleets: Sequence[int] = (80, 160),
    samples: Sequence[int] = (16, sampled.SAMPLE),
) -> Iterator[str]:
    """Samples of small fleets beside the same fleets, every replica of which is simulated."""
    for replicas in fleets:
        exact = fleet_day(source, workload, replicas, None, hours, startup_s, 1)
        yield f"{name:12}{replicas:9}{'all':>9}{exact.attainment:9.2%}{exact.gpu_s / 3600:11,.0f}"
        for sample in samples:
            found = fleet_day(source, workload, replicas, None, hours, startup_s, replicas // sample)
            yield (
                f"{name:12}{replicas:9}{sample:9}{found.attainment:9.2%}{found.gpu_s / 3600:11,.0f}"
                f"{100 * (found.attainment - exact.attainment):+12.2f}{found.gpu_s / exact.gpu_s - 1:+10.1%}"
            )


def positive(kind: type[float]) -> Callable[[str], float]:
    """The type of an option that takes finite numbers above zero."""

    def read(word: str) -> float:
        value = kind(word)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    read.__name__ = "positive number"  # which argparse prints
    return read


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scaling")
    parser.add_argument("--traces", type=Path, required=True, help=f"folder with {AZURE} and {MOONCAKE}")
    parser.add_argument("--seeds", type=positive(int), default=3)
    parser.add_argument(
        "--hours", type=positive(float), default=24.0, help="length of a day, its profile compressed with it"
    )
    parser.add_argument("--startup-s", type=positive(float), default=STARTUP_S)
    parser.add_argument("--only", default="", help="days whose name begins so")
    parser.add_argument("--gpus", type=positive(int), help="a day of a fleet of at most so many GPUs")
    parser.add_argument(
        "--requests-per-s", type=positive(float), help="its calls at the top of the day; else what fills it then"
    )
    parser.add_argument("--errors", action="store_true", help="how far samples of a fleet are off")
    arguments = parser.parse_args(words)
    sources = {
        it.workload.source for it in cases(arguments.seeds, arguments.hours) if it.name.startswith(arguments.only)
    }
    if not sources:
        parser.error(f"no day's name begins with {arguments.only!r}")
    if missing := sorted(name for name in sources if not (arguments.traces / name).is_file()):
        parser.error(f"{arguments.traces} has no {' and no '.join(missing)}")
    read = {AZURE: cache(read_azure), MOONCAKE: cache(read_mooncake)}
    if arguments.gpus or arguments.errors:
        _fleets(arguments, read)
        return
    rows: list[Row] = []
    print(HEADER)
    for case in cases(arguments.seeds, arguments.hours):
        if not case.name.startswith(arguments.only):
            continue
        source = read[case.workload.source](arguments.traces / case.workload.source)
        for row in judge(columns(stretch(source, case.shape, case.seed)), case, arguments.startup_s):
            print(row, flush=True)
            rows.append(row)
    print(*totals(rows), sep="\n")


def _fleets(arguments: argparse.Namespace, read: Mapping[str, Callable[[Path], list[TracedCall]]]) -> None:
    """A fleet's day, or the errors of such days, for each trace."""
    print(ERRORS_HEADER if arguments.errors else FLEET_HEADER)
    for name, workload in (("Azure", AZURE_DAY), ("Mooncake", MOONCAKE_DAY)):
        if not name.startswith(arguments.only):
            continue
        source = read[workload.source](arguments.traces / workload.source)
        if arguments.errors:
            for line in errors(source, name, workload, arguments.hours, arguments.startup_s):
                print(line, flush=True)
            continue
        replicas = max(1, arguments.gpus // H100_TP2.gpus)
        weight, began_at = sampled.weight_of(replicas), time.perf_counter()
        outcome = fleet_day(
            source, workload, replicas, arguments.requests_per_s, arguments.hours, arguments.startup_s, weight
        )
        print(fleet_row(name, outcome, weight, time.perf_counter() - began_at), flush=True)


if __name__ == "__main__":
    main()
