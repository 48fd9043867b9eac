"""The table: for each number of streams what each server does, and beside the bare one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

from loadtest.engines.calls import Load
from loadtest.overhead.table import spread

#: The stand that others are compared with.
REFERENCE = "bare"
Rounds = Sequence[Mapping[str, float]]


def lines(load: Load, measured: Mapping[str, Rounds]) -> Iterator[str]:
    """Markdown; `measured` has a stand's figures of each round. Ratios and differences are taken within a round."""
    reference = measured.get(REFERENCE)
    heads = ["tokens a second", "first text, ms"]
    if reference:
        heads = [heads[0], f"× {REFERENCE}", heads[1], f"ms more than {REFERENCE}"]
    yield ""
    yield f"| {load.streams} streams | " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * len(heads)
    for name, rounds in measured.items():
        cells = []
        for key, compare in (("tokens_per_s", operator.truediv), ("ttft_ms", operator.sub)):
            cells.append(spread([it[key] for it in rounds]))
            if reference:
                cells.append(spread(_beside(rounds, reference, key, compare)))
        yield f"| {name} | " + " | ".join(cells) + " |"


def _beside(rounds: Rounds, reference: Rounds, key: str, compare: Callable[[float, float], float]) -> list[float]:
    return [compare(one[key], other[key]) for one, other in zip(rounds, reference, strict=True)]
