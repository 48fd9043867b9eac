"""Translation: an engine's errors in our words. What they say about the request is passed on, scrubbed; what they say about the
engine is not.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from serving.errors import (
    ApiError,
    ContextExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    RequestTooLarge,
)
from serving.gateway.dialects.call import Call

#: Characters of an engine's sentence that are passed on.
MESSAGE_CHARS_MAX = 600
ENGINE_FAILED = "The engine failed while answering; please try again."

_CONTEXT = re.compile(
    r"maximum context length|exceeds the max_model_len|maximum model length|exceeds model's maximum", re.IGNORECASE
)
_CANNOT = re.compile(r"does not support|not supported by (?:this|the) model", re.IGNORECASE)
#: Addresses, paths, object addresses and tracebacks.
_INNER = (
    (re.compile(r"Traceback \(most recent call last\).*", re.DOTALL), ""),
    (re.compile(r'\s*File "[^"]*", line \d+[^\n]*'), ""),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE), "<address>"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "<address>"),
    (re.compile(r"\blocalhost:\d+\b"), "<address>"),
    (re.compile(r"(?<![\w.])/(?:[\w.@+-]+/)+[\w.@+-]*"), "<path>"),
    (re.compile(r" at 0x[0-9a-fA-F]+"), ""),
)
_PYDANTIC_TEXT = re.compile(r"'msg': (?:'([^']*)'|\"([^\"]*)\")")


class _EngineError(msgspec.Struct):
    message: str = ""
    type: str = ""
    param: str | None = None
    code: int | str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


class Blame(StrEnum):
    """What an engine's refusal says about its replica."""

    #: The request is at fault; every replica would say the same.
    REQUEST = "request"
    #: This replica cannot take it now; another, or this one later, may.
    BUSY = "busy"
    #: This replica failed; another may not.
    REPLICA = "replica"


def blame(status: int) -> Blame:
    """What a status says is at fault. 401 and 403 concern our plane secret, never the client."""
    if status in (429, 503):
        return Blame.BUSY
    if status in (400, 404, 413, 422, 501):
        return Blame.REQUEST
    return Blame.REPLICA


def refusal(status: int, body: bytes, call: Call) -> ApiError:
    """The error a client gets for an engine's refusal of its request."""
    said = _read(body)
    message = scrubbed(said.message)
    if status == 501 or (status == 404 and "does not exist" not in said.message) or _CANNOT.search(said.message):
        return InvalidRequest(f"The model '{call.model}' does not support {call.dialect.path}.", param="model")
    if status == 404:
        return ModelNotFound(call.model)
    if status == 413:
        return RequestTooLarge("The request is too large for this model.")
    if _CONTEXT.search(said.message):
        return ContextExceeded(message, param=call.dialect.prompt_field)
    return InvalidRequest(message or "The model cannot serve this request.", param=_param(said.param))


def in_stream(data: bytes, call: Call) -> ApiError:
    """The error behind an error event of an engine's stream."""
    said = _read(data)
    if said.code in (400, 422) and said.type not in ("InternalServerError", "internal_error"):
        return refusal(400, data, call)
    return EngineFailed(ENGINE_FAILED)


def scrubbed(message: str) -> str:
    """A sentence without addresses, paths, tracebacks, or the engine's own form of validation errors."""
    if "validation error" in message:
        found = _PYDANTIC_TEXT.search(message)
        message = ((found[1] or found[2]) if found else "") or "A field has a value the model cannot take"
    for pattern, instead in _INNER:
        message = pattern.sub(instead, message)
    return message.strip()[:MESSAGE_CHARS_MAX]


def _param(param: str | None) -> str | None:
    if not param:
        return None
    return scrubbed(param.removeprefix("body."))[:128]


def _read(body: bytes) -> _EngineError:
    try:
        return msgspec.json.decode(body, type=_EngineErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _EngineError()
