"""The judge: what each policy makes of a trace, at four loads, with 1, 4 and 16 gateways. Every figure is simulated.

    python -m loadtest.routing --traces DIR [--lengths] [--minutes 30] [--replicas 8] [--gateways 1,4,16] [--loads 0.5,0.65,0.8,0.95]
        [--knowledge perfect]

A load is the prompt tokens that arrive over what the fleet could compute if nothing were cached. Without DIR conversations are
generated. Each table says first how the policy that a gateway uses compares with round robin and least requests.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loadtest.routing.policies import PERFECT, POLICIES, Knowing, Policy
from loadtest.routing.simulator import Result, World, run
from loadtest.routing.traffic import conversations, overlaid
from loadtest.scaling.model import ROUND_TP2, SimulatedSlo
from loadtest.scaling.traces import AZURE, MOONCAKE, TracedCall, read_azure, read_mooncake

#: As in the judge of autoscaling: long prompts alone take seconds.
SLO = SimulatedSlo(ttft_s=5.0)
#: Share of the time that fills the caches and is not counted.
WARM_UP = 1 / 3
SEED = 1
HEADER = (
    f"{'load':>5}{'gateways':>9}  {'policy':20}{'TTFT p50':>9}{'p90':>7}{'p99':>7}{'hits':>7}"
    f"{'imbalance':>10}{'requests':>9}{'goodput/s':>10}{'refused':>8}"
)


def row(load: float, gateways: int, policy: str, result: Result) -> str:
    p50, p90, p99 = (result.ttft_s(share) for share in (0.5, 0.9, 0.99))
    return (
        f"{load:5.2f}{gateways:9}  {policy:20}{p50:9.2f}{p90:7.2f}{p99:7.2f}{result.hit_ratio:7.1%}"
        f"{result.imbalance:10.2f}{result.request_imbalance:9.2f}{result.goodput:10.2f}{result.refused:8}"
    )


def compared(results: dict[str, Result]) -> str:
    """Ours beside the two that the goals name: p90 at most 0.4 and 0.7 times theirs, imbalance at most 1.1 times."""
    ours, round_robin, least = results["ours"], results["round robin"], results["least requests"]
    perfect = (
        f"; caches known / ours: p90 {results[PERFECT].ttft_s(0.9) / ours.ttft_s(0.9):.2f}"
        if PERFECT in results
        else ""
    )
    return (
        f"{'':16}ours / round robin: p90 {ours.ttft_s(0.9) / round_robin.ttft_s(0.9):.2f}; / least requests: p90"
        f" {ours.ttft_s(0.9) / least.ttft_s(0.9):.2f}, imbalance {ours.imbalance / least.imbalance:.2f},"
        f" goodput {ours.goodput / max(1e-9, least.goodput):.2f}{perfect}"
    )


def judge(
    source: Sequence[TracedCall],
    loads: Sequence[float],
    gateways: Sequence[int],
    world: World,
    policies: Mapping[str, type[Policy]] = POLICIES,
) -> Iterator[str]:
    """One table."""
    yield HEADER
    for load in loads:
        calls = overlaid(source, load * world.replicas * world.model.prefill_tokens_per_s, world.span_s, SEED)
        for count in gateways:
            here = World(world.model, world.replicas, count, world.slo, world.span_s, world.warm_up_s, SEED)
            results = {name: run(calls, policy, here) for name, policy in policies.items()}
            yield from (row(load, count, name, result) for name, result in results.items())
            yield compared(results)


def _floats(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.routing")
    parser.add_argument("--traces", type=Path, help=f"folder with {AZURE} and {MOONCAKE}")
    parser.add_argument(
        "--lengths", action="store_true", help=f"{AZURE}, which knows no prefixes, instead of {MOONCAKE}"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of which the first third is not counted")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--gateways", type=_ints, default=[1, 4, 16])
    parser.add_argument("--loads", type=_floats, default=[0.5, 0.65, 0.8, 0.95])
    parser.add_argument(
        "--knowledge",
        choices=["estimated", "perfect"],
        default="estimated",
        help="perfect: with a row more, of ours if gateways knew what each engine has cached (GW-67)",
    )
    arguments = parser.parse_args()
    policies = POLICIES | ({PERFECT: Knowing} if arguments.knowledge == "perfect" else {})
    span_s = 60 * arguments.minutes
    world = World(ROUND_TP2, arguments.replicas, 1, SLO, span_s, span_s * WARM_UP)
    sources: dict[str, Sequence[TracedCall]] = {"generated conversations": conversations(2_000, 1_800.0, SEED)}
    if arguments.traces:
        sources = {"Mooncake's conversations": read_mooncake(arguments.traces / MOONCAKE)}
    if arguments.traces and arguments.lengths:
        sources = {"Azure's conversations, lengths only": read_azure(arguments.traces / AZURE)}
    for name, source in sources.items():
        print(f"{name} on {arguments.replicas} replicas of gpt-oss-120b (H100, TP=2), simulated; TTFT in seconds")
        for line in judge(source, arguments.loads, arguments.gateways, world, policies):
            print(line, flush=True)


if __name__ == "__main__":
    main()
