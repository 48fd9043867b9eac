"""Results: what a batch's files say of each line, as OpenAI's do. Pure."""

from __future__ import annotations

import msgspec

from serving.gateway.http.bodies import OpenAIError
from serving.gateway.stored.batches.jsonl import Line, Request


class Response(msgspec.Struct):
    """What a client would have got."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Problem(msgspec.Struct):
    """Why a line was not called."""

    code: str
    message: str


class Result(msgspec.Struct, omit_defaults=False):
    """A line of the output file."""

    id: str
    custom_id: str
    response: Response | None
    error: Problem | None


class Failed(msgspec.Struct):
    """A line of the error file; `line` is its number in the input file."""

    id: str
    custom_id: str
    response: Response | None
    error: Problem | None
    line: int


class _Error(msgspec.Struct):
    error: OpenAIError


EXPIRED = Problem("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = Problem("batch_cancelled", "This request was not executed because the batch was cancelled.")


def rendered(line: Line, request: Request, request_id: str, status: int, body: bytes) -> bytes:
    """The line of either file for a call that was answered, or refused."""
    response = Response(status, request_id, msgspec.Raw(body))
    if status == 200:
        return _lined(Result(request_id, request.custom_id, response, None))
    return _lined(Failed(request_id, request.custom_id, response, None, line.line))


def refused(line: Line, request: Request, request_id: str, error: OpenAIError) -> bytes:
    """The error file's line for a call that was not made."""
    return rendered(line, request, request_id, 400, msgspec.json.encode(_Error(error)))


def left(line: Line, request: Request, request_id: str, problem: Problem) -> bytes:
    """The error file's line for one that the batch did not get to."""
    return _lined(Failed(request_id, request.custom_id, None, problem, line.line))


def _lined(result: Result | Failed) -> bytes:
    return msgspec.json.encode(result) + b"\n"
