"""Responses: `/v1/responses`, called stateless; nothing is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import ApiError, InvalidRequest, UnsupportedParameter
from serving.gateway.dialects import checks
from serving.gateway.dialects.checks import typed
from serving.gateway.dialects.dialect import Body, Dialect, EventStream
from serving.gateway.dialects.fields import Table, honoured, ignored, refused
from serving.gateway.dialects.openai import Details
from serving.gateway.dialects.shapes import FIRST_RESPONSES_EVENT, ResponsesAnswer
from serving.gateway.dialects.tables import (
    DEFAULT_LIMIT,
    FLAG,
    GENERATION_OPERATORS,
    MODEL,
    NO_MEDIA,
    OPENAI_HINTS,
    OPERATORS,
    SAMPLING,
    TEMPLATE,
)
from serving.gateway.http.bodies import OpenAIError, openai_error
from serving.gateway.nouns import Usage


class Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    effort: checks.Effort | UnsetType | None = UNSET
    summary: Literal["auto", "concise", "detailed"] | UnsetType | None = UNSET
    generate_summary: Literal["auto", "concise", "detailed"] | UnsetType | None = UNSET


class TextFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: checks.Name | UnsetType = UNSET
    schema: dict[str, checks.Json] | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class TextConfig(msgspec.Struct, forbid_unknown_fields=True):
    format: TextFormat | UnsetType | None = UNSET
    verbosity: Literal["low", "medium", "high"] | UnsetType | None = UNSET


class ResponsesTool(msgspec.Struct):
    type: str
    name: checks.Name | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    parameters: dict[str, checks.Json] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class ResponsesNamedTool(msgspec.Struct):
    type: Literal["function"]
    name: checks.Name


#: Fields that must be strings, and fields that hold text or parts, by the kind of item.
_ITEM_TEXTS: dict[str, tuple[str, ...]] = {
    "message": ("role",),
    "reasoning": (),
    "function_call": ("name", "arguments", "call_id"),
    "function_call_output": ("call_id",),
}
_ITEM_CONTENTS: dict[str, tuple[str, ...]] = {
    "message": ("content",),
    "reasoning": ("content", "summary"),
    "function_call": (),
    "function_call_output": ("output",),
}
_ITEM_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"})
_ROLES = frozenset({"system", "developer", "user", "assistant"})
_items = typed(str | Annotated[list[dict[str, checks.Json]], Meta(min_length=1, max_length=checks.MESSAGES_MAX)])


def responses_input(name: str, value: Any) -> Any:
    """A string, or input items that need nothing stored and no media."""
    items = _items(name, value)
    if isinstance(items, list):
        for index, item in enumerate(items):
            _check_item(item, f"{name}[{index}]")
    return items


def _check_item(item: dict[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "item_reference":
        raise UnsupportedParameter("Items cannot be referred to: no response is stored here.", param=where)
    if not isinstance(kind, str) or kind not in _ITEM_TEXTS:
        raise UnsupportedParameter(f"Input items of type '{str(kind)[:64]}' are not supported.", param=f"{where}.type")
    for key in _ITEM_TEXTS[kind]:
        if not isinstance(item.get(key), str):
            raise InvalidRequest(f"Invalid value for '{where}.{key}': Expected str.", param=f"{where}.{key}")
    if kind == "message" and item["role"] not in _ROLES:
        raise InvalidRequest(f"Invalid value for '{where}.role'.", param=f"{where}.role")
    for key in _ITEM_CONTENTS[kind]:
        _check_item_content(item.get(key), f"{where}.{key}", is_required=kind != "reasoning")


def _check_item_content(content: Any, where: str, *, is_required: bool) -> None:
    if content is None and is_required:
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where)
    if content is not None and not isinstance(content, str):
        _check_item_parts(content, where)


def _check_item_parts(parts: Any, where: str) -> None:
    if not isinstance(parts, list):
        raise InvalidRequest(f"Invalid value for '{where}': Expected a string or a list of parts.", param=where)
    for index, part in enumerate(parts):
        place = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise InvalidRequest(f"Invalid value for '{place}': Expected an object with a type.", param=place)
        if kind not in _ITEM_PARTS:
            raise checks.unsupported_part(kind, place)
        if kind != "refusal" and not isinstance(part.get("text"), str):
            raise InvalidRequest(f"Invalid value for '{place}.text': Expected str.", param=f"{place}.text")


_responses_tools = typed(Annotated[list[ResponsesTool], Meta(max_length=checks.TOOLS_MAX)])


def responses_tools(name: str, value: Any) -> Any:
    """Function tools; a hosted tool would make the engine reach out."""
    tools: list[ResponsesTool] = _responses_tools(name, value)
    for index, tool in enumerate(tools):
        where = f"{name}[{index}]"
        if tool.type != "function":
            raise UnsupportedParameter(
                f"Tools of type '{tool.type[:64]}' are not supported; only 'function' is.", param=f"{where}.type"
            )
        if tool.name is UNSET:
            raise InvalidRequest(f"Missing required parameter: '{where}.name'.", param=f"{where}.name")
        # The engine's types require both, if only as null.
        tool.parameters = None if tool.parameters is UNSET else tool.parameters
        tool.strict = None if tool.strict is UNSET else tool.strict
    return tools


FIELDS: Table = {
    **MODEL,
    "input": honoured(
        "text or items: messages, reasoning, function calls, their outputs", responses_input, is_required=True
    ),
    "instructions": honoured("text", typed(str)),
    "max_output_tokens": honoured(f"1 or more; includes reasoning; {DEFAULT_LIMIT}", typed(checks.Tokens)),
    "max_tool_calls": honoured("1 or more", typed(checks.Tokens)),
    "metadata": honoured("up to 16 pairs, returned as sent", typed(checks.Metadata)),
    "parallel_tool_calls": honoured("true or false", FLAG),
    "reasoning": honoured("`effort` low, medium or high; `summary`", typed(Reasoning)),
    "include_reasoning": honoured("true or false", FLAG),
    "include": honoured(
        "`reasoning.encrypted_content`, `message.output_text.logprobs`",
        typed(list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]]),
    ),
    "text": honoured("`format`, `verbosity`", typed(TextConfig)),
    "tools": honoured("up to 128 functions", responses_tools),
    "tool_choice": honoured(
        "`none`, `auto`, `required` or one function",
        typed(Literal["none", "auto", "required"] | ResponsesNamedTool),
    ),
    "top_logprobs": honoured("0 to 20", typed(Annotated[int, Meta(ge=0, le=20)])),
    "truncation": honoured("`auto` or `disabled`", typed(Literal["auto", "disabled"])),
    "store": ignored("Nothing is stored; the engine is told false.", FLAG),
    "background": ignored("false is what happens anyway; true is refused.", FLAG),
    "stream_options": ignored("Only `include_obfuscation` exists.", typed(checks.StreamOptions)),
    "previous_response_id": refused("No response is stored here: send the earlier items as input."),
    "conversation": refused("No conversation is stored here: send the earlier items as input."),
    "prompt": refused("No prompt templates are stored here."),
    "background_options": refused("Nothing runs in the background here."),
    "context_management": refused("No context is kept here."),
    "access_programs": refused("No hosted tools run here."),
    "image": refused(NO_MEDIA),
    **{
        name: SAMPLING[name]
        for name in (
            "frequency_penalty",
            "presence_penalty",
            "temperature",
            "top_p",
            "seed",
            "stop",
            "logit_bias",
            "stream",
            "top_k",
            "min_p",
            "repetition_penalty",
            "stop_token_ids",
            "include_stop_str_in_output",
            "skip_special_tokens",
            "structured_outputs",
            "user",
        )
    },
    "chat_template_kwargs": TEMPLATE["chat_template_kwargs"],
    **{name: field for name, field in OPENAI_HINTS.items() if name != "metadata"},
    **OPERATORS,
    "ignore_eos": GENERATION_OPERATORS["ignore_eos"],
    "enable_response_messages": refused("It would show the rendered prompt."),
    "previous_input_messages": refused("Raw messages could forge the operator's instructions."),
}


def _check(body: Body, kept: Body) -> None:
    if body.get("background") is True:
        raise UnsupportedParameter(
            "Unsupported parameter: 'background'. Nothing runs in the background here.", param="background"
        )


def _complete(kept: Body) -> None:
    # The engine's own store is per process and never emptied.
    kept["store"] = False


class ResponsesCounts(msgspec.Struct):
    """`ResponseUsage`."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: Details | None = None
    output_tokens_details: Details | None = None

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.input_tokens,
            completion_tokens=self.output_tokens,
            cached_prompt_tokens=(self.input_tokens_details and self.input_tokens_details.cached_tokens) or 0,
            reasoning_tokens=(self.output_tokens_details and self.output_tokens_details.reasoning_tokens) or 0,
        )


class _ErrorEvent(msgspec.Struct):
    """The documented event has its fields flat; openai-python raises on the nested object. Both are sent."""

    type: str
    sequence_number: int
    message: str
    param: str | None
    code: str | None
    error: OpenAIError


def _error_event(error: ApiError, request_id: str, events_sent: int) -> bytes:
    event = _ErrorEvent(
        type="error",
        sequence_number=events_sent,
        message=error.message,
        param=error.param,
        code=error.code,
        error=openai_error(error),
    )
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


_LAST_EVENTS = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")

RESPONSES = Dialect(
    path="/v1/responses",
    fields=FIELDS,
    answer=ResponsesAnswer,
    counts=ResponsesCounts,
    stream=EventStream(
        opening=FIRST_RESPONSES_EVENT,
        endings=_LAST_EVENTS,
        last_events=_LAST_EVENTS,
        text_event=b".delta\ndata: ",
        error_event=_error_event,
    ),
    check=_check,
    complete=_complete,
    prompt_field="input",
    limit_fields=("max_output_tokens",),
    default_limit_field="max_output_tokens",
)
