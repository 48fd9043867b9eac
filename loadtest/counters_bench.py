"""What a decision on limits costs: CPU time of this process in memory, and latency that Redis, Valkey or PostgreSQL add to a call.

    python -m loadtest.counters_bench --redis FILE --postgresql FILE

Each FILE holds an address, as `gateway.counters.url_file` and `store.url_file` do; what is left out is not measured. The databases
should be empty ones: PostgreSQL gets the gateway's tables, and counters stay behind. A decision draws on four counters, two of a
tenant and two of a key. Ten tenants with a key each and 10,000 with 100,000 take turns, all of whose counters are there before.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from serving.config import StoreSettings
from serving.gateway.admission.counters.counter import Counters, Draw, Kind
from serving.gateway.admission.counters.memory import MemoryCounters
from serving.gateway.admission.counters.redis import RedisTally
from serving.gateway.admission.counters.seeding import nothing
from serving.gateway.admission.counters.shared import SharedCounters
from serving.gateway.admission.counters.sql import THREADS, SqlTally
from serving.gateway.admission.counters.tally import Change, Part, Tally
from serving.gateway.store.store import Store

MUCH = 10**12
MINUTE_US = 60_000_000
MONTH_S = 30 * 86_400
#: Seconds an answer may take here: an outage would be another measure.
TIMEOUT_S = 10.0
#: Calls that prepare counters, at a time.
PREPARED_TOGETHER = 16


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    rounds: int
    decisions: int
    tenants: int
    keys_each: int


class Figures(msgspec.Struct, frozen=True):
    """One round of one set of callers."""

    cpu_us: float
    p50_ms: float
    p99_ms: float


def callers(tenants: int, keys_each: int, run: str) -> list[list[Draw]]:
    """The draws of a call, for each key."""
    ends_at_us = round((time.time() + MONTH_S) * 1e6)
    return [
        [
            Draw(f"{run}{tenant}/open", Kind.OPEN, MUCH, 1),
            Draw(f"{run}{tenant}/month", Kind.WINDOW, MUCH, 1500, ends_at_us=ends_at_us),
            Draw(f"{run}{tenant}/{key}/requests", Kind.RATE, MUCH, 1, period_us=MINUTE_US),
            Draw(f"{run}{tenant}/{key}/tokens", Kind.RATE, MUCH, 1500, period_us=MINUTE_US),
        ]
        for tenant in range(tenants)
        for key in range(keys_each)
    ]


async def prepare(tally: Tally, all_draws: Sequence[list[Draw]]) -> None:
    """Have all counters there, with more in them than refills while this runs."""
    tenants: dict[str, list[Draw]] = {}
    for draws in all_draws:
        tenants.setdefault(draws[1].name, [draws[1]]).extend(draws[2:])
    left = iter(tenants.values())

    async def work() -> None:
        for window, *rates in left:
            await tally.seed(window, 1, is_late=False)
            spent = tuple(Part(rate, add=MUCH // 2) for rate in rates)
            await tally.apply([Change(secrets.token_hex(8), spent, is_final=True)])

    await asyncio.gather(*(work() for _ in range(PREPARED_TOGETHER)))


async def call(counters: Counters, draws: list[Draw]) -> float:
    """Seconds that its reservation took; it is settled too."""
    lease = secrets.token_hex(8)
    began = time.perf_counter()
    verdict = await counters.reserve(lease, draws)
    took = time.perf_counter() - began
    if verdict.refused is not None:
        raise SystemExit("A limit was met: nothing was measured.")
    counters.settle(lease, draws, [1, 700, 1, 700])
    return took


async def measured(counters: Counters, sets: Sequence[list[list[Draw]]], sizes: Sizes) -> list[list[Figures]]:
    """Figures of rounds that alternate, for each set of callers."""
    found: list[list[Figures]] = [[] for _ in sets]
    if isinstance(counters, MemoryCounters):
        for draws in itertools.chain(*sets):
            await call(counters, draws)
    endless = [itertools.cycle(all_draws[:: max(1, len(all_draws) // sizes.decisions)]) for all_draws in sets]
    for _ in range(sizes.rounds):
        for place, its in enumerate(endless):
            began = time.process_time()
            seconds = sorted([await call(counters, next(its)) for _ in range(sizes.decisions)])
            cpu_us = (time.process_time() - began) / sizes.decisions * 1e6
            p50_ms, p99_ms = seconds[len(seconds) // 2] * 1e3, seconds[len(seconds) * 99 // 100] * 1e3
            found[place].append(Figures(cpu_us, p50_ms, p99_ms))
    return found


async def shared(
    tally: Tally, sets: Sequence[list[list[Draw]]], work: Callable[[Counters], Awaitable[list[list[Figures]]]]
) -> list[list[Figures]]:
    """As a gateway uses it."""
    for all_draws in sets:
        await prepare(tally, all_draws)
    counters = SharedCounters(tally, seeds=nothing, gateways=lambda: 1, timeout_s=TIMEOUT_S)
    task = asyncio.create_task(counters.run())
    try:
        figures = await work(counters)
        if counters.outages:
            raise SystemExit("The database did not answer in time: nothing was measured.")
    finally:
        task.cancel()
        await counters.close()
    return figures


def lines(name: str, sets: Sequence[str], found: Sequence[Sequence[Figures]]) -> Iterator[str]:
    """Medians, and ratios to the first set of the same rounds."""
    for set_name, figures in zip(sets, found, strict=True):
        said = []
        for unit, field in (("us CPU", "cpu_us"), ("ms p50", "p50_ms"), ("ms p99", "p99_ms")):
            values = [getattr(it, field) for it in figures]
            ratio = statistics.median(
                its / few for its, few in zip(values, (getattr(it, field) for it in found[0]), strict=True)
            )
            said.append(f"{statistics.median(values):9.3f} {unit} {ratio:5.2f}x")
        yield f"{name:12}{set_name:36}{'  '.join(said)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a decision on limits costs.")
    parser.add_argument("--redis", type=Path, help="file with the address of Redis or Valkey")
    parser.add_argument("--cluster", action="store_true", help="it is a node of a cluster")
    parser.add_argument("--postgresql", type=Path, help="file with the address of a PostgreSQL database")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decisions", type=int, default=1000, help="of a round")
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--keys-each", type=int, default=10)
    said = parser.parse_args(arguments)
    sizes = Sizes(said.rounds, said.decisions, said.tenants, said.keys_each)
    run = secrets.token_hex(4)
    sets = [callers(10, 1, f"few{run}"), callers(sizes.tenants, sizes.keys_each, f"many{run}")]
    names = ["10 tenants, 10 keys", f"{sizes.tenants:,} tenants, {len(sets[1]):,} keys"]

    async def work(counters: Counters) -> list[list[Figures]]:
        return await measured(counters, sets, sizes)

    with ExitStack() as opened:
        memory = MemoryCounters(lambda: time.time_ns() // 1000)
        show("memory", names, asyncio.run(work(memory)))
        if said.redis:
            redis = RedisTally(said.redis, is_cluster=said.cluster, timeout_s=TIMEOUT_S)
            show("redis", names, asyncio.run(shared(redis, sets, work)))
        if said.postgresql:
            home = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            settings = StoreSettings(url_file=said.postgresql, pool_size=THREADS)
            store = opened.enter_context(Store.open(home, settings, may_migrate=True))
            show("postgresql", names, asyncio.run(shared(SqlTally(store), sets, work)))


def show(name: str, sets: Sequence[str], found: Sequence[Sequence[Figures]]) -> None:
    for line in lines(name, sets, found):
        print(line, flush=True)


if __name__ == "__main__":
    main()
