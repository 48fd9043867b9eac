"""Demand: what this gateway sees of each model's traffic, reported to directories with every poll, so that fleets follow it.

Arrivals are summed for ever and reported as differences, so that a directory that did not answer misses none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from serving.wire import Traffic


class Arrivals(msgspec.Struct, frozen=True):
    """Everything that has come in for one model."""

    prompt_tokens: float = 0.0
    output_tokens: float = 0.0


class Reading(msgspec.Struct, frozen=True):
    """What had come in at one moment."""

    read_at: float
    arrivals: Mapping[str, Arrivals]


class _Held(msgspec.Struct, frozen=True, eq=False):
    """A call that waits because no replica can take it."""

    model: str
    since: float
    prompt_tokens: int


class Demands:
    """The demand for every model. Only names that a fleet lists may arrive, because whatever has is remembered."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._arrivals: dict[str, Arrivals] = {}
        self._held: dict[int, _Held] = {}
        self._lines: Counter[str] = Counter()

    def arrive(self, model: str, prompt_tokens: int, output_tokens: float) -> None:
        """One call came in, of about so many tokens."""
        before = self._arrivals.get(model, Arrivals())
        self._arrivals[model] = Arrivals(before.prompt_tokens + prompt_tokens, before.output_tokens + output_tokens)

    @contextmanager
    def held(self, model: str, prompt_tokens: int) -> Iterator[None]:
        """One call waits while inside."""
        call = _Held(model, self._clock(), prompt_tokens)
        self._held[id(call)] = call
        try:
            yield
        finally:
            del self._held[id(call)]

    @contextmanager
    def line(self, model: str) -> Iterator[None]:
        """One line of a batch is at an engine while inside: it keeps one there, and is no reason for more."""
        self._lines[model] += 1
        try:
            yield
        finally:
            self._lines[model] -= 1
            if not self._lines[model]:
                del self._lines[model]

    def held_requests(self, model: str) -> int:
        """Calls of this model that wait now."""
        return sum(call.model == model for call in self._held.values())

    def oldest_wait_s(self, model: str) -> float:
        """Seconds the first of them has waited; 0 when none waits."""
        return max((self._clock() - call.since for call in self._held.values() if call.model == model), default=0.0)

    def read(self) -> Reading:
        """All arrivals up to now."""
        return Reading(self._clock(), dict(self._arrivals))

    def since(self, before: Reading, now: Reading) -> dict[str, Traffic]:
        """What came in between two readings, and the calls that wait at the second."""
        models = now.arrivals.keys() | {call.model for call in self._held.values()} | self._lines.keys()
        return {model: self._one(model, before, now) for model in models}

    def _one(self, model: str, before: Reading, now: Reading) -> Traffic:
        held = [call for call in self._held.values() if call.model == model]
        first, last = (reading.arrivals.get(model, Arrivals()) for reading in (before, now))
        return Traffic(
            waiting_requests=len(held),
            oldest_wait_s=max((now.read_at - call.since for call in held), default=0.0),
            waiting_prompt_tokens=sum(call.prompt_tokens for call in held),
            arrived_prompt_tokens=last.prompt_tokens - first.prompt_tokens,
            expected_output_tokens=last.output_tokens - first.output_tokens,
            line_requests=self._lines[model],
        )


def shared(traffic: Traffic, cells: int) -> Traffic:
    """One cell's share of a model that several serve. Waiting calls count in every cell until one of them takes them."""
    if cells <= 1:
        return traffic
    return msgspec.structs.replace(
        traffic,
        waiting_prompt_tokens=traffic.waiting_prompt_tokens // cells,
        arrived_prompt_tokens=traffic.arrived_prompt_tokens / cells,
        expected_output_tokens=traffic.expected_output_tokens / cells,
        line_requests=math.ceil(traffic.line_requests / cells),
    )
