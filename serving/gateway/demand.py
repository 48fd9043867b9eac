"""Demand: what this gateway sees of each model's traffic, told to directories with every poll, so that fleets follow it.

Arrivals are summed for ever and read as differences, so that a directory that was silent misses none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from serving.wire import Demand


class Arrivals(msgspec.Struct, frozen=True):
    """Everything that has come in for one model."""

    prompt_tokens: float = 0.0
    output_tokens: float = 0.0


class Reading(msgspec.Struct, frozen=True):
    """What had come in when somebody was last told."""

    at: float
    arrivals: Mapping[str, Arrivals]


class _Held(msgspec.Struct, frozen=True, eq=False):
    """A call that waits because no replica can take it."""

    model: str
    since: float
    prompt_tokens: int


class Demands:
    """The demand for every model; models are few, because only names that a fleet lists are counted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._arrivals: dict[str, Arrivals] = {}
        self._held: dict[int, _Held] = {}

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

    @property
    def held_requests(self) -> int:
        return len(self._held)

    def read(self) -> Reading:
        """All arrivals up to now."""
        return Reading(self._clock(), dict(self._arrivals))

    def since(self, before: Reading, now: Reading) -> dict[str, Demand]:
        """The demand between two readings, with those who wait at the second."""
        elapsed_s = max(now.at - before.at, 1e-3)
        models = now.arrivals.keys() | {call.model for call in self._held.values()}
        return {model: self._one(model, before, now, elapsed_s) for model in models}

    def _one(self, model: str, before: Reading, now: Reading, elapsed_s: float) -> Demand:
        held = [call for call in self._held.values() if call.model == model]
        first, last = (reading.arrivals.get(model, Arrivals()) for reading in (before, now))
        return Demand(
            waiting_requests=len(held),
            oldest_wait_s=max((now.at - call.since for call in held), default=0.0),
            waiting_prompt_tokens=sum(call.prompt_tokens for call in held),
            arrived_prompt_tokens_per_s=(last.prompt_tokens - first.prompt_tokens) / elapsed_s,
            expected_output_tokens_per_s=(last.output_tokens - first.output_tokens) / elapsed_s,
        )


def shared(demand: Demand, cells: int) -> Demand:
    """One cell's share of a model that several serve; whoever waits is everybody's until somebody takes him."""
    if cells <= 1:
        return demand
    return msgspec.structs.replace(
        demand,
        waiting_prompt_tokens=demand.waiting_prompt_tokens // cells,
        arrived_prompt_tokens_per_s=demand.arrived_prompt_tokens_per_s / cells,
        expected_output_tokens_per_s=demand.expected_output_tokens_per_s / cells,
    )
