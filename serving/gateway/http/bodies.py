"""Shapes: errors as clients of OpenAI's and Anthropic's API expect them. The one place where an error becomes bytes."""

from __future__ import annotations

import math

import msgspec

from serving.errors import ApiError
from serving.gateway.dialects.routes import Dialect, StreamKind
from serving.gateway.http.asgi import Header

#: Anthropic names its errors by status (https://docs.anthropic.com/en/api/errors).
ANTHROPIC_TYPES: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class OpenAIError(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIBody(msgspec.Struct):
    error: OpenAIError


class ResponsesErrorEvent(msgspec.Struct):
    """The documented event has its fields flat; openai-python raises on the nested object. Both are sent."""

    type: str
    sequence_number: int
    message: str
    param: str | None
    code: str | None
    error: OpenAIError


class AnthropicError(msgspec.Struct):
    type: str
    message: str


class AnthropicBody(msgspec.Struct):
    type: str
    error: AnthropicError
    request_id: str


def _openai(error: ApiError) -> OpenAIError:
    return OpenAIError(message=error.message, type=error.type, param=error.param, code=error.code)


def _anthropic(error: ApiError, request_id: str) -> AnthropicBody:
    kind = ANTHROPIC_TYPES.get(error.status, "api_error")
    return AnthropicBody(type="error", error=AnthropicError(type=kind, message=error.message), request_id=request_id)


def error_body(error: ApiError, dialect: Dialect, request_id: str) -> bytes:
    """The JSON body of an error answer."""
    if dialect is Dialect.ANTHROPIC:
        return msgspec.json.encode(_anthropic(error, request_id))
    return msgspec.json.encode(OpenAIBody(_openai(error)))


def error_headers(error: ApiError) -> list[Header]:
    """Headers that tell a client what to do next; openai-python reads the first two of the three retry headers."""
    headers: list[Header] = [(b"x-should-retry", b"true" if error.is_retryable else b"false")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after-ms", str(math.ceil(error.retry_after_s * 1000)).encode("ascii")))
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode("ascii")))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def error_event(error: ApiError, kind: StreamKind, request_id: str, events_sent: int) -> bytes:
    """The end of a stream that failed after its start: an event a client raises on, never an empty success."""
    if kind is StreamKind.MESSAGES:
        return b"event: error\ndata: " + msgspec.json.encode(_anthropic(error, request_id)) + b"\n\n"
    if kind is StreamKind.RESPONSES:
        event = ResponsesErrorEvent(
            type="error",
            sequence_number=events_sent,
            message=error.message,
            param=error.param,
            code=error.code,
            error=_openai(error),
        )
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    return b"data: " + msgspec.json.encode(OpenAIBody(_openai(error))) + b"\n\ndata: [DONE]\n\n"
