"""Unattended: calls that no client waits for, on the one way through the gateway: gate, limits, fair queue, relay, ledger, audit, log.

What a client would be sent is gathered; how it ended is told before the call is settled, so that what is kept of it goes into the
database with what it cost.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable

import msgspec

from serving.errors import ApiError, InternalError
from serving.gateway.api.inference import Inference
from serving.gateway.api.visit import Visit
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.http.asgi import Message, Request, Responder
from serving.gateway.ledger.ledger import Beside, Ledger
from serving.gateway.nouns import Caller, CallRecord, Route, Usage
from serving.gateway.observe.recorder import Recorder
from serving.gateway.observe.tracing import Tracing

log = logging.getLogger(__name__)


class Asked(msgspec.Struct, frozen=True):
    """One call: who asks for what, on behalf of which batch."""

    dialect: Dialect
    caller: Caller
    body: bytes
    request_id: str
    batch_id: str


class Answered(msgspec.Struct, frozen=True):
    """How a call ended: a whole answer of the dialect, or an error with the body that a client would have got."""

    request_id: str
    status: int
    body: bytes
    usage: Usage
    error: ApiError | None = None
    #: What was to be kept of it is.
    is_kept: bool = False


class Unattended:
    """Asks the gateway itself."""

    def __init__(
        self, inference: Inference, recorder: Recorder, ledger: Ledger, tracing: Tracing, clock: Callable[[], float]
    ) -> None:
        self._inference = inference
        self._recorder = recorder
        self._ledger = ledger
        self._tracing = tracing
        self._clock = clock

    async def answered(self, asked: Asked, keep: Callable[[Answered], Beside | None]) -> Answered:
        """The answer, or the error. What `keep` returns is written with what the call cost when this returns.

        A call of which nothing is kept is made again, or by another gateway: this one is not billed (BAT-7).
        """
        gathered = _Gathered()
        request = Request(_scope(asked), _Body(asked.body).receive)
        responder = Responder(gathered.send, asked.request_id)
        trace = self._tracing.begin(request)
        route = Route(asked.dialect.path, asked.dialect.is_billed)
        record = CallRecord(
            request_id=asked.request_id,
            started_at=self._clock(),
            route=route,
            trace_id=trace.trace_id,
            batch_id=asked.batch_id,
        )
        visit = Visit(request, responder, record, trace, self._clock)
        try:
            error = await self._ended(asked, visit)
        except asyncio.CancelledError as stopped:
            record.usage = Usage()
            self._recorder.settle(record, responder, trace, stopped)
            raise
        answered = _answered(asked, record, gathered, error)
        beside = keep(answered)
        if beside is None:
            record.usage = Usage()
        kept = self._ledger.accompany(record, beside) if beside is not None and record.entry_id else None
        self._recorder.settle(record, responder, trace, error)
        if kept is not None:
            await kept
        return msgspec.structs.replace(answered, is_kept=kept is not None)

    async def _ended(self, asked: Asked, visit: Visit) -> ApiError | None:
        """How the call ends; None is well."""
        try:
            with self._recorder.open_request():
                await self._inference.serve_line(asked.dialect, asked.caller, visit)
        except ApiError as error:
            return error
        except Exception as bug:  # noqa: BLE001 The outermost edge: a line fails, whatever it was.
            # Where it happened, never its text: that may quote a prompt.
            place = "".join(traceback.format_tb(bug.__traceback__))
            log.error("request %s: unforeseen %s at\n%s", asked.request_id, type(bug).__name__, place)
            return InternalError("The gateway met an internal error.")
        return None


class _Gathered:
    """What a client would be sent."""

    def __init__(self) -> None:
        self.body = bytearray()

    async def send(self, message: Message) -> None:
        self.body += message.get("body", b"")


class _Body:
    """Hands a body out, and then waits as a client does."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body or b"", "more_body": False}


def _scope(asked: Asked) -> Message:
    return {"type": "http", "method": "POST", "path": asked.dialect.path, "headers": ()}


def _answered(asked: Asked, record: CallRecord, gathered: _Gathered, error: ApiError | None) -> Answered:
    if error is not None:
        body = asked.dialect.error_body(error, asked.request_id)
        return Answered(asked.request_id, error.status, body, record.usage, error)
    return Answered(asked.request_id, 200, bytes(gathered.body), record.usage)
