"""What metrics and the access log cost: a gateway's CPU time per request with them, and without.

    python -m loadtest.observing_bench [ROUNDS]

Two gateways stand before one raw engine, one as it is shipped and one that counts and logs nothing; they take turns, so
that whatever else the machine does meets both. Only the ratio within one run means anything.
Printed too: how large the page of a thousand tenants is, and how long it takes to write.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.relay_bench import cpu_s, engine, free_port, gateway, read_streams, wait_for
from serving.config import GatewaySettings
from serving.gateway import app, server
from serving.gateway.ledger.ledger import Usage
from serving.gateway.observe.access import AccessLine
from serving.gateway.observe.gaps import Gaps
from serving.gateway.observe.metrics import TENANTS_MAX, Metrics, Snapshot
from serving.gateway.outcome import Outcome
from serving.gateway.passage import Passage
from serving.gateway.relay import relay

#: One shape a line: streams at once, chunks of each. Short answers show what a request costs, long ones what a chunk does.
SHAPES = ((32, 20), (32, 200))
#: Turns of each gateway in one round. Short ones, side by side: a shared machine changes more between long ones.
TURNS = 4
MODELS = 10


_LINE = AccessLine("r", "/v1/chat/completions", 200, Outcome.OK, 1.0)
_PASSAGE = Passage()


class _NoGaps(Gaps):
    __slots__ = ()

    def observe(self, seconds: float) -> None:
        pass


class _NoMetrics(Metrics):
    @contextmanager
    def open_request(self) -> Iterator[None]:
        yield

    def settle(self, line: AccessLine, model: str | None, passage: Passage | None) -> None:
        pass


def counting_gateway(home: str, port: int, engine_port: int) -> None:
    """The gateway as it is shipped; its log goes to a file, so that no terminal is measured."""
    with (Path(home) / "log").open("w", buffering=1) as sys.stderr:
        gateway(home, port, engine_port)


def silent_gateway(home: str, port: int, engine_port: int) -> None:
    """The same gateway with its counting taken out. For measuring alone: nothing of the product can be switched so."""
    for owner, name, stand_in in (
        (relay, "Gaps", _NoGaps),
        (relay.Exchange, "passage", lambda _: _PASSAGE),
        (app, "Metrics", _NoMetrics),
        (app.Visit, "line", lambda *_: _LINE),
        (server, "_access_log", lambda _: lambda _: None),
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
    spawn = multiprocessing.get_context("spawn")
    engine_port = free_port()
    processes = [spawn.Process(target=engine, args=(engine_port, chunks), daemon=True)]
    stands: list[tuple[str, Path]] = []
    for name, target in (("counting", counting_gateway), ("silent", silent_gateway)):
        port = free_port()
        (home / name).mkdir()
        processes.append(spawn.Process(target=target, args=(str(home / name), port, engine_port), daemon=True))
        stands.append((f"http://127.0.0.1:{port}", home / name))
    for process in processes:
        process.start()
    try:
        _compare([process.pid or 0 for process in processes[1:]], stands, streams, chunks, rounds)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _compare(pids: list[int], stands: list[tuple[str, Path]], streams: int, chunks: int, rounds: int) -> None:
    for url, _ in stands:
        wait_for(f"{url}/health/models")
    keys = [(folder / "admin.key").read_text().strip() for _, folder in stands]
    spent: list[list[float]] = [[], []]
    for turn in range(rounds * TURNS + 1):
        for at, (url, _) in enumerate(stands):
            before = cpu_s(pids[at])
            asyncio.run(read_streams(url, keys[at], streams))
            if turn:  # the first warms both up
                spent[at].append(cpu_s(pids[at]) - before)
    counting, silent = (statistics.median(it) / streams * 1e3 for it in spent)
    shares = [(counting - silent) / counting for counting, silent in zip(*spent, strict=True)]
    print(f"{streams} streams of {chunks} chunks: {counting:.2f} ms CPU a request, {silent:.2f} without; ", end="")
    print(f"metrics and log are {statistics.median(shares):.1%} of it")


def _page() -> None:
    metrics = Metrics(Snapshot, GatewaySettings().slo_of)
    for tenant in range(TENANTS_MAX):
        for outcome in Outcome:
            line = AccessLine(
                *("r", "/v1/chat/completions", 200, outcome, 1.0),
                tenant=f"tenant-{tenant}",
                ttft_s=0.1,
                usage=Usage(1000, 100),
            )
            metrics.settle(line, f"model-{tenant % MODELS}", Passage(gaps=Gaps()))

    async def seconds() -> float:
        began = time.perf_counter()
        await metrics.render()
        return time.perf_counter() - began

    size = len(asyncio.run(metrics.render()))
    taken = statistics.median(asyncio.run(seconds()) for _ in range(9))
    print(
        f"/metrics with {TENANTS_MAX} tenants and {MODELS} models: {size / 1e6:.2f} MB, written in {taken * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
