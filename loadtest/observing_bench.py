"""What metrics and the access log cost: a gateway's CPU time per request with them, and without.

    python -m loadtest.observing_bench [ROUNDS]

Two gateways stand before one raw engine, one as it is shipped and one that counts and logs nothing; they take turns, so
that whatever else the machine does meets both. Only the ratio within one run means anything.
Printed too: how large the page of a thousand tenants is, and how long it takes to write.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.relay_bench import gateway, read_streams
from loadtest.side_by_side import Stand, spent_s, standing
from serving.config import GatewaySettings
from serving.gateway import assembly, server
from serving.gateway.nouns import Caller, CallRecord, InterTokenLatency, Outcome, Route, Usage
from serving.gateway.observe.metrics import TENANTS_MAX, Metrics, Snapshot
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay import exchange

#: One shape a line: streams at once, chunks of each. Short answers show what a request costs, long ones what a chunk does.
SHAPES = ((32, 20), (32, 200))
#: Turns of each gateway in one round. Short ones, side by side: a shared machine changes more between long ones.
TURNS = 4
MODELS = 10


class _NoLatency(InterTokenLatency):
    __slots__ = ()

    def observe(self, seconds: float) -> None:
        pass


class _NoMetrics(Metrics):
    @contextmanager
    def open_request(self) -> Iterator[None]:
        yield

    def settle(self, record: CallRecord) -> None:
        pass


def _write_nothing(record: CallRecord) -> None:
    pass


def counting_gateway(home: str, port: int, engine_port: int) -> None:
    """The gateway as it is shipped; its log goes to a file, so that no terminal is measured."""
    with (Path(home) / "log").open("w", buffering=1) as sys.stderr:
        gateway(home, port, engine_port)


def silent_gateway(home: str, port: int, engine_port: int) -> None:
    """The same gateway with its counting taken out. For measuring alone: nothing of the product can be switched so."""
    for owner, name, stand_in in (
        (exchange, "InterTokenLatency", _NoLatency),
        (assembly, "Metrics", _NoMetrics),
        (Trace, "end", lambda *_: None),
        (server, "_access_log", lambda *_: _write_nothing),
    ):
        setattr(owner, name, stand_in)
    counting_gateway(home, port, engine_port)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for streams, chunks in SHAPES:
        with tempfile.TemporaryDirectory() as home:
            _measure(Path(home), streams, chunks, rounds)
    _page()


def _measure(home: Path, streams: int, chunks: int, rounds: int) -> None:
    def ask(stand: Stand) -> None:
        asyncio.run(read_streams(stand.url, stand.key, streams))

    with standing(home, chunks, {"counting": counting_gateway, "silent": silent_gateway}) as stands:
        spent = spent_s(stands, rounds * TURNS, ask)
    counting, silent = (statistics.median(it) / streams * 1e3 for it in spent)
    shares = [(counting - silent) / counting for counting, silent in zip(*spent, strict=True)]
    print(f"{streams} streams of {chunks} chunks: {counting:.2f} ms CPU a request, {silent:.2f} without; ", end="")
    print(f"metrics and log are {statistics.median(shares):.1%} of it")


def _page() -> None:
    metrics = Metrics(Snapshot, GatewaySettings().slo_of)
    for tenant in range(TENANTS_MAX):
        for outcome in Outcome:
            metrics.settle(
                CallRecord(
                    request_id="r",
                    started_at=0.0,
                    ended_at=1.0,
                    route=Route("/v1/chat/completions", is_billed=True),
                    caller=Caller("t", f"tenant-{tenant}", "k"),
                    model=f"model-{tenant % MODELS}",
                    is_model_listed=True,
                    is_streamed=True,
                    asked_for_engine=True,
                    first_byte_at=0.1,
                    inter_token=InterTokenLatency(),
                    usage=Usage(1000, 100),
                    outcome=outcome,
                )
            )

    async def seconds() -> tuple[float, float, int]:
        """To write the page; the event loop's longest stop meanwhile, and its turns."""
        began = last = time.perf_counter()
        page = asyncio.create_task(metrics.render())
        stop_s, turns = 0.0, 0
        while not page.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            stop_s, last, turns = max(stop_s, now - last), now, turns + 1
        return time.perf_counter() - began, stop_s, turns

    size = len(asyncio.run(metrics.render()))
    pages = [asyncio.run(seconds()) for _ in range(9)]
    taken_s, stop_s, turns = (statistics.median(it) for it in zip(*pages, strict=True))
    print(
        f"/metrics with {TENANTS_MAX} tenants and {MODELS} models: {size / 1e6:.2f} MB, written in {taken_s * 1e3:.0f} ms,"
        f" in which the event loop had {turns:.0f} turns and stood still for {stop_s * 1e3:.1f} ms at most (medians)"
    )


if __name__ == "__main__":
    main()
