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
_LIMIT = re.compile(r"(?:maximum (?:context|model) length|max_model_len)[ =(]*(?:is |of )?(\d+)")
_PROMPT = re.compile(r"Input length \((\d+)\)|contains (?:(at least) )?(\d+) input tokens")
_OUTPUT = re.compile(r"max_\w*tokens=(\d+) cannot be greater than max_model_len=(\d+)")
#: How vLLM ends sentences about a field.
_PARAMETER = re.compile(r"\s*\(parameter=([\w.\[\]]+)(?:, value=[^)]*)?\)\s*$")
#: Sentences about the engine's own flags, files and parts.
_INTERNAL = re.compile(r"(?<!\w)--[a-z]|\.(?:cc|cpp|cu|h|py):\d|Check failed|\w+_config\b|pydantic|vllm", re.IGNORECASE)
_GRAMMAR = re.compile(r"structural.?tag|grammar_|Check failed", re.IGNORECASE)
#: Fields of a request that an engine compiles.
_COMPILED = ("tools", "response_format", "structured_outputs", "text", "output_config")
#: vLLM's Messages stream does not understand its own error, and quotes the ends of it.
_WRAPPED = re.compile(r"'code': (4\d\d)\}")
#: Sentences about a whole API; other things that a model does not support are named by the engine.
_CANNOT = re.compile(r"does not support [\w ]+ API\b|not supported by (?:this|the) model", re.IGNORECASE)
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
    if status == 501 or (status == 404 and "does not exist" not in said.message) or _CANNOT.search(said.message):
        return InvalidRequest(f"The model '{call.model}' does not support {call.dialect.path}.", param="model")
    if status == 404:
        return ModelNotFound(call.model)
    if status == 413:
        return RequestTooLarge("The request is too large for this model.")
    if output := _OUTPUT.search(said.message):
        return _too_much(int(output[1]), int(output[2]), call)
    if _CONTEXT.search(said.message):
        return ContextExceeded(_too_long(said.message, call), param=call.dialect.prompt_field)
    return _invalid(said, call)


def _too_much(wanted: int, limit: int, call: Call) -> InvalidRequest:
    """A client's own limit on the output exceeds the context. OpenAI's words."""
    body = msgspec.json.decode(call.body, type=dict[str, msgspec.Raw])
    field = next((name for name in call.dialect.limit_fields if name in body), "max_tokens")
    return InvalidRequest(
        f"{field} is too large: {wanted}. This model supports at most {limit} tokens, prompt included.", param=field
    )


def _too_long(said: str, call: Call) -> str:
    """The API's own sentence about a prompt that is too long, which its clients look for."""
    limit, prompt = _LIMIT.search(said), _PROMPT.search(said)
    if limit is None:
        return scrubbed(said)
    tokens = f"more than {limit[1]}" if prompt is None else " ".join(filter(None, prompt.groups()))
    return call.dialect.too_long.format(limit=limit[1], prompt=tokens)


def _invalid(said: _EngineError, call: Call) -> InvalidRequest:
    """Any other fault of a request, in the engine's words where they are about the request, else in ours."""
    about = _PARAMETER.search(said.message)
    param = _param(said.param or (about[1] if about else None))
    if _GRAMMAR.search(said.message):
        body = msgspec.json.decode(call.body, type=dict[str, msgspec.Raw])
        fields = [name for name in _COMPILED if name in body]
        where = " or ".join(f"'{name}'" for name in fields) or "the request"
        return InvalidRequest(
            f"A schema or pattern in {where} cannot be compiled.", param=fields[0] if len(fields) == 1 else param
        )
    if _INTERNAL.search(said.message):
        named = next((name for name in re.findall(r"\w+", said.message) if name in call.dialect.fields), param)
        what = f"what '{named}' asks for" if named else "this request"
        return InvalidRequest(f"The model cannot do {what}.", param=named)
    message = scrubbed(_PARAMETER.sub("", said.message))
    return InvalidRequest(message or "The model cannot serve this request.", param=param)


def in_stream(data: bytes, call: Call) -> ApiError:
    """The error behind an error event of an engine's stream."""
    said = _read(data)
    if is_wrapped(data):
        return InvalidRequest("The model cannot serve this request.")
    if said.code in (400, 422) and said.type not in ("InternalServerError", "internal_error"):
        return refusal(400, data, call)
    return EngineFailed(ENGINE_FAILED)


def is_wrapped(data: bytes) -> bool:
    """Does an error event quote a fault of the request, without the engine's words for it?"""
    said = _read(data)
    return "validation error" in said.message and _WRAPPED.search(said.message) is not None


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
