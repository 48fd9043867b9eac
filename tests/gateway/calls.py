"""Calls as the rooms of the gateway know them: bodies, records, and rows in a ledger, without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.gateway.dialects import call as calls
from serving.gateway.dialects.call import Call, Draft
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, CallRecord, Decision, Outcome, Route, Usage
from tests.gateway.places import Place

CHAT_ROUTE = Route("/v1/chat/completions", is_billed=True)
CALLER = Caller("t1", "acme", "k1")
USAGE = Usage(5, 2)

_MESSAGES: dict[str, object] = {"messages": [{"role": "user", "content": "Hello"}]}
#: The least that each API takes.
LEAST: dict[str, dict[str, object]] = {
    "/v1/chat/completions": _MESSAGES,
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/responses/input_tokens": {"input": "Hello"},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/messages": _MESSAGES | {"max_tokens": 5},
    "/v1/messages/count_tokens": _MESSAGES,
    "/tokenize": {"prompt": "Hello"},
}


def draft(dialect: Dialect, **fields: object) -> Draft:
    """The least body of an API with these fields, read; raises InvalidRequest and its kinds."""
    return calls.read(dialect, json.dumps({"model": "m"} | LEAST[dialect.path] | fields).encode())


def call(dialect: Dialect, **fields: object) -> Call:
    """The same as it goes to an engine that serves `m`."""
    return draft(dialect, **fields).finish("m", "salt")


def sent(one: Call) -> dict[str, Any]:
    """The body that the engine gets."""
    body: dict[str, Any] = json.loads(one.body)
    return body


def record(**changed: object) -> CallRecord:
    """A call that ended well after a second, and what is changed of it."""
    plain: dict[str, object] = {
        "request_id": "r",
        "started_at": 0.0,
        "ended_at": 1.0,
        "route": CHAT_ROUTE,
        "caller": CALLER,
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
    one = CallRecord(request_id=request_id, started_at=0.0, route=CHAT_ROUTE, caller=caller, model=model)
    ledger.open(one)
    try:
        yield one
    finally:
        ledger.close(one)


def settle(ledger: Ledger, request_id: str, usage: Usage = USAGE, caller: Caller = CALLER) -> None:
    """A call that ended well."""
    with open_call(ledger, request_id, caller=caller) as one:
        one.usage, one.outcome, one.status = usage, Outcome.OK, 200


def rows(place: Place, columns: str = "request_id, outcome, status") -> list[tuple[object, ...]]:
    """The ledger past the Store, in order of request ids."""
    return place.execute(f"select {columns} from ledger order by request_id")  # noqa: S608 Our own words.
