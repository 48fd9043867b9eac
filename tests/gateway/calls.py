"""Calls as the rooms of the gateway know them: records, and rows in a ledger, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, CallRecord, Decision, Outcome, Route

CHAT_ROUTE = Route("/v1/chat/completions", is_billed=True)


def record(**changed: object) -> CallRecord:
    """A call that ended well after a second, and what is changed of it."""
    plain: dict[str, object] = {
        "request_id": "r",
        "started_at": 0.0,
        "ended_at": 1.0,
        "route": CHAT_ROUTE,
        "caller": Caller("t1", "acme", "k1"),
        "model": "m",
        "is_model_listed": True,
        "asked_for_engine": True,
        "decision": Decision.ADMITTED,
        "replica_id": "a",
        "status": 200,
        "outcome": Outcome.OK,
    }
    return CallRecord(**plain | changed)  # type: ignore[arg-type]


@contextmanager
def open_call(ledger: Ledger, request_id: str, *, caller: Caller, model: str = "m") -> Iterator[CallRecord]:
    """A call whose row is open while inside, as the inference handler and the recorder keep it."""
    call = CallRecord(request_id=request_id, started_at=0.0, route=CHAT_ROUTE, caller=caller, model=model)
    ledger.open(call)
    try:
        yield call
    finally:
        ledger.close(call)
