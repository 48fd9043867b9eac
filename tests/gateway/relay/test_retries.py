"""Retries: a budget for each model, so that failing calls do not multiply, and a jittered pause before each."""

from __future__ import annotations

from serving.gateway.relay.retries import FIRST_RETRIES, KEPT_RETRIES_MAX, LONGEST_PAUSE_S, Retries


def attempts(retries: Retries, calls: int, tries_each: int = 3) -> int:
    """What engines get of calls that all fail, each tried so often at most."""
    total = 0
    for _ in range(calls):
        retries.arrive("m")
        total += 1 + sum(retries.take("m") for _ in range(tries_each - 1))
    return total


def test_a_fleet_that_fails_everywhere_gets_a_share_more_than_the_calls() -> None:
    """1.2 times the calls, and the few that a model has before any call."""
    assert 1200 < attempts(Retries(0.2), 1000) <= 1200 + FIRST_RETRIES


def test_models_have_budgets_of_their_own() -> None:
    """One whose fleet fails does not take the retries of another."""
    retries = Retries(0.2)
    attempts(retries, 100)
    assert not retries.take("m") and retries.take("another")


def test_a_healthy_time_saves_the_calls_of_one_engine_and_no_more() -> None:
    """When it dies with all of them each may go elsewhere."""
    retries = Retries(0.2)
    for _ in range(10_000):
        retries.arrive("m")
    granted = sum(retries.take("m") for _ in range(10_000))
    assert granted == KEPT_RETRIES_MAX


def test_pauses_grow_and_are_spread() -> None:
    """By the randomness that is passed in, up to the longest."""
    longest = [Retries(0.2, lambda: 1.0).pause_s(retry) for retry in range(1, 12)]
    assert longest[:3] == [0.05, 0.1, 0.2] and longest[-1] == LONGEST_PAUSE_S
    assert Retries(0.2, lambda: 0.5).pause_s(1) == 0.025 and Retries(0.2, lambda: 0.0).pause_s(9) == 0.0
