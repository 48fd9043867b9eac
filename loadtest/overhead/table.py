"""The table: medians over rounds, and each round's ratios to the proxies that everyone knows."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from loadtest.overhead.parts import Part
from loadtest.overhead.proxies import DIRECT

#: Name of a proxy → its figure in each round.
Samples = Mapping[str, Sequence[float]]


def lines(part: Part, measured: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """One Markdown table for each figure of a part; `measured` has a proxy's figures of each round."""
    for key, column in part.columns.items():
        samples = {name: [it[key] for it in rounds] for name, rounds in measured.items() if key in rounds[0]}
        compared = _compared(part, samples) if column.has_ratio or part.is_beside_direct else {}
        yield ""
        yield f"| {part.title} | " + " | ".join([column.name, *compared]) + " |"
        yield "|---|" + "---|" * (1 + len(compared))
        for name, values in samples.items():
            yield f"| {name} | " + " | ".join([spread(values), *(spread(it[name]) for it in compared.values())]) + " |"


def _compared(part: Part, samples: Samples) -> Mapping[str, Samples]:
    """Head of a column → each proxy's ratio, or difference, in each round."""
    if part.is_beside_direct:
        return {"more than direct": _against(samples, DIRECT, operator.sub)} if DIRECT in samples else {}
    return {f"× {name}": _against(samples, name, operator.truediv) for name in part.references if name in samples}


def _against(samples: Samples, reference: str, compare: Callable[[float, float], float]) -> Samples:
    return {name: [compare(*pair) for pair in zip(it, samples[reference], strict=True)] for name, it in samples.items()}


def spread(values: Sequence[float]) -> str:
    """Median, and the least and the most in brackets."""
    middle = statistics.median(values)
    digits = 0 if abs(middle) >= 100 or set(values) == {0} else 1 if abs(middle) >= 10 else 2
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
