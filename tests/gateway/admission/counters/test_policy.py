"""Policy: exact buckets, windows and open calls; all draws of a call or none."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.admission.counters import policy
from serving.gateway.admission.counters.counter import PERIOD_MAX_US, Draw, Kind, Verdict
from serving.gateway.admission.counters.policy import NEW, State
from serving.gateway.policies import COUNT_MAX

MINUTE_US = 60_000_000
MIDNIGHT_US = 1_800_000_000_000_000
LIMITS = st.one_of(st.integers(1, 200), st.integers(1, COUNT_MAX))
PERIODS = st.one_of(st.just(MINUTE_US), st.integers(1, PERIOD_MAX_US))


def rate(limit: int, amount: int = 1, period_us: int = MINUTE_US) -> Draw:
    return Draw("t/requests", Kind.RATE, limit, amount, period_us=period_us)


def window(limit: int, amount: int = 1, ends_at_us: int = MIDNIGHT_US) -> Draw:
    return Draw("t/day", Kind.WINDOW, limit, amount, ends_at_us=ends_at_us)


def opening(limit: int) -> Draw:
    return Draw("t/open", Kind.OPEN, limit, 1)


def decide(draw: Draw, state: State, now_us: int) -> tuple[Verdict, State]:
    verdict, (after,) = policy.decide([draw], [state], now_us)
    return verdict, after


def test_a_bucket_starts_full_and_refills_evenly() -> None:
    """Sixty a minute: sixty at once, then one a second, and all sixty again after a minute of rest."""
    state, now_us = NEW, MIDNIGHT_US
    for left in range(59, -1, -1):
        verdict, state = decide(rate(60), state, now_us)
        assert verdict.refused is None and verdict.levels[0].remaining == left
    verdict, state = decide(rate(60), state, now_us)
    assert (verdict.refused, verdict.retry_in_us, verdict.levels[0].resets_in_us) == (0, 1_000_000, MINUTE_US)
    assert decide(rate(60), state, now_us + 999_999)[0].retry_in_us == 1
    assert decide(rate(60), state, now_us + 1_000_000)[0].refused is None
    assert decide(rate(60, 60), state, now_us + MINUTE_US)[0].refused is None


@given(
    LIMITS, PERIODS, st.lists(st.tuples(st.integers(0, 3 * PERIOD_MAX_US), st.floats(0, 1)), min_size=1, max_size=12)
)
@settings(max_examples=300)
def test_a_bucket_is_exact(limit: int, period_us: int, calls: list[tuple[int, float]]) -> None:
    """No unit is lost or won by rounding, however long it goes on: it is the bucket of the textbook, in fractions, seen in units."""
    state, now_us = NEW, MIDNIGHT_US
    lacks, since_us = Fraction(0), now_us
    for later_us, part in calls:
        now_us += later_us
        draw = rate(limit, max(1, int(part * limit)), period_us)
        lacks = max(Fraction(0), lacks - Fraction((now_us - since_us) * limit, period_us))
        since_us = now_us
        fits = -(-lacks.numerator // lacks.denominator) + draw.amount <= limit
        verdict, state = decide(draw, state, now_us)
        assert (verdict.refused is None) == fits
        if fits:
            lacks += draw.amount
            assert state.value <= 2 * limit and state.moment_us > now_us - period_us


@given(LIMITS, PERIODS, st.floats(0, 1), st.integers(0, PERIOD_MAX_US), st.integers(0, 10**9))
def test_a_refusal_says_to_the_microsecond_when_it_ends(
    limit: int, period_us: int, part: float, later_us: int, debt: int
) -> None:
    """A microsecond earlier it is refused again; then it is taken."""
    draw = rate(limit, max(1, int(part * limit)), period_us)
    now_us = MIDNIGHT_US + later_us
    state = policy.take(draw, NEW, limit + debt, MIDNIGHT_US)
    verdict, after = decide(draw, state, now_us)
    if verdict.refused is None:
        return
    assert after == state and verdict.retry_in_us is not None and verdict.retry_in_us > 0
    due_us = now_us + verdict.retry_in_us
    assert decide(draw, state, due_us - 1)[0].retry_in_us == 1
    assert decide(draw, state, due_us)[0].refused is None


def test_more_than_a_limit_is_never_taken() -> None:
    """Not even by a full bucket or an empty window; a limit of 0 takes nothing at all. No time to come back at is named."""
    for draw in (rate(10, 11), window(10, 11), rate(0, 0), window(0, 0), opening(0)):
        verdict, _ = decide(draw, State(0, MIDNIGHT_US), MIDNIGHT_US - 5)
        assert (verdict.refused, verdict.retry_in_us) == (0, None)


def test_a_window_is_full_until_it_ends() -> None:
    """What is settled and what is reserved count alike."""
    state = State(5, MIDNIGHT_US, held=3)
    verdict, after = decide(window(10, 2), state, MIDNIGHT_US - 7)
    assert after == State(5, MIDNIGHT_US, held=5) and verdict.levels[0].remaining == 0
    verdict, unchanged = decide(window(10), after, MIDNIGHT_US - 7)
    assert (verdict.refused, verdict.retry_in_us, verdict.levels[0].resets_in_us, unchanged) == (0, 7, 7, after)


def test_a_window_that_is_over_is_left_alone() -> None:
    """A gateway whose clock is late draws on yesterday's; and a call of yesterday's is settled today: today's count is not theirs."""
    today = State(9, MIDNIGHT_US + 1, held=1)
    assert decide(window(10, 5), today, MIDNIGHT_US)[0].refused is None
    assert decide(window(10, 5), today, MIDNIGHT_US)[1] == today
    assert policy.settle(window(10, 5), today, 5, 3, MIDNIGHT_US) == today


