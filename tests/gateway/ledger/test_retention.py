"""Retention: old rows go, a few at a time, and no others."""

from __future__ import annotations

from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.retention import BUSY_S, REST_S, Retention
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.calls import CALLER, open_call, rows, settle
from tests.gateway.places import Place

DAY_S = 86_400.0
#: Days a row is kept here.
DAYS = 100


def filled(store: Store, clock: Clock, *names: str) -> None:
    with Ledger(store, clock=clock) as ledger:
        for name in names:
            settle(ledger, name)


def test_rows_go_when_they_are_older_than_is_kept(place: Place, store: Store) -> None:
    """By when their calls began; an open one stays, however old."""
    clock = Clock(2e9)
    with Ledger(store, clock=clock) as ledger, open_call(ledger, "open", caller=CALLER):
        settle(ledger, "old")
        clock.advance(DAY_S)
        settle(ledger, "younger")
        ledger.flush()
        clock.advance((DAYS - 1) * DAY_S)
        assert Retention(store, DAYS, clock).sweep_if_due() == 0
        clock.advance(1)
        assert Retention(store, DAYS, clock).sweep_if_due() == 1
        assert rows(place, "request_id") == [("open",), ("younger",)]


def test_without_a_setting_nothing_is_ever_deleted(place: Place, store: Store) -> None:
    """What was deleted can be neither billed nor disputed."""
    clock = Clock(1e9)
    filled(store, clock, "old")
    clock.advance(10_000 * DAY_S)
    assert Retention(store, None, clock).sweep_if_due() == 0
    assert len(rows(place)) == 1


def test_many_go_in_batches_with_a_pause_between(place: Place, store: Store) -> None:
    """The oldest first; others write meanwhile. When none is left the next look comes after a while, and a clock that is set
    back does not end it."""
    clock = Clock(2e9)
    for name in "abc":
        filled(store, clock, name)
        clock.advance(1)
    clock.advance(DAYS * DAY_S)
    sweeps = Retention(store, DAYS, clock, batch_rows=2)
    assert (sweeps.sweep_if_due(), sweeps.sweep_if_due()) == (2, 0)
    assert rows(place, "request_id") == [("c",)]
    clock.advance(BUSY_S)
    assert sweeps.sweep_if_due() == 1
    filled(store, Clock(1e9), "late")
    clock.advance(REST_S - 1)
    assert sweeps.sweep_if_due() == 0
    clock.advance(1)
    assert sweeps.sweep_if_due() == 1
    filled(store, Clock(1e9), "later")
    clock.advance(-5)
    assert sweeps.sweep_if_due() == 1


def test_a_gateway_does_it_beside_its_work(place: Place, store: Store) -> None:
    """Whenever its ledger writes, or would."""
    clock = Clock(2e9)
    filled(store, clock, "old")
    clock.advance(DAYS * DAY_S + 1)
    with Ledger(store, clock=clock, retention_days=DAYS):
        pass
    assert rows(place) == []
