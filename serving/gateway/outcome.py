"""Outcome: how a request ended, in the words of the log, the ledger and the metrics."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from serving.errors import ApiError, InternalError
from serving.gateway.http.asgi import ClientLeft


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    #: The client's mistake: a 4xx.
    REJECTED = "rejected"
    #: Ours, or an engine's: a 5xx, or an error event in a stream.
    FAILED = "error"
    #: The client left.
    DISCONNECTED = "client_disconnected"
    #: This gateway stopped first.
    CANCELLED = "cancelled"


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
