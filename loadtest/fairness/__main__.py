"""The judge of fairness: what tenants have of a full fleet, with the gateway's queue and without it. Every figure is simulated.

    python -m loadtest.fairness [--minutes 5] [--rounds 5]

Of each kind of traffic one tenant offers a share of what the fleet can do, and another ten times that. `alone` is the first one's TTFT with the fleet
to itself, `filled` beside one that fills the same fleet to nine tenths and no more: that is what a full batch costs, whoever waits.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from loadtest.fairness.simulator import Run, Tenant, World, jain, lines
from loadtest.scaling.model import ROUND_TP2, ReplicaModel
from serving.gateway.policies import PriorityClass

#: A replica with little room for KV, as beside large weights.
SMALL_KV = replace(ROUND_TP2, kv_cache_tokens=100_000)
#: How much more the second tenant asks for.
FLOOD = 10
#: What the first tenant asks for, of what the fleet can do.
SHARES = (0.1, 0.3)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What calls are like, and how many of them a second make one replica full."""

    name: str
    model: ReplicaModel
    prompt_tokens: int
    output_tokens: int
    full_calls_per_s: float


TRAFFIC = (
    Traffic("chat, KV is short", SMALL_KV, 2000, 400, 6.0),
    Traffic("chat, little prompt, KV is short", SMALL_KV, 500, 400, 14.0),
    Traffic("documents, prefill is short", ROUND_TP2, 12_000, 350, 2.4),
    Traffic("chat, prefill is short", ROUND_TP2, 4000, 200, 7.0),
)


@dataclass(frozen=True, slots=True)
class Beside:
    """What the small tenant has beside the large one."""

    alone_s: float
    filled_s: float
    fair_s: float
    first_come_s: float
    #: Tokens a second of all, over those without a queue.
    throughput: float
    #: The small tenant's longest wait in the gateway at p95, in seconds.
    waited_s: float

    @property
    def ratio(self) -> float:
        return self.fair_s / self.alone_s

    @property
    def ratio_to_filled(self) -> float:
        return self.fair_s / self.filled_s


def beside(traffic: Traffic, world: World, share: float = 0.1) -> Beside:
    """Two equal tenants, of whom one offers `FLOOD` times the load."""
    world = replace(world, model=traffic.model)
    full = traffic.full_calls_per_s * world.replicas
    small = Tenant("small", share * full, prompt_tokens=traffic.prompt_tokens, output_tokens=traffic.output_tokens)
    large = replace(small, name="large", calls_per_s=FLOOD * small.calls_per_s)
    rest = replace(small, name="rest", calls_per_s=(0.9 - share) * full)
    alone = Run([small], world).run().had["small"]
    filled = Run([small, rest], world).run().had["small"]
    fair = Run([small, large], world).run()
    first_come = Run([small, large], replace(world, is_fair=False)).run()
    return Beside(
        alone.ttft_s(0.95),
        filled.ttft_s(0.95),
        fair.had["small"].ttft_s(0.95),
        first_come.had["small"].ttft_s(0.95),
        fair.tokens / first_come.tokens,
        statistics.quantiles(fair.had["small"].waits_s, n=20)[-1],
    )


def weighted(world: World) -> float:
    """Tokens of a tenant of weight 3 over those of one of weight 1, both asking for more than they get."""
    one = Tenant("one", 16.0 * world.replicas, weight=1)
    run = Run([one, replace(one, name="three", weight=3)], world).run()
    return run.had["three"].tokens / run.had["one"].tokens


def fifty(world: World) -> float:
    """Jain's index of fifty equal tenants, of whom the last offers ten times what the first does."""
    tenants = [Tenant(f"t{number}", (1 + 9 * number / 49) * 0.4 * world.replicas) for number in range(50)]
    had = Run(tenants, world).run().had
    return jain([had[tenant.name].tokens for tenant in tenants])


def batch(world: World) -> tuple[float, float]:
    """The longest wait of a batch call, and batch's share of the tokens, where interactive calls alone ask for twice the fleet."""
    people = Tenant("people", 18.0 * world.replicas, priority=PriorityClass.INTERACTIVE)
    night = Tenant("night", 0.5 * world.replicas, priority=PriorityClass.BATCH)
    run = Run([people, night], world).run()
    return max(run.had["night"].waits_s), run.had["night"].tokens / run.tokens


