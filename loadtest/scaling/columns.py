"""Columns: a day of calls as arrays, for `compiled`. The days of `traces`, or of the same shape and far more calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest.scaling.traces import Day, Shape, TracedCall

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Calls(NamedTuple):
    """Calls in order of arrival; a run writes `first_token_at`."""

    arrived_at: Floats
    prompt_tokens: Integers
    output_tokens: Integers
    first_token_at: Floats


def columns(calls: Iterable[TracedCall]) -> Calls:
    """These calls."""
    rows = np.array([(call.arrived_at, call.prompt_tokens, call.output_tokens) for call in calls]).reshape(-1, 3)
    return Calls(rows[:, 0].copy(), rows[:, 1].astype(np.int64), rows[:, 2].astype(np.int64), np.zeros(len(rows)))


def drawn(source: list[TracedCall], shape: Shape, seed: int) -> Calls:
    """A day as `traces.stretch` makes it, with the same rates at every second and other calls, drawn all at once."""
    day, dice = Day(source, shape, seed), np.random.default_rng(seed)
    rates = [day.rate(float(second)) for second in range(int(shape.day_s))]
    counts = dice.poisson(rates)
    arrived = np.sort(np.repeat(np.arange(len(rates), dtype=float), counts) + dice.random(counts.sum()))
    edges = np.array(day.minutes.edges)
    minute = ((arrived + day.offset_s) / 60).astype(np.int64) % (len(edges) - 1)
    drawn = edges[minute] + (dice.random(len(arrived)) * (edges[minute + 1] - edges[minute])).astype(np.int64)
    prompts = np.array([call.prompt_tokens for call in source])[drawn]
    outputs = np.array([call.output_tokens for call in source])[drawn]
    return Calls(arrived, prompts, outputs, np.zeros(len(arrived)))
