"""Parts of the benchmark: one kind of load each, on one proxy, and what it says of it."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from loadtest.overhead import calls
from loadtest.overhead.calls import Plain, Streamed, made
from loadtest.overhead.proxies import BEFORE, Stand
from serving.errors import Refusal


class Sizes(NamedTuple):
    """How much load."""

    streams: int
    chunks: int
    connections: int
    requests: int
    at_once: int
    beside: int
    probes: int
    open_calls: int
    open_per_s: int
    open_step_ms: int
    #: Seconds for which open streams are watched.
    watch_s: float
    #: Seconds after the last of several streams was asked for, until they are taken to be under way.
    settle_s: float


FULL = Sizes(
    streams=32,
    chunks=200,
    connections=32,
    requests=50,
    at_once=512,
    beside=511,
    probes=200,
    open_calls=5000,
    open_per_s=250,
    open_step_ms=1000,
    watch_s=10.0,
    settle_s=2.0,
)
#: Enough to see that everything runs.
SHORT = Sizes(
    streams=4,
    chunks=10,
    connections=2,
    requests=5,
    at_once=8,
    beside=7,
    probes=5,
    open_calls=10,
    open_per_s=50,
    open_step_ms=50,
    watch_s=0.2,
    settle_s=0.1,
)

#: Milliseconds between two chunks: no two of them share a read, which would flatter everyone.
STEP_MS = 10
#: The same of many streams: 20 tokens a second each.
MANY_STEP_MS = 50
#: Chunks of each of the calls that come at once.
AT_ONCE_CHUNKS = 10
#: Most seconds between two calls beside open streams; drawn, so that they do not fall into step with the streams.
PROBE_GAP_S = 0.02
Figures = Mapping[str, float]


#: The usual ones.
REFERENCES = (BEFORE, "haproxy", "haproxy-no-delay", "vllm-router")


class Column(NamedTuple):
    """One figure of a part."""

    name: str
    #: Whether each round's ratio to the same figure of the references means anything.
    has_ratio: bool = True


class Part(NamedTuple):
    """One kind of load."""

    title: str
    measure: Callable[[Stand, Sizes], Awaitable[Figures]]
    #: By the key that the figure has.
    columns: Mapping[str, Column]
    #: What others are compared with, if it was measured.
    references: Sequence[str] = REFERENCES
    #: Whether what counts is how much more it is than the upstream's own.
    is_beside_direct: bool = False
    #: Whether it runs unless asked otherwise.
    is_default: bool = True


async def chunks(stand: Stand, sizes: Sizes) -> Figures:
    """Processor time of streams, for each chunk."""
    before = _cpu_s(stand)
    sent = calls.stream(stand.key, sizes.chunks, STEP_MS)
    done = await _all(stand, [Streamed(sent) for _ in range(sizes.streams)])
    _require(stand, done)
    gathered = sum(call.events for call in done) / sum(call.reads for call in done)
    return {"gathered": gathered} | _cost(stand, before, sizes.streams * sizes.chunks)


async def plain(stand: Stand, sizes: Sizes) -> Figures:
    """Processor time of whole answers, for each of them."""
    before = _cpu_s(stand)
    sent = calls.plain(stand.key)
    done = await asyncio.gather(*(made(stand.port, Plain(sent, sizes.requests)) for _ in range(sizes.connections)))
    _require(stand, done)
    return _cost(stand, before, sizes.connections * sizes.requests)


async def throughput(stand: Stand, sizes: Sizes) -> Figures:
    """Whole answers a second, as many as it can: twice as many connections ask without a pause."""
    sent = calls.plain(stand.key)
    began = time.perf_counter()
    done = await asyncio.gather(*(made(stand.port, Plain(sent, sizes.requests)) for _ in range(2 * sizes.connections)))
    seconds = time.perf_counter() - began
    _require(stand, done)
    return {"per_s": 2 * sizes.connections * sizes.requests / seconds}


async def at_once(stand: Stand, sizes: Sizes) -> Figures:
    """When the first events of calls come that all begin at one moment."""
    sent = calls.stream(stand.key, AT_ONCE_CHUNKS, MANY_STEP_MS)
    done = await _all(stand, [Streamed(sent) for _ in range(sizes.at_once)])
    _require(stand, done)
    waited = [call.ttft_s * 1e3 for call in done]
    return {"p50_ms": _quantile(waited, 0.5), "last_ms": max(waited)}


async def beside(stand: Stand, sizes: Sizes) -> Figures:
    """How long one call waits for its first event while others stream."""
    drawn = random.Random(sizes.probes)  # noqa: S311 -- The same gaps in every run.
    seconds = 2 * sizes.settle_s + sizes.probes * PROBE_GAP_S
    sent = calls.stream(stand.key, round(seconds * 1e3 / MANY_STEP_MS), MANY_STEP_MS)
    streaming = asyncio.gather(*(made(stand.port, Streamed(sent)) for _ in range(sizes.beside)))
    await asyncio.sleep(sizes.settle_s)
    probes = []
    for _ in range(sizes.probes):
        probes.append(await made(stand.port, Streamed(calls.stream(stand.key, 1, STEP_MS))))
        await asyncio.sleep(drawn.uniform(0, PROBE_GAP_S))
    _require(stand, [*probes, *await streaming])
    return {"p99_ms": _quantile([call.ttft_s * 1e3 for call in probes], 0.99)}


async def open_streams(stand: Stand, sizes: Sizes) -> Figures:
    """Thousands of streams of one chunk a second: memory, processor time of an event, and how their arrivals were served."""
    lasting_s = sizes.open_calls / sizes.open_per_s + 2 * sizes.settle_s + sizes.watch_s
    sent = calls.stream(stand.key, math.ceil(lasting_s * 1e3 / sizes.open_step_ms), sizes.open_step_ms, "own")
    idle_mb = stand.tree.resident_mb() if stand.tree else 0.0
    opened, tasks = [], []
    began = asyncio.get_running_loop().time()
    for number in range(sizes.open_calls):
        await asyncio.sleep(began + number / sizes.open_per_s - asyncio.get_running_loop().time())
        opened.append(Streamed(sent))
        tasks.append(asyncio.create_task(made(stand.port, opened[-1])))
    await asyncio.sleep(sizes.settle_s)
    cpu_s, events = _cpu_s(stand), sum(call.events for call in opened)
    await asyncio.sleep(sizes.watch_s)
    cost = _cost(stand, cpu_s, max(1, sum(call.events for call in opened) - events))
    above_mb = {"above_mb": stand.tree.resident_mb() - idle_mb} if stand.tree else {}
    await asyncio.gather(*tasks)
    failed = sum(not call.is_whole for call in opened)
    return {"failed": failed, "p99_ms": _quantile([it.ttft_s * 1e3 for it in opened], 0.99)} | above_mb | cost


async def _all(stand: Stand, these: Sequence[Streamed]) -> list[Streamed]:
    return await asyncio.gather(*(made(stand.port, call) for call in these))


def _require(stand: Stand, done: Sequence[Streamed] | Sequence[Plain]) -> None:
    """A failed call costs less than one that is served: a figure with one in it says nothing."""
    failed = sum(not call.is_whole for call in done)
    if failed:
        raise Refusal(f"{stand.name}: {failed} of {len(done)} calls were not answered whole.")


def _cpu_s(stand: Stand) -> float:
    return stand.tree.cpu_s() if stand.tree else 0.0


def _cost(stand: Stand, before_s: float, count: int) -> dict[str, float]:
    return {"cpu_us": (stand.tree.cpu_s() - before_s) / count * 1e6} if stand.tree else {}


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


#: An event that waits for others to be sent with it costs less, and is not a stream any more: hence `gathered`.
PARTS = {
    "chunks": Part(
        "A streamed chunk",
        chunks,
        {"cpu_us": Column("µs CPU a chunk"), "gathered": Column("events a read at the client", has_ratio=False)},
    ),
    "plain": Part("A plain request", plain, {"cpu_us": Column("µs CPU a request")}),
    "throughput": Part(
        "Plain requests without a pause",
        throughput,
        {"per_s": Column("requests a second")},
        references=(BEFORE, "haproxy", "vllm-router", "gateway"),
        is_default=False,
    ),
    "at-once": Part(
        "Calls at once",
        at_once,
        {"p50_ms": Column("first event, p50, ms"), "last_ms": Column("first event, last, ms")},
    ),
    "beside": Part(
        "One call beside open streams",
        beside,
        {"p99_ms": Column("first event, p99, ms", has_ratio=False)},
        is_beside_direct=True,
    ),
    "open": Part(
        "Open streams of one chunk a second",
        open_streams,
        {
            "failed": Column("failed", has_ratio=False),
            "above_mb": Column("MB above idle", has_ratio=False),
            "cpu_us": Column("µs CPU an event"),
            "p99_ms": Column("first event, p99, ms"),
        },
        is_default=False,
    ),
}
