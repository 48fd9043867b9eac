"""Documented: the keys of each API's answers, as its own reference has them. An engine's other keys are left out.

tests/engine holds the names against openai-python's and anthropic's types and against vLLM's classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Document = dict[str, Any]
#: A key → the keys inside its value; None where that passes as it is.
Shape = Mapping[str, "Shape | None"]


def pruned(value: Any, shape: Shape | None) -> Any:
    """A JSON value with the keys of `shape` and no others; lists item by item."""
    if shape is None:
        return value
    if isinstance(value, list):
        return [pruned(item, shape) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: inner if inner is None or (inside := shape[name]) is None else pruned(inner, inside)
        for name, inner in value.items()
        if name in shape
    }


def read(body: bytes, shape: Shape) -> Document | None:
    """An answer's documented part; None for what is no JSON object."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return pruned(document, shape) if isinstance(document, dict) else None


def _names(*names: str) -> Shape:
    return dict.fromkeys(names)


CHAT_USAGE: Shape = {
    **_names("prompt_tokens", "completion_tokens", "total_tokens"),
    "prompt_tokens_details": _names(
        "cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens"
    ),
    "completion_tokens_details": _names(
        "reasoning_tokens", "audio_tokens", "text_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"
    ),
}
_CALL: Shape = {**_names("id", "type"), "function": _names("name", "arguments")}
#: `reasoning` and its older name are this service's own, and documented as such.
MESSAGE: Shape = {
    **_names("role", "content", "refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content"),
    "tool_calls": _CALL,
}
DELTA: Shape = {
    **_names("role", "content", "refusal", "function_call", "reasoning", "reasoning_content"),
    "tool_calls": {**_CALL, "index": None},
}
CHAT: Shape = {
    **_names("id", "object", "created", "model", "service_tier", "system_fingerprint"),
    "choices": {**_names("index", "logprobs", "finish_reason"), "message": MESSAGE, "delta": DELTA},
    "usage": CHAT_USAGE,
}
COMPLETION: Shape = {
    **_names("id", "object", "created", "model", "system_fingerprint"),
    "choices": _names("index", "text", "logprobs", "finish_reason"),
    "usage": CHAT_USAGE,
}

_PART: Shape = _names("type", "text", "annotations", "logprobs", "refusal")
#: Any item of a response's output.
ITEM: Shape = {
    **_names("id", "type", "status", "role", "phase", "encrypted_content", "call_id", "name", "arguments", "namespace"),
    **_names("async", "caller"),
    "content": _PART,
    "summary": _names("type", "text"),
}
RESPONSE: Shape = {
    **_names("id", "object", "created_at", "completed_at", "status", "error", "incomplete_details", "model"),
    **_names("instructions", "metadata", "parallel_tool_calls", "temperature", "top_p", "tool_choice", "tools", "text"),
    **_names("background", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt", "reasoning"),
    **_names("service_tier", "top_logprobs", "truncation", "user"),
    **_names("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "conversation"),
    "output": ITEM,
    "usage": {
        **_names("input_tokens", "output_tokens", "total_tokens"),
        "input_tokens_details": _names("cached_tokens", "cache_write_tokens"),
        "output_tokens_details": _names("reasoning_tokens"),
    },
}
INPUT_TOKENS: Shape = _names("object", "input_tokens")

ANTHROPIC_USAGE: Shape = _names(
    "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens_details"
)
MESSAGES: Shape = {
    **_names("id", "type", "role", "model", "stop_reason", "stop_sequence"),
    "content": _names("type", "text", "citations", "id", "name", "input", "thinking", "signature", "data"),
    "usage": ANTHROPIC_USAGE,
}
COUNT_TOKENS: Shape = _names("input_tokens", "context_management")
