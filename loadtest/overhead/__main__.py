"""The command: rounds of every part over every proxy, then the tables. What cannot be done is one sentence and exit code 1."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import uvloop

from loadtest import surroundings
from loadtest.overhead import proxies, table
from loadtest.overhead.parts import FULL, PARTS, SHORT, Figures, Sizes
from loadtest.overhead.proxies import Stand
from serving.errors import Refusal
from serving.gateway.http.descriptors import raise_limit

One = TypeVar("One")
#: Rounds unless asked otherwise: the median of fewer moves with whatever else the machine does.
ROUNDS = 7


def parser() -> argparse.ArgumentParser:
    it = argparse.ArgumentParser(
        prog="python -m loadtest.overhead",
        description="What the gateway costs beside other proxies.",
        allow_abbrev=False,
    )
    default = ",".join(name for name, part in PARTS.items() if part.is_default)
    it.add_argument("--parts", type=among(PARTS), default=default, help=f"of {','.join(PARTS)}; default: {default}")
    it.add_argument("--proxies", type=among(proxies.NAMES), default=",".join(proxies.NAMES), help="default: all")
    it.add_argument("--before", type=Path, help="another checkout, whose gateway takes part: what has a change cost?")
    it.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    it.add_argument("--short", action="store_true", help="tiny sizes: does it run?")
    return it


def among(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads names between commas, each of these."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return names

    return read


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or one sentence on standard error and 1."""
    asked = parser().parse_args(arguments)
    try:
        raise_limit()
        with (
            tempfile.TemporaryDirectory() as folder,
            proxies.standing(asked.proxies, Path(folder), asked.before) as stands,
        ):
            _describe(asked, stands)
            measured = _rounds(asked, stands)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    for part in asked.parts:
        print("\n".join(table.lines(PARTS[part], measured[part])))
    return 0


def _describe(asked: argparse.Namespace, stands: Sequence[Stand]) -> None:
    print(f"{surroundings.machine()}; {surroundings.interpreter()}; load average {os.getloadavg()[0]:.1f} before")
    for stand in stands:
        print(f"* {stand.name}: {proxies.version_of(stand.name)}")
    print(
        f"Medians of {asked.rounds} rounds in turns, in brackets the least and the most; ratios within a round.",
        flush=True,
    )


def _rounds(asked: argparse.Namespace, stands: Sequence[Stand]) -> dict[str, dict[str, list[Figures]]]:
    """Part → proxy → its figures of each round."""
    measured: dict[str, dict[str, list[Figures]]] = {part: {it.name: [] for it in stands} for part in asked.parts}
    for part in asked.parts if not asked.short else ():
        for stand in stands:
            _measure(part, stand, SHORT)  # what runs for the first time costs more
    for number in range(asked.rounds):
        began = time.monotonic()
        for part in asked.parts:
            for stand in rotated(stands, number):
                measured[part][stand.name].append(_measure(part, stand, SHORT if asked.short else FULL))
        print(f"round {number + 1} of {asked.rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return measured


def rotated(stands: Sequence[One], by: int) -> Sequence[One]:
    """The same, from another one on."""
    return [*stands[by % len(stands) :], *stands[: by % len(stands)]]


def _measure(part: str, stand: Stand, sizes: Sizes) -> Figures:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_once(part, stand, sizes))


async def _once(part: str, stand: Stand, sizes: Sizes) -> Figures:
    return await PARTS[part].measure(stand, sizes)


if __name__ == "__main__":
    sys.exit(main())
