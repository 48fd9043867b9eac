"""Traces: an hour of real calls, stretched to a bursty day.

Kept from the source: pairs of prompt and output tokens as they were, drawn from the same minute, and its rate from
minute to minute (so its own drift and bursts, at their own speed). Added, by a seed: a day's profile (an office's,
lowest at 0.3 of the top), the peak hour, and bursts. Calls arrive as a Poisson process at the product of these rates.
"""

from __future__ import annotations

import csv
import json
import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

AZURE = "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = "mooncake_conversation_trace.jsonl"

#: Tokens of one of Mooncake's `hash_ids`.
BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TracedCall:
    """One request: seconds since the start, and its tokens."""

    arrived_at: float
    prompt_tokens: int
    output_tokens: int
    #: Its prompt in blocks of `BLOCK_TOKENS`, where the trace has them: two with equal beginnings share a prefix.
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Burst:
    """Rate times 1 + `height` at its top: a straight rise, then it fades with a time constant."""

    starts_at: float
    height: float
    rise_s: float
    fade_s: float

    def factor(self, now: float) -> float:
        since = now - self.starts_at
        if since <= 0:
            return 0.0
        if since < self.rise_s:
            return self.height * since / self.rise_s
        return self.height * math.exp(-(since - self.rise_s) / self.fade_s)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a day is made of an hour."""

    #: Calls a second at the top of the day's profile, before bursts.
    top_rate: float
    day_s: float = 86_400.0
    #: Rate at night, as a share of the top.
    night_ratio: float = 0.3
    bursts_per_day: float = 12.0
    #: Bursts rise by 20 to 60 %, within 2 to 6 minutes, and fade over 5 to 20.
    height: tuple[float, float] = (0.2, 0.6)
    rise_s: tuple[float, float] = (120.0, 360.0)
    fade_s: tuple[float, float] = (300.0, 1200.0)


#: Bursts that arrive faster than a replica starts.
STEEP = {"height": (0.5, 1.0), "rise_s": (20.0, 60.0)}


def read_azure(path: Path) -> list[TracedCall]:
    """Azure's LLM inference trace: TIMESTAMP, ContextTokens, GeneratedTokens."""
    with path.open() as file:
        rows = [
            (_seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    return [TracedCall(at - rows[0][0], prompt, max(1, output)) for at, prompt, output in rows]


def _seconds(stamp: str) -> float:
    """Python reads six digits of a fraction; the trace has seven."""
    return datetime.fromisoformat(stamp[:26]).replace(tzinfo=UTC).timestamp()


def read_mooncake(path: Path) -> list[TracedCall]:
    """Mooncake's: `timestamp` in ms, `input_length`, `output_length`, `hash_ids`."""
    with path.open() as file:
        rows = [json.loads(line) for line in file]
    return [
        TracedCall(row["timestamp"] / 1000, row["input_length"], max(1, row["output_length"]), tuple(row["hash_ids"]))
        for row in rows
    ]


class Day:
    """How a source's hour becomes a day; the same seed gives the same one."""

    def __init__(self, source: list[TracedCall], shape: Shape, seed: int) -> None:
        self._shape = shape
        self.chance = random.Random(seed)  # noqa: S311 -- A repeatable day, no secret.
        self.minutes = _Minutes(source)
        #: Where in the source's hour the day begins.
        self.offset_s = self.chance.uniform(0, self.minutes.span_s)
        self._peak_s = shape.day_s * self.chance.uniform(0.5, 0.7)
        self._bursts = [_burst(shape, self.chance) for _ in range(round(shape.bursts_per_day))]

    def rate(self, now: float) -> float:
        """Calls a second."""
        profile = _profile(now, self._peak_s, self._shape) * (1 + sum(burst.factor(now) for burst in self._bursts))
        return self._shape.top_rate * profile * self.minutes.rate_ratio(now + self.offset_s)


def stretch(source: list[TracedCall], shape: Shape, seed: int) -> Iterator[TracedCall]:
    """A day of calls in order of arrival; the same seed gives the same day."""
    day = Day(source, shape, seed)
    now, next_rate_at, rate = 0.0, 0.0, 0.0
    while True:
        if now >= next_rate_at:
            rate = day.rate(now)
            next_rate_at = now + 1.0
        now += day.chance.expovariate(max(rate, 1e-3))
        if now >= shape.day_s:
            return
        call = day.minutes.draw(now + day.offset_s, day.chance)
        yield TracedCall(now, call.prompt_tokens, call.output_tokens)


def _profile(now: float, peak_s: float, shape: Shape) -> float:
    """A day's rate as a share of its top: a cosine between night and top."""
    wave = (1 + math.cos(2 * math.pi * (now - peak_s) / shape.day_s)) / 2
    return shape.night_ratio + (1 - shape.night_ratio) * wave


def _burst(shape: Shape, chance: random.Random) -> Burst:
    return Burst(
        chance.uniform(0, shape.day_s),
        chance.uniform(*shape.height),
        chance.uniform(*shape.rise_s),
        chance.uniform(*shape.fade_s),
    )


class _Minutes:
    """The source by minutes, repeated for ever; the last, incomplete one is left out."""

    def __init__(self, source: list[TracedCall]) -> None:
        self._calls = source
        count = int(source[-1].arrived_at // 60)
        arrivals = [call.arrived_at for call in source]
        self.edges = [bisect_left(arrivals, 60.0 * minute) for minute in range(count + 1)]
        self._mean = self.edges[-1] / count
        self.span_s = 60.0 * count

    def rate_ratio(self, time_s: float) -> float:
        """This minute's rate over the mean, joined by straight lines between the minutes' middles."""
        minute, part = divmod(time_s / 60 - 0.5, 1)
        return (1 - part) * self._ratio(int(minute)) + part * self._ratio(int(minute) + 1)

    def _ratio(self, minute: int) -> float:
        first, end = self._bounds(minute)
        return (end - first) / self._mean

    def _bounds(self, minute: int) -> tuple[int, int]:
        minute %= len(self.edges) - 1
        return self.edges[minute], self.edges[minute + 1]

    def draw(self, time_s: float, chance: random.Random) -> TracedCall:
        first, end = self._bounds(int(time_s / 60))
        return self._calls[first + int(chance.random() * (end - first))]
