"""Recorder: settles every request. Its record is frozen on every way out, and then shown to all that render it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from serving.errors import ApiError, GatewayFull, InternalError
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.prices import Price
from serving.gateway.nouns import CallRecord, ClientLeft, Outcome, Usage
from serving.gateway.observe.activity import Activity
from serving.gateway.observe.metrics import Metrics
from serving.gateway.observe.tracing import Trace

#: The status in logs and ledger of a request whose client left first (nginx's convention; no client receives it).
CLIENT_LEFT_STATUS = 499


class Written(Protocol):
    """What the recorder asks of the answer."""

    #: None until it has begun.
    status: int | None

    @property
    def waited_s(self) -> float: ...


class Recorder:
    """Log line, ledger row, audit, metrics and span of every request."""

    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        write_access: Callable[[CallRecord], None],
        lists_model: Callable[[str], bool],
        price_of: Callable[[str, str | None], Price | None],
        clock: Callable[[], float],
        audit: Callable[[CallRecord], None],
        activity: Activity,
    ) -> None:
        self._ledger = ledger
        self._audit = audit
        self._activity = activity
        self._metrics = metrics
        self._write_access = write_access
        self._lists_model = lists_model
        self._price_of = price_of
        self._clock = clock

    def open_request(self) -> AbstractContextManager[None]:
        """A request is counted as open while inside."""
        return self._metrics.open_request()

    def foresee(self, record: CallRecord, usage: Usage) -> None:
        """The last bytes of an answer go out next: what it has cost is in the ledger then, though this gateway be killed."""
        self._ledger.foresee(record, usage, self._micros(record, usage))

    def settle(self, record: CallRecord, answer: Written, trace: Trace, error: BaseException | None) -> None:
        """A request is over: well, or by `error`. Takes in how, freezes its record, and shows it."""
        record.outcome = outcome_of(error)
        record.reason = reason_of(error)
        record.status = status_of(error, answer.status)
        record.reading_s = answer.waited_s
        record.is_model_listed = record.model is not None and self._lists_model(record.model)
        record.ended_at = self._clock()
        record.price_micros = self._micros(record, record.usage)
        record.freeze()
        self._ledger.close(record)
        self._audit(record)
        self._write_access(record)
        trace.end(record)
        self._metrics.settle(record)
        self._activity.settle(record)

    def _micros(self, record: CallRecord, usage: Usage) -> int | None:
        price = None if record.model is None else self._price_of(record.model, record.base_model)
        return None if price is None else price.micros(usage)


def outcome_of(error: BaseException | None) -> Outcome:
    """What an exception that ends a request, or none, means."""
    if error is None:
        return Outcome.OK
    if isinstance(error, ClientLeft):
        return Outcome.DISCONNECTED
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED
    return Outcome.REJECTED if isinstance(error, ApiError) and error.status < 500 else Outcome.FAILED


def reason_of(error: BaseException | None) -> str:
    """The code of the error that ended a request: one of the tree in `serving.errors`, or nothing."""
    if error is None or isinstance(error, (ClientLeft, asyncio.CancelledError)):
        return ""
    if isinstance(error, ApiError):
        return error.code or error.type
    return str(InternalError.code)


def status_of(error: BaseException | None, sent: int | None) -> int:
    """What the client saw, or would have seen; `sent` is the status of an answer that has begun."""
    if isinstance(error, ClientLeft):
        return CLIENT_LEFT_STATUS
    if sent is not None:
        return sent
    if isinstance(error, asyncio.CancelledError):
        return GatewayFull.status
    return error.status if isinstance(error, ApiError) else InternalError.status
