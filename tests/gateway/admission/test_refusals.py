"""Refusals: a key whose calls were refused in bulk is refused at once, for as long as it goes on."""

from __future__ import annotations

import pytest

from serving.errors import ConcurrencyExceeded, GatewayFull, RateLimitExceeded
from serving.gateway.admission.refusals import KEYS_MAX, Refusals
from tests.clock import Clock


class Key:
    """The refusals of one key, of which three are let through."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.refusals = Refusals(3, self.clock, lambda: 0.5)

    def passes(self) -> bool:
        try:
            self.refusals.require("k")
        except GatewayFull:
            return False
        return True

    def refused(self, times: int) -> None:
        for _ in range(times):
            self.refusals.refused("k", GatewayFull("Full."))


def test_so_many_refusals_in_a_row_and_no_more() -> None:
    """The next call is refused unread, with the time after which one may pass; other keys are not."""
    key = Key()
    key.refused(2)
    assert key.passes()
    key.refused(1)
    with pytest.raises(GatewayFull) as refused:
        key.refusals.require("k")
    assert refused.value.retry_after_s == 2.5 and refused.value.is_retryable
    key.refusals.require("another")


def test_calls_that_are_refused_unread_cost_the_key_nothing() -> None:
    """Else a client that never stops would never be served again: one call a second is tried."""
    key = Key()
    key.refused(3)
    assert not any(key.passes() for _ in range(100))
    key.clock.advance(1)
    assert key.passes()


def test_an_admitted_call_earns_a_refusal() -> None:
    """While half of the calls are refused a key goes on: each that is served lets another be tried."""
    key = Key()
    key.refused(3)
    key.clock.advance(1)
    for _ in range(100):
        assert key.passes()
        key.refusals.admitted("k")
        key.refused(1)


def test_the_number_of_keys_is_bounded() -> None:
    """The one that was refused longest ago is forgotten first, and one that has all its refusals at once."""
    key = Key()
    for number in range(KEYS_MAX + 10):
        key.refusals.refused(str(number), GatewayFull("Full."))
    assert len(key.refusals._left) == KEYS_MAX
    key.refusals.admitted(str(KEYS_MAX))
    assert len(key.refusals._left) == KEYS_MAX - 1


def test_a_key_that_met_its_own_limits_is_told_so() -> None:
    """What was refused unread is refused in the same way as what was read: 429 and not 503."""
    key = Key()
    for _ in range(3):
        key.refusals.refused("k", ConcurrencyExceeded("Too many."))
    with pytest.raises(RateLimitExceeded):
        key.refusals.require("k")
