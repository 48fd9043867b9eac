"""Bodies: errors as clients of OpenAI's and Anthropic's API expect them. The one place where an error becomes bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from msgspec import UNSET, UnsetType

from serving.errors import ApiError, MethodNotAllowed, RateLimitExceeded
from serving.gateway.http.asgi import Header

#: Anthropic names its errors by status (https://docs.anthropic.com/en/api/errors).
ANTHROPIC_TYPES: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    412: "invalid_request_error",
    413: "request_too_large",
    428: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class OpenAIError(msgspec.Struct):
    """As OpenAI's API has it."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIBody(msgspec.Struct):
    """Why a request was refused, in OpenAI's shape."""

    error: OpenAIError


class AnthropicError(msgspec.Struct):
    """As Anthropic's API has it."""

    type: str
    message: str
    details: Mapping[str, object] | UnsetType = UNSET


class AnthropicBody(msgspec.Struct):
    """Why a request was refused, in Anthropic's shape."""

    type: str
    error: AnthropicError
    request_id: str


def openai_error(error: ApiError) -> OpenAIError:
    """An error as OpenAI's objects hold it."""
    kind = "tokens" if isinstance(error, RateLimitExceeded) and error.counts_tokens else error.type
    return OpenAIError(message=error.message, type=kind, param=error.param, code=error.code)


def openai_body(error: ApiError, request_id: str) -> bytes:
    """The JSON body of an error answer in OpenAI's shape; the request id stands in a header alone."""
    return msgspec.json.encode(OpenAIBody(openai_error(error)))


def anthropic_body(error: ApiError, request_id: str) -> bytes:
    """The JSON body of an error answer in Anthropic's shape."""
    kind = ANTHROPIC_TYPES.get(error.status, "api_error")
    said = AnthropicError(type=kind, message=error.message, details=error.details or UNSET)
    return msgspec.json.encode(AnthropicBody(type="error", error=said, request_id=request_id))


def error_headers(error: ApiError) -> list[Header]:
    """Headers that tell a client what to do next; openai-python reads the first two of the three retry headers."""
    headers: list[Header] = [(b"x-should-retry", b"true" if error.is_retryable else b"false")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after-ms", str(math.ceil(error.retry_after_s * 1000)).encode("ascii")))
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode("ascii")))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode("ascii")))
    return headers
