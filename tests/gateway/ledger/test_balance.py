"""Balance: completed calls agree with the engine to the token; whatever else may have cost something is named."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from serving.gateway.ledger.balance import NAMED_MAX, Balance, Billed, Counted, Counts, Verdict, Why, billed
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import CallRecord, Outcome, Usage
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.calls import record

#: When the engine started.
START = 2e9
ENGINE = Counted("a", "m", Counts(), started_at=START)


def closed(store: Store, *calls: CallRecord, at: float = START + 10, lasting_s: float = 1.0) -> None:
    clock = Clock(at)
    with Ledger(store, clock=clock, gateway_id="g:1:1") as ledger:
        for call in calls:
            ledger.open(call)
        clock.advance(lasting_s)
        for call in calls:
            ledger.close(call)


def one(request_id: str, **changed: object) -> CallRecord:
    return record(request_id=request_id, **{"usage": Usage(10, 5), **changed})


def test_completed_calls_are_summed_as_their_engine_counted_them(store: Store) -> None:
    """Its own alone; a prompt counts for each of its answers there, and is billed once."""
    closed(store, one("x"), one("y", usage=Usage(7, 1, 4)), one("z", counted_apart="choices=3"))
    closed(store, one("elsewhere", replica_id="b"), one("refused", replica_id=None, outcome=Outcome.REJECTED))
    assert billed(store, ENGINE) == Billed(3, Counts(10 + 7 + 30, 5 + 1 + 5), 0, ())


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"outcome": Outcome.DISCONNECTED, "usage": Usage(10, 5, estimated_by="last_chunk")}, Why.CUT),
        ({"outcome": Outcome.FAILED}, Why.CUT),
        ({"usage": Usage(10, 5, estimated_by="events_seen")}, Why.CUT),
        ({"counted_apart": "stopped_here"}, Why.STOPPED),
        ({"counted_apart": "choices=2,stopped_here"}, Why.STOPPED),
        ({"counted_apart": "continued", "failures": Counter({"broken": 1})}, Why.CONTINUED),
        ({"failures": Counter({"busy": 1})}, Why.RETRIED),
        ({"failures": Counter({"broken": 1}), "replica_id": "b"}, Why.RETRIED),
        ({"failures": Counter({"broken": 1}), "replica_id": "b", "model": "adapter", "base_model": "m"}, Why.RETRIED),
    ],
)
def test_what_may_have_cost_more_is_named(store: Store, changed: dict[str, object], why: Why) -> None:
    """With the reason, and what is billed for it; it is in no sum of completed calls."""
    call = one("x", **changed)
    closed(store, call, one("fine"))
    found = billed(store, ENGINE)
    assert found.completed == Counts(10, 5) and found.suspects == 1
    assert [(it.request_id, it.why) for it in found.named] == [("x", why)]


def test_calls_of_others_explain_nothing(store: Store) -> None:
    """A failed attempt at another model, a call that was cut elsewhere, one that was over before this engine started."""
    other = one("other model", model="n", replica_id="b")
    other.failures["broken"] += 1
    closed(store, other, one("cut elsewhere", replica_id="b", outcome=Outcome.FAILED))
    closed(store, one("before"), one("cut before", outcome=Outcome.FAILED), at=START - 10)
    assert billed(store, ENGINE) == Billed(0, Counts(), 0, ())


def test_a_call_that_waited_for_its_engine_is_its(store: Store) -> None:
    """It began before the engine did. An engine that does not say when it started has all that were ever its."""
    closed(store, one("woke it"), at=START - 10, lasting_s=20)
    closed(store, one("long ago"), at=START - 1000)
    assert billed(store, ENGINE).completed_requests == 1
    assert billed(store, msgspec.structs.replace(ENGINE, started_at=None)).completed_requests == 2


def test_open_calls_and_those_of_a_dead_gateway_are_named(store: Store) -> None:
    """Of which replica they are is not known yet, or never will be."""
    clock = Clock(START + 1)
    ledger = Ledger(store, clock=clock, gateway_id="g:1:1")
    ledger.open(one("open", replica_id=None, model=None))
    ledger.flush()
    assert [it.why for it in billed(store, ENGINE).named] == [Why.OPEN]
    with store.begin() as connection:
        connection.exec_driver_sql("update ledger set outcome = 'gateway_crashed'")
    assert [it.why for it in billed(store, ENGINE).named] == [Why.CRASHED]


def test_so_many_are_named_and_all_are_counted(store: Store) -> None:
    """The newest."""
    for number in range(NAMED_MAX + 2):
        closed(store, one(f"{number:02}", outcome=Outcome.FAILED), at=START + number)
    found = billed(store, ENGINE)
    assert found.suspects == NAMED_MAX + 2 and len(found.named) == NAMED_MAX
    assert found.named[0].request_id == f"{NAMED_MAX + 1:02}"


@pytest.mark.parametrize(
    ("counters", "requests", "unanswered", "suspects", "verdict"),
    [
        ((110, 51), 0, 0, 0, Verdict.EQUAL),
        ((110, 51), 0, 0, 3, Verdict.EQUAL),
        ((110, 52), 0, 0, 0, Verdict.UNEXPLAINED),
        ((110, 52), 0, 0, 1, Verdict.EXPLAINED),
        ((110, 52), 0, 1, 0, Verdict.EXPLAINED),
        ((110, 52), 1, 0, 0, Verdict.BUSY),
        ((110, 51), 1, 0, 0, Verdict.BUSY),
        ((109, 52), 0, 1, 3, Verdict.UNEXPLAINED),
        ((110, 50), 1, 1, 3, Verdict.UNEXPLAINED),
    ],
)
def test_the_verdict_follows_from_what_is_left(
    counters: tuple[int, int], requests: int, unanswered: int, suspects: int, verdict: Verdict
) -> None:
    """An engine that has counted less than was billed is never explained; one that has counted more needs a call that can be why."""
    counted = Counted("a", "m", Counts(*counters), Counts(10, 1), unanswered, requests)
    assert Balance(counted, Billed(9, Counts(100, 50), suspects, ())).verdict is verdict
