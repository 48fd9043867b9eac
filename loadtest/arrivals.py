"""Arrivals: when sessions begin. Plain functions of a rate and a seed; senders need nothing else.

The load is open: a session is due at its instant whether or not an earlier one has been answered. Arrivals are a
Poisson process whose rate follows a shape, because users do not wait for one another; a replay keeps its trace's own
instants.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from loadtest.scaling.traces import Burst, TracedCall, read_azure, read_mooncake
from serving.errors import Refusal

T = TypeVar("T")
#: Sessions a second at a number of seconds since the start.
Rate = Callable[[float], float]

#: A burst brings twice the base rate on top of it, within a 60th of the run, and fades over a 20th.
BURST_HEIGHT = 2.0
#: Where in the run bursts begin.
BURSTS_AT = (0.2, 0.5, 0.8)
#: Rate at night, as a share of the top: an office's, as in loadtest.scaling.
NIGHT_RATIO = 0.3


def steady(rate_per_s: float) -> Rate:
    """The same rate throughout."""
    return lambda now: rate_per_s


def ramp(first_per_s: float, last_per_s: float, steps: int, duration_s: float) -> Rate:
    """A staircase: each rate stands long enough to be measured. `steps` is at least 1."""

    def rate(now: float) -> float:
        step = min(steps - 1, int(now / duration_s * steps))
        return first_per_s + (last_per_s - first_per_s) * step / max(1, steps - 1)

    return rate


def diurnal(top_per_s: float, duration_s: float) -> Rate:
    """A day from night to night in `duration_s`: a cosine between NIGHT_RATIO of the top and the top."""

    def rate(now: float) -> float:
        wave = (1 - math.cos(2 * math.pi * now / duration_s)) / 2
        return top_per_s * (NIGHT_RATIO + (1 - NIGHT_RATIO) * wave)

    return rate


def bursts(base_per_s: float, duration_s: float) -> Rate:
    """The base rate with a burst at each of BURSTS_AT."""
    over = [Burst(part * duration_s, BURST_HEIGHT, duration_s / 60, duration_s / 20) for part in BURSTS_AT]
    return lambda now: base_per_s * (1 + sum(burst.factor(now) for burst in over))


def top_of(rate: Rate, duration_s: float, samples: int = 10_000) -> float:
    """The highest rate of a shape, looked for at that many instants."""
    return max(rate(duration_s * sample / samples) for sample in range(samples))


def instants(rate: Rate, duration_s: float, chance: random.Random) -> Iterator[float]:
    """Seconds since the start at which sessions are due, rising: a Poisson process that follows `rate`.

    Thinning (Lewis and Shedler, 1979): candidates come at the top rate and are kept with the share the rate has of it.
    """
    top_per_s = top_of(rate, duration_s)
    now = 0.0
    while top_per_s > 0 and (now := now + chance.expovariate(top_per_s)) < duration_s:
        if chance.random() * top_per_s <= rate(now):
            yield now


def read_trace(path: Path) -> list[TracedCall]:
    """A trace in Azure's format (.csv) or Mooncake's (.jsonl), in order of arrival; raises Refusal for anything else."""
    readers = {".csv": read_azure, ".jsonl": read_mooncake}
    if path.suffix not in readers:
        raise Refusal(f"{path} is no trace that can be read: Azure's end in .csv, Mooncake's in .jsonl.")
    try:
        calls = readers[path.suffix](path)
    except OSError as error:
        raise Refusal(f"The trace {path} cannot be read: {error.strerror}.") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise Refusal(
            f"{path} is not in its format: Azure's have TIMESTAMP, ContextTokens and GeneratedTokens, "
            "Mooncake's timestamp, input_length and output_length."
        ) from None
    return sorted(calls, key=lambda call: call.arrived_at)


def replay(calls: Sequence[TracedCall], duration_s: float, every: int = 1, speed: float = 1.0) -> list[TracedCall]:
    """Every n-th call of a trace at `speed` times its pace, as far as `duration_s` reaches; its first is due at once."""
    kept = calls[::every]
    if not kept:
        return []
    start = kept[0].arrived_at
    moved = (TracedCall((it.arrived_at - start) / speed, it.prompt_tokens, it.output_tokens) for it in kept)
    return [call for call in moved if call.arrived_at < duration_s]


def share(items: Sequence[T], index: int, parts: int) -> list[T]:
    """What one of several workers sends: every n-th. Over all indexes, each item exactly once."""
    return list(items[index::parts])
