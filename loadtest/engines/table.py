"""The table: for each number of streams what each server does, and beside the bare one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from loadtest.engines.calls import Load
from loadtest.overhead.table import spread

#: The stand that others are compared with.
REFERENCE = "bare"


class Column(NamedTuple):
    """One figure, and how it stands beside the reference's."""

    key: str
    name: str
    beside: str
    compare: Callable[[float, float], float]


COLUMNS = (
    Column("tokens_per_s", "tokens a second", "×", operator.truediv),
    Column("ttft_ms", "first text, ms", "ms more than", operator.sub),
    Column("cpu_ms", "ms of CPU a token", "×", operator.truediv),
)
Rounds = Sequence[Mapping[str, float]]


def lines(load: Load, measured: Mapping[str, Rounds]) -> Iterator[str]:
    """Markdown; `measured` has a stand's figures of each round. Ratios and differences are taken within a round."""
    reference = measured.get(REFERENCE)
    heads = []
    for column in COLUMNS:
        heads += [column.name, f"{column.beside} {REFERENCE}"] if reference else [column.name]
    yield ""
    yield f"| {load.streams} streams | " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * len(heads)
    for name, rounds in measured.items():
        cells = []
        for column in COLUMNS:
            cells.append(spread([it[column.key] for it in rounds]))
            if reference:
                cells.append(spread(_beside(rounds, reference, column.key, column.compare)))
        yield f"| {name} | " + " | ".join(cells) + " |"


def _beside(rounds: Rounds, reference: Rounds, key: str, compare: Callable[[float, float], float]) -> list[float]:
    return [compare(one[key], other[key]) for one, other in zip(rounds, reference, strict=True)]
