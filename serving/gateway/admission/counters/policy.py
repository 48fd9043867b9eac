"""Policy: what draws do to counters. Pure: the state, the draws and the time come in, the verdict and the new state go out.

A rate's bucket is exact whatever its limit: it refills by whole units at the microsecond at which each is due, without rounding that
adds up (GCRA, ITU-T I.371, in whole numbers of 53 bits, which Lua and SQL hold too). The names of one decision's draws differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from serving.gateway.admission.counters.counter import Draw, Kind, Level, Verdict


class State(msgspec.Struct, frozen=True, gc=False):
    """What is known of one counter."""

    #: RATE: what its bucket lacked at `moment_us`. WINDOW: what settled calls have taken. OPEN: 0.
    value: int = 0
    #: In microseconds since the epoch. RATE: when `value` was true. WINDOW: when it ends.
    moment_us: int = 0
    #: WINDOW: what open calls have reserved. OPEN: how many there are.
    held: int = 0


# Looked up at each use, they took a tenth of a decision.
_RATE, _WINDOW, _OPEN = Kind.RATE, Kind.WINDOW, Kind.OPEN

#: A counter of which nothing is known: a full bucket, nothing open.
NEW = State()


def is_known(draw: Draw, state: State) -> bool:
    """False for a window that must be read from the ledger first."""
    return draw.kind is not _WINDOW or state.moment_us >= draw.ends_at_us


def is_idle(draw: Draw, state: State, now_us: int) -> bool:
    """Would a new counter in its place decide the same?"""
    if draw.kind is _WINDOW:
        return state.moment_us <= now_us
    return state.held == 0 if draw.kind is _OPEN else lacking(draw, state, now_us) == 0


def decide(draws: Sequence[Draw], states: Sequence[State], now_us: int) -> tuple[Verdict, Sequence[State]]:
    """Take all draws or none. All windows must be known."""
    taken: list[State] = []
    levels: list[Level] = []
    for draw, state in zip(draws, states, strict=True):
        if (found := _taken(draw, state, now_us)) is None:
            return verdict(draws, states, len(taken), now_us), states
        taken.append(found[0])
        levels.append(found[1])
    return Verdict(tuple(levels)), taken


def verdict(draws: Sequence[Draw], states: Sequence[State], refused: int | None, now_us: int) -> Verdict:
    """What is said of a decision that left the counters in these states; `refused` is the first draw that was, if any was.

    Of several that were, the one that is for longest is named: a client that comes back for another would be refused again.
    """
    levels = tuple([level(draw, state, now_us) for draw, state in zip(draws, states, strict=True)])
    if refused is None:
        return Verdict(levels)
    longest = max(range(refused, len(draws)), key=lambda place: _refused_for_us(draws[place], states[place], now_us))
    return Verdict(levels, longest, _retry_in_us(draws[longest], states[longest], now_us))


def take(draw: Draw, state: State, amount: int, now_us: int) -> State:
    """Take `amount` whatever the limit: a bucket may come to lack more than it holds. A window that is over is left alone."""
    if draw.kind is _RATE:
        return _poured(draw, state, amount, now_us)[1]
    if draw.kind is _OPEN:
        return State(0, 0, state.held + 1)
    if state.moment_us != draw.ends_at_us:
        return state
    return State(state.value, state.moment_us, state.held + amount)


def settle(draw: Draw, state: State, taken: int, amount: int, now_us: int) -> State:
    """Have `amount` instead of what was `taken`."""
    if draw.kind is _RATE:
        return _poured(draw, state, amount - taken, now_us)[1]
    if draw.kind is _OPEN:
        return State(0, 0, max(0, state.held - 1))
    if state.moment_us != draw.ends_at_us:
        return state
    return State(state.value + amount, state.moment_us, max(0, state.held - taken))


def lacking(draw: Draw, state: State, now_us: int) -> int:
    """What a rate's bucket lacks now."""
    return max(0, state.value - max(0, now_us - state.moment_us) * draw.limit // draw.period_us)


def level(draw: Draw, state: State, now_us: int) -> Level:
    """What is left."""
    if draw.kind is _RATE:
        # A limit of 0 never fills.
        full_in_us = _due_in_us(draw, state, state.value, now_us) if state.value and draw.limit else 0
        return Level(max(0, draw.limit - lacking(draw, state, now_us)), full_in_us)
    return Level(max(0, draw.limit - state.value - state.held), max(0, state.moment_us - now_us))


def _taken(draw: Draw, state: State, now_us: int) -> tuple[State, Level] | None:
    """The counter once the draw is taken, and what is left of it; None where the draw does not fit."""
    if draw.limit == 0:
        return None
    if draw.kind is _RATE:
        lacks, after = _poured(draw, state, draw.amount, now_us)
        if lacks > draw.limit:
            return None
        return after, Level(draw.limit - lacks, _due_in_us(draw, after, after.value, now_us) if after.value else 0)
    after = take(draw, state, draw.amount, now_us)
    # Windows change at midnight by several clocks: a draw on one that is over has come too late to count.
    is_late = draw.kind is _WINDOW and state.moment_us != draw.ends_at_us
    if not is_late and after.value + after.held > draw.limit:
        return None
    return after, level(draw, after, now_us)


def _refused_for_us(draw: Draw, state: State, now_us: int) -> float:
    """-1: it is not; a call may end at once, so those that are open refuse for no time."""
    if _taken(draw, state, now_us) is not None:
        return -1
    if draw.kind is _OPEN and draw.limit:
        return 0
    retry_in_us = _retry_in_us(draw, state, now_us)
    return math.inf if retry_in_us is None else retry_in_us


def _retry_in_us(draw: Draw, state: State, now_us: int) -> int | None:
    if draw.kind is _OPEN or draw.limit == 0 or draw.amount > draw.limit:
        return None
    if draw.kind is _WINDOW:
        return max(0, state.moment_us - now_us)
    return _due_in_us(draw, state, state.value + draw.amount - draw.limit, now_us)


def _due_in_us(draw: Draw, state: State, units: int, now_us: int) -> int:
    """Microseconds until a rate has refilled so many units since `state.moment_us`."""
    return max(0, state.moment_us + -(-units * draw.period_us // draw.limit) - now_us)


def _poured(draw: Draw, state: State, amount: int, now_us: int) -> tuple[int, State]:
    """A rate's bucket after `amount` was taken, or given back if negative, and what it lacks then: it holds no more than its limit."""
    elapsed_us = max(0, now_us - state.moment_us)
    refilled = elapsed_us * draw.limit // draw.period_us
    lacks = state.value - refilled + amount
    if refilled >= state.value or lacks <= 0:
        return max(0, amount), State(max(0, amount), max(now_us, state.moment_us))
    # Whole periods refill whole limits: the moment moves by these alone, and so no part of a unit is ever lost.
    periods = elapsed_us // draw.period_us
    return lacks, State(state.value - periods * draw.limit + amount, state.moment_us + periods * draw.period_us)
