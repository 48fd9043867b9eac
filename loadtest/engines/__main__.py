"""The command: starts the servers, measures them in turns, prints the tables. What cannot be done is said, and waited for by nothing."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvloop

from loadtest import surroundings
from loadtest.engines import stands, table
from loadtest.engines.calls import LOADS, SHORT, Load, measured
from loadtest.engines.stands import STARTS, Ground, Stand
from loadtest.overhead.__main__ import among, rotated
from serving.errors import Refusal

MODEL = "smollm2-135m-instruct"
#: Rounds unless asked otherwise, if the time allows.
ROUNDS = 7
#: Minutes after which no round begins that would last longer.
MINUTES = 11.5
#: Load → stand → its figures of each round.
Measured = dict[Load, dict[str, list[dict[str, float]]]]


def parser() -> argparse.ArgumentParser:
    it = argparse.ArgumentParser(
        prog="python -m loadtest.engines",
        description="What is between a client and vLLM, beside the bare server.",
        allow_abbrev=False,
    )
    it.add_argument("--servers", type=among(STARTS), default=",".join(STARTS), help=f"of {','.join(STARTS)}")
    it.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    it.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    it.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"no round begins that ends later; default: {MINUTES}"
    )
    it.add_argument("--short", action="store_true", help="a few tokens: does it run?")
    return it


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or one sentence on standard error and 1."""
    asked = parser().parse_args(arguments)
    ends_at = time.monotonic() + 60 * asked.minutes
    loads = SHORT if asked.short else LOADS
    try:
        # Ray's sockets are below it, and their names may have 107 bytes.
        with tempfile.TemporaryDirectory(prefix="e-", ignore_cleanup_errors=True) as folder, ExitStack() as opened:
            here = stands.ground(asked.model, Path(folder))
            there = _standing(asked.servers, here, opened)
            results = _rounds(there, here, loads, asked.rounds, ends_at)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    for load in loads:
        print("\n".join(table.lines(load, results[load])))
    return 0


def _standing(names: Sequence[str], here: Ground, opened: ExitStack) -> list[Stand]:
    print(
        f"{surroundings.machine()}; {surroundings.interpreter()}; load average {os.getloadavg()[0]:.1f} before; {here.spec.model}"
    )
    there = []
    for one in stands.standing(names, here, opened):
        if isinstance(one, Refusal):
            print(f"* {one}", flush=True)
            continue
        there.append(one)
        print(f"* {one.name}: {stands.versions(one.name)}", flush=True)
    if not there:
        raise Refusal("None of the servers could be started.")
    return there


def _rounds(there: Sequence[Stand], here: Ground, loads: Sequence[Load], rounds: int, ends_at: float) -> Measured:
    figures: Measured = {load: {it.name: [] for it in there} for load in loads}
    for load in SHORT:
        for stand in there:
            _measure(stand, here, load, "warm-up")  # what runs for the first time costs more
    took_s = 0.0
    for number in range(rounds):
        began = time.monotonic()
        if number and began + took_s > ends_at:
            break
        for load in loads:
            for stand in rotated(there, number):
                figures[load][stand.name].append(_measure(stand, here, load, f"{number}/{load.streams}"))
        took_s = time.monotonic() - began
        print(f"round {number + 1} of {rounds}: {took_s:.0f} s", file=sys.stderr)
    done = len(next(iter(figures[loads[0]].values())))
    print(f"Medians of {done} rounds in turns, in brackets the least and the most; ratios within a round.", flush=True)
    return figures


def _measure(stand: Stand, here: Ground, load: Load, seed: str) -> dict[str, float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return dict(runner.run(measured(stand, here.spec.model, load, seed)))


if __name__ == "__main__":
    sys.exit(main())
