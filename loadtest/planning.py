"""Planning: from what was asked for on the command line to every session of the run, before anything is sent."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from loadtest import arrivals
from loadtest.arrivals import Rate
from loadtest.workload import Kind, Limits, Session, cut, replayed, sessions
from serving.errors import Refusal

SHAPES = ("steady", "ramp", "diurnal", "burst", "replay")
#: More would not fit in memory, and their report would take too long.
MAX_SESSIONS = 1_000_000


class Wish(msgspec.Struct, frozen=True):
    """A shape as it was asked for. Rates are sessions a second; the shape's highest but for bursts."""

    shape: str
    duration_s: float
    rate_per_s: float = 0.0
    first_rate_per_s: float = 0.0
    steps: int = 6
    trace: Path | None = None
    every: int = 1
    speed: float = 1.0
    seed: int = 1


class Plan(msgspec.Struct, frozen=True):
    """What is sent, and when."""

    sessions: tuple[Session, ...]
    said: str
    #: Equal parts with a rate of their own; 0 for shapes that have none.
    steps: int = 0
    notes: tuple[str, ...] = ()


def plan(wish: Wish, mix: Mapping[Kind, float], limits: Limits) -> Plan:
    """Every session of the run; the same wish and seed give the same. Raises Refusal when there would be none."""
    made = _replay(wish, limits) if wish.shape == "replay" else _drawn(wish, mix, limits)
    if not made.sessions:
        raise Refusal("Not one session is due within this run: make it longer, or its rate higher.")
    return made


def _drawn(wish: Wish, mix: Mapping[Kind, float], limits: Limits) -> Plan:
    if wish.rate_per_s <= 0:
        raise Refusal(f"The shape {wish.shape} needs its rate: give --rate in sessions a second.")
    rate, said = RATES[wish.shape](wish)
    if arrivals.top_of(rate, wish.duration_s) * wish.duration_s > MAX_SESSIONS:
        raise Refusal(f"That may be more than {MAX_SESSIONS} sessions: make the run shorter, or its rate lower.")
    chance = random.Random(wish.seed)  # noqa: S311 -- A repeatable run, no secret.
    due = list(arrivals.instants(rate, wish.duration_s, chance))
    steps = wish.steps if wish.shape == "ramp" else 0
    return Plan(tuple(sessions(due, mix, limits, chance)), f"{said} for {wish.duration_s:g} s", steps)


def _steady(wish: Wish) -> tuple[Rate, str]:
    return arrivals.steady(wish.rate_per_s), f"steady {wish.rate_per_s:g} sessions/s"


def _ramp(wish: Wish) -> tuple[Rate, str]:
    first, last = wish.first_rate_per_s or wish.rate_per_s / wish.steps, wish.rate_per_s
    rate = arrivals.ramp(first, last, wish.steps, wish.duration_s)
    return rate, f"ramp from {first:g} to {last:g} sessions/s in {wish.steps} steps"


def _diurnal(wish: Wish) -> tuple[Rate, str]:
    return arrivals.diurnal(wish.rate_per_s, wish.duration_s), f"a day with {wish.rate_per_s:g} sessions/s at its top"


def _burst(wish: Wish) -> tuple[Rate, str]:
    return arrivals.bursts(wish.rate_per_s, wish.duration_s), f"bursts over {wish.rate_per_s:g} sessions/s"


RATES: Mapping[str, Callable[[Wish], tuple[Rate, str]]] = {
    "steady": _steady,
    "ramp": _ramp,
    "diurnal": _diurnal,
    "burst": _burst,
}


def _replay(wish: Wish, limits: Limits) -> Plan:
    if wish.trace is None:
        raise Refusal("The shape replay needs a trace: give --trace FILE.")
    calls = arrivals.replay(arrivals.read_trace(wish.trace), wish.duration_s, wish.every, wish.speed)
    if len(calls) > MAX_SESSIONS:
        raise Refusal(
            f"That is more than {MAX_SESSIONS} sessions: make the run shorter, or take every n-th with --every."
        )
    made = replayed(calls, limits)
    shorter = cut(made, calls, limits.scale)
    notes = (f"{shorter} of {len(made)} calls were cut: the model's context is shorter than the trace's.",)
    said = (
        f"replay of {wish.trace.name}, every {wish.every}. call at {wish.speed:g} times its pace, {wish.duration_s:g} s"
    )
    return Plan(tuple(made), said, notes=notes if shorter else ())
