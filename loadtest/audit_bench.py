"""What the audit costs: CPU time of a call in the event loop and in the thread that writes, and of a whole gateway with it and without.

    python -m loadtest.audit_bench [ROUNDS]

First one process: what a call's part of an entry costs beside its row in the ledger, on SQLite, calls by turns. Then two gateways before one
raw engine, one as it is shipped and one that audits no calls; they take turns, so that whatever else the machine does meets both.
Only ratios within one run mean anything.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from loadtest.relay_bench import gateway, read_streams
from loadtest.side_by_side import Stand, spent_s, standing
from serving.gateway.audit.audit import Audit
from serving.gateway.audit.checkpoints import Signer
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, CallRecord, Outcome, Route
from serving.gateway.store.store import Store

ROUNDS = 9
#: Calls between two writes: as many as a busy worker has in half a second.
CALLS = 250
TENANTS = 50
#: Answers of so few chunks that calls, not chunks, are what the gateway does.
STREAMS, CHUNKS = 32, 4
#: Times that all of them are asked in one turn, as one user after another does.
REPEATS = 8
#: Turns of each gateway in one round.
TURNS = 4

Spent = list[float]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as home:
        _by_call(Path(home), rounds * TURNS)
    with tempfile.TemporaryDirectory() as home:
        _by_gateway(Path(home), rounds)


def _by_call(home: Path, turns: int) -> None:
    """The ledger's thread and the audit's are not started: their work is done here, where it can be measured."""
    with Store.open(home) as store:
        ledger, audit = Ledger(store, clock=time.time), Audit(store, Signer(bytes(32)), clock=time.time)
        spent: dict[str, Spent] = {name: [] for name in ("row", "row written", "entry", "entry written")}
        for turn in range(turns + 1):
            records = [_record(turn, number) for number in range(CALLS)]
            measured = {
                "row": _cpu_s(partial(_bill, ledger, records)),
                "row written": _cpu_s(ledger.flush),
                "entry": _cpu_s(partial(_audit, audit, records)),
                "entry written": _cpu_s(audit.flush),
            }
            if turn:  # the first warms all up
                for name, seconds in measured.items():
                    spent[name].append(seconds / CALLS * 1e6)
        ledger.stop()
    row, row_written, entry, entry_written = (statistics.median(it) for it in spent.values())
    print(f"event loop: {entry:.1f} us a call for the audit, {row:.1f} for the ledger's row; {entry / row:.2f} of it")
    print(f"thread:     {entry_written:.1f} us a call for the audit, {row_written:.1f} for the ledger; ", end="")
    print(f"{entry_written / row_written:.2f} of it")


def _bill(ledger: Ledger, records: list[CallRecord]) -> None:
    for record in records:
        ledger.open(record)
        ledger.close(record)


def _audit(audit: Audit, records: list[CallRecord]) -> None:
    for record in records:
        audit.settle(record)


def _record(turn: int, number: int) -> CallRecord:
    tenant = f"tenant-{number % TENANTS}"
    return CallRecord(
        request_id=f"request-{turn}-{number}",
        started_at=0.0,
        ended_at=1.0,
        route=Route("/v1/chat/completions", is_billed=True),
        caller=Caller(tenant, tenant, f"key-{number % TENANTS}"),
        model="gpt-oss-120b",
        status=200,
        outcome=Outcome.OK,
    )


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def unaudited_gateway(home: str, port: int, engine_port: int) -> None:
    """A gateway whose calls leave nothing to write. For measuring alone: nothing of the product can be switched so."""
    Audit.settle = lambda *_: None  # type: ignore[method-assign]
    audited_gateway(home, port, engine_port)


def audited_gateway(home: str, port: int, engine_port: int) -> None:
    """The gateway as it is shipped; its log goes to a file, so that no terminal is measured."""
    with (Path(home) / "log").open("w", buffering=1) as sys.stderr:
        gateway(home, port, engine_port)


def _by_gateway(home: Path, rounds: int) -> None:
    with standing(home, CHUNKS, {"audited": audited_gateway, "unaudited": unaudited_gateway}) as stands:
        spent = spent_s(stands, rounds * TURNS, _ask)
    audited, unaudited = (statistics.median(it) / (STREAMS * REPEATS) * 1e3 for it in spent)
    shares = statistics.median(one / other for one, other in zip(*spent, strict=True))
    print(f"gateway:    {audited:.2f} ms CPU a call of {CHUNKS} chunks, {unaudited:.2f} without; {shares:.3f} of it")


def _ask(stand: Stand) -> None:
    for _ in range(REPEATS):
        asyncio.run(read_streams(stand.url, stand.key, STREAMS))
    # What is gathered is written by then.
    time.sleep(1.0)


if __name__ == "__main__":
    main()