@dataclass(frozen=True, slots=True)
class Night:
    """What interactive calls have beside a batch whose lines never end."""

    alone_s: float
    beside_s: float
    #: Of the batch, for each replica, as the queue counts them.
    lines_tokens_per_s: float

    @property
    def ratio(self) -> float:
        return self.beside_s / self.alone_s


def night(traffic: Traffic, world: World, share: float, line: tuple[int, int] = (1000, 200)) -> Night:
    """Interactive calls for a share of what the fleet can do, and a batch of lines of so many prompt and output tokens."""
    world = replace(world, model=traffic.model)
    people = Tenant(
        "people",
        share * traffic.full_calls_per_s * world.replicas,
        priority=PriorityClass.INTERACTIVE,
        prompt_tokens=traffic.prompt_tokens,
        output_tokens=traffic.output_tokens,
    )
    alone = Run([people], world).run().had["people"]
    both = Run([people, lines("lines", *line)], world).run()
    rate = both.had["lines"].tokens / (world.span_s - world.warm_up_s) / world.replicas
    return Night(alone.ttft_s(0.95), both.had["people"].ttft_s(0.95), rate)


def nights(traffic: Traffic, world: World, share: float, line: tuple[int, int], rounds: int) -> str:
    """One row's part: the median of several runs with other calls, the largest of them, and what lines had."""
    had = [night(traffic, replace(world, seed=seed), share, line) for seed in range(1, rounds + 1)]
    median = statistics.median(it.ratio for it in had)
    tokens_per_s = statistics.mean(it.lines_tokens_per_s for it in had)
    return f"{median:9.2f}{max(it.ratio for it in had):9.2f}{tokens_per_s:10.0f}"


def table(minutes: float, rounds: int) -> Iterator[str]:
    span_s = 60 * minutes
    world = World(ROUND_TP2, replicas=4, span_s=span_s, warm_up_s=span_s / 4)
    yield "a tenant that asks for a share of the fleet, beside one that asks for ten times as much; TTFT p95 in seconds"
    yield f"{'traffic':34}{'share':>6}{'gateways':>9}{'alone':>8}{'filled':>8}{'fair':>8}{'first come':>11}{'/ alone':>9}{'/ filled':>9}{'throughput':>11}"
    for traffic in TRAFFIC:
        for share, gateways in product(SHARES, (1, 4)):
            it = beside(traffic, replace(world, gateways=gateways), share)
            yield (
                f"{traffic.name:34}{share:6}{gateways:9}{it.alone_s:8.2f}{it.filled_s:8.2f}{it.fair_s:8.2f}{it.first_come_s:11.1f}"
                f"{it.ratio:9.2f}{it.ratio_to_filled:9.2f}{it.throughput:11.3f}"
            )
    yield f"tokens of weights 1:3, one gateway and four: 1:{weighted(world):.2f}, 1:{weighted(replace(world, gateways=4)):.2f}"
    yield f"Jain's index of fifty tenants, one gateway and four: {fifty(world):.3f}, {fifty(replace(world, gateways=4)):.3f}"
    yield "interactive calls alone and beside a batch that has always another line (1,000 prompt and 200 output tokens; 6,000 and 100)"
    yield f"TTFT p95 beside it / alone, median and largest of {rounds} rounds, and the lines' tokens/s"
    yield f"{'traffic':34}{'load':>6}{'1000':>9}{'largest':>9}{'tokens/s':>10}{'6000':>9}{'largest':>9}{'tokens/s':>10}"
    for traffic in TRAFFIC:
        for load in (0.2, 0.5, 0.8):
            parts = (nights(traffic, world, load, line, rounds) for line in ((1000, 200), (6000, 100)))
            yield f"{traffic.name:34}{load:6.0%}{''.join(parts)}"
    longest_s, share = batch(replace(world, late_after_s=30.0))
    yield f"batch below twice the fleet of interactive calls, late after 30 s: longest wait {longest_s:.0f} s, {share:.0%} of the tokens"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.fairness")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="of which the first quarter is not counted; at least 1"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of what calls have beside a batch, each with other calls"
    )
    given = parser.parse_args()
    if not given.minutes >= 1:
        parser.error("--minutes must be at least 1: in less, not every tenant has a call.")
    if given.rounds < 1:
        parser.error("--rounds must be at least 1.")
    for line in table(given.minutes, given.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