def test_open_calls_are_counted_until_they_are_over() -> None:
    """No one can say when a place becomes free."""
    state = decide(opening(1), NEW, 0)[1]
    verdict, same = decide(opening(1), state, 0)
    assert (verdict.refused, verdict.retry_in_us, same) == (0, None, state)
    assert policy.settle(opening(1), state, 1, 1, 0) == NEW


def test_all_draws_are_taken_or_none() -> None:
    """One that is refused is named; the others are as if the call had not come."""
    draws = [rate(10), window(10, 10), opening(5)]
    states = [NEW, State(1, MIDNIGHT_US), State(held=2)]
    verdict, after = policy.decide(draws, states, MIDNIGHT_US - 1)
    assert verdict.refused == 1 and after == states
    assert [level.remaining for level in verdict.levels] == [10, 9, 3]


@pytest.mark.parametrize(
    ("draws", "states", "named", "retry_in_us"),
    [
        ([rate(60), rate(6)], [State(60, 0), State(6, 0)], 1, 10_000_000),
        ([rate(6), rate(60)], [State(6, 0), State(60, 0)], 0, 10_000_000),
        ([rate(60), window(5), rate(6)], [State(60, 0), State(5, MIDNIGHT_US), State(6, 0)], 1, MIDNIGHT_US),
        ([opening(1), rate(60)], [State(held=1), State(60, 0)], 1, 1_000_000),
        ([opening(1), rate(60)], [State(held=1), NEW], 0, None),
        ([rate(60), rate(5, 6)], [State(60, 0), NEW], 1, None),
        ([rate(60), rate(60)], [State(60, 0), State(60, 0)], 0, 1_000_000),
    ],
)
def test_of_several_refusals_the_longest_is_named(
    draws: list[Draw], states: list[State], named: int, retry_in_us: int | None
) -> None:
    """A client that comes back when it says so is not refused again for another that it was not told of."""
    verdict, _ = policy.decide(draws, states, 0)
    assert (verdict.refused, verdict.retry_in_us) == (named, retry_in_us)
    if retry_in_us is not None and not states[0].held:
        due = [
            State(0, 2 * MIDNIGHT_US) if it.kind is Kind.WINDOW else state
            for it, state in zip(draws, states, strict=True)
        ]
        assert policy.decide(draws, due, retry_in_us)[0].refused is None
        assert retry_in_us == MIDNIGHT_US or policy.decide(draws, due, retry_in_us - 1)[0].refused is not None


def test_what_was_reserved_becomes_what_was_true() -> None:
    """Too much comes back, too little is charged: also when a bucket then lacks more than it holds."""
    draw = rate(100, 80)
    state = decide(draw, NEW, 0)[1]
    assert policy.lacking(draw, policy.settle(draw, state, 80, 10, 0), 0) == 10
    indebted = policy.settle(draw, state, 80, 300, 0)
    assert policy.lacking(draw, indebted, 0) == 300
    assert decide(rate(100), indebted, 0)[0].retry_in_us == 201 * MINUTE_US // 100
    assert policy.settle(window(9), State(2, MIDNIGHT_US, held=5), 5, 3, 0) == State(5, MIDNIGHT_US)


def test_a_bucket_does_not_overflow() -> None:
    """What comes back after the bucket has refilled by itself is no credit."""
    draw = rate(100, 80)
    state = decide(draw, NEW, 0)[1]
    refilled = policy.settle(draw, state, 80, 0, MINUTE_US)
    assert decide(rate(100, 100), refilled, MINUTE_US)[0].levels[0].remaining == 0
    assert decide(rate(100, 101), refilled, MINUTE_US)[0].refused == 0


@pytest.mark.parametrize(
    ("draw", "state", "idle_at_us"),
    [
        (rate(60), State(2, 0), 2_000_000),
        (window(5), State(2, MIDNIGHT_US), MIDNIGHT_US),
    ],
)
def test_a_counter_is_idle_once_a_new_one_would_decide_the_same(draw: Draw, state: State, idle_at_us: int) -> None:
    """A full bucket, a window that is over, no open call."""
    assert not policy.is_idle(draw, state, idle_at_us - 1) and policy.is_idle(draw, state, idle_at_us)
    assert policy.is_idle(opening(1), NEW, 0) and not policy.is_idle(opening(1), State(held=1), 0)


def test_a_clock_that_is_set_back_refills_nothing() -> None:
    """And takes nothing away either."""
    state = State(10, MIDNIGHT_US)
    verdict, _ = decide(rate(10), state, MIDNIGHT_US - 5_000_000)
    assert (verdict.refused, verdict.retry_in_us) == (0, 5_000_000 + MINUTE_US // 10)
