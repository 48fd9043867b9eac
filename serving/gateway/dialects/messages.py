"""Messages: Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import ApiError, InvalidRequest, UnsupportedParameter
from serving.gateway.dialects import checks
from serving.gateway.dialects.checks import typed
from serving.gateway.dialects.dialect import Body, Dialect, EventStream
from serving.gateway.dialects.fields import Table, honoured, ignored, refused
from serving.gateway.dialects.shapes import FIRST_MESSAGES_EVENT, CountAnswer, MessagesAnswer
from serving.gateway.dialects.tables import (
    FLAG,
    MODEL,
    NO_TIERS,
    NOT_SENT_FOR_PRIVACY,
    NOTHING_CACHED_BY_KEY,
    OPERATORS,
    SAMPLING,
    TEMPLATE,
)
from serving.gateway.http.bodies import anthropic_body
from serving.gateway.nouns import Usage


class AnthropicMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, checks.Json]]


class AnthropicTool(msgspec.Struct):
    name: checks.Name
    input_schema: dict[str, checks.Json]
    type: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class AnthropicToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: checks.Name | UnsetType = UNSET
    disable_parallel_tool_use: bool | UnsetType = UNSET


class Thinking(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1024, le=checks.TOKENS_MAX)] | UnsetType = UNSET
    display: Literal["summarized", "omitted", "updates"] | UnsetType | None = UNSET


class AnthropicFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, checks.Json]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    effort: checks.Effort | UnsetType | None = UNSET
    format: AnthropicFormat | UnsetType | None = UNSET


_ANTHROPIC_BLOCKS = frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"})
_ANTHROPIC_TEXT: dict[str, type] = {"text": str, "thinking": str, "id": str, "tool_use_id": str, "name": str}


def _check_blocks(blocks: list[Any], where: str) -> None:
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest(f"Invalid value for '{place}': Expected an object with a type.", param=place)
        if block["type"] not in _ANTHROPIC_BLOCKS:
            raise checks.unsupported_part(block["type"], place)
        for key, kind in _ANTHROPIC_TEXT.items():
            if block.get(key) is not None and not isinstance(block[key], kind):
                raise InvalidRequest(f"Invalid value for '{place}.{key}': Expected str.", param=place)
        if isinstance(block.get("content"), list):
            _check_blocks(block["content"], f"{place}.content")


_anthropic_messages = typed(Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=checks.MESSAGES_MAX)])
_system = typed(str | list[dict[str, checks.Json]])


def anthropic_messages(name: str, value: Any) -> Any:
    """A conversation in Anthropic's shape, text and tools only."""
    messages: list[AnthropicMessage] = _anthropic_messages(name, value)
    for index, message in enumerate(messages):
        if isinstance(message.content, list):
            _check_blocks(message.content, f"{name}[{index}].content")
    return messages


def anthropic_system(name: str, value: Any) -> Any:
    """A system prompt: a string or text blocks."""
    system = _system(name, value)
    if isinstance(system, list):
        _check_blocks(system, name)
    return system


_anthropic_tools = typed(Annotated[list[AnthropicTool], Meta(max_length=checks.TOOLS_MAX)])


def anthropic_tools(name: str, value: Any) -> Any:
    """The client's own tools; Anthropic's hosted ones are refused."""
    if isinstance(value, list):
        for index, tool in enumerate(value):
            kind = tool.get("type", "custom") if isinstance(tool, dict) else "custom"
            if kind not in ("custom", None):
                raise UnsupportedParameter(
                    f"Tools of type '{str(kind)[:64]}' are not supported.", param=f"{name}[{index}].type"
                )
    tools: list[AnthropicTool] = _anthropic_tools(name, value)
    for tool in tools:
        tool.type = UNSET
    return tools


SHARED_FIELDS: Table = {
    **MODEL,
    "messages": honoured("1 to 4096 messages of text, tools and thinking", anthropic_messages, is_required=True),
    "system": honoured("text, or text blocks", anthropic_system),
    "thinking": honoured("`enabled` with a budget, `disabled`, `adaptive`", typed(Thinking)),
    "output_config": honoured("`effort` low, medium or high; `format`", typed(OutputConfig)),
    "tools": honoured("up to 128 of your own", anthropic_tools),
    "tool_choice": honoured("`auto`, `any`, `none` or one tool", typed(AnthropicToolChoice)),
    "chat_template_kwargs": TEMPLATE["chat_template_kwargs"],
    "cache_control": ignored(NOTHING_CACHED_BY_KEY, typed(dict)),
    "speed": ignored(NO_TIERS, typed(str)),
    "user_profile_id": ignored(NOT_SENT_FOR_PRIVACY, typed(str)),
    "workspace_id": ignored(NOT_SENT_FOR_PRIVACY, typed(str)),
    "context_management": refused("No context is kept here."),
    "mcp_servers": refused("No hosted tools run here."),
}

FIELDS: Table = {
    **SHARED_FIELDS,
    "max_tokens": honoured("1 or more", typed(checks.Tokens), is_required=True),
    "stop_sequences": honoured("up to 4", typed(Annotated[list[checks.Stop], Meta(max_length=checks.STOPS_MAX)])),
    "stream": honoured("true or false", FLAG),
    "temperature": honoured("0 to 2", typed(checks.Temperature)),
    "top_p": SAMPLING["top_p"],
    "top_k": SAMPLING["top_k"],
    "metadata": ignored(NOT_SENT_FOR_PRIVACY, typed(dict)),
    "service_tier": ignored(NO_TIERS, typed(str)),
    "inference_geo": refused("The operator decides where engines run."),
    "container": refused("No hosted tools run here."),
    "diagnostics": refused("It belongs to Anthropic's own service."),
    **{name: OPERATORS[name] for name in ("cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs")},
    **{name: OPERATORS[name] for name in ("mm_payload", "return_mm_kwargs", "watermarking")},
}


def _check(body: Body, kept: Body) -> None:
    thinking = kept.get("thinking")
    if thinking is None or thinking.type != "enabled":
        return
    if thinking.budget_tokens is msgspec.UNSET:
        raise InvalidRequest("Missing required parameter: 'thinking.budget_tokens'.", param="thinking.budget_tokens")
    if thinking.budget_tokens >= kept["max_tokens"]:
        raise InvalidRequest("'thinking.budget_tokens' must be less than 'max_tokens'.", param="thinking.budget_tokens")


class MessagesCounts(msgspec.Struct):
    """`AnthropicUsage`: input tokens exclude what the cache gave or took."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = 0
    cache_creation_input_tokens: int | None = 0

    def usage(self) -> Usage:
        read = self.cache_read_input_tokens or 0
        return Usage(
            prompt_tokens=self.input_tokens + read + (self.cache_creation_input_tokens or 0),
            completion_tokens=self.output_tokens,
            cached_prompt_tokens=read,
        )


def _error_event(error: ApiError, request_id: str, events_sent: int) -> bytes:
    return b"event: error\ndata: " + anthropic_body(error, request_id) + b"\n\n"


MESSAGES = Dialect(
    path="/v1/messages",
    fields=FIELDS,
    answer=MessagesAnswer,
    counts=MessagesCounts,
    stream=EventStream(
        opening=FIRST_MESSAGES_EVENT,
        endings=(b"event: message_stop\n",),
        last_events=(b"event: message_delta\n",),
        text_event=b"event: content_block_delta\n",
        first_event=b"event: message_start\n",
        error_event=_error_event,
    ),
    check=_check,
    limit_fields=("max_tokens",),
    error_body=anthropic_body,
)
COUNT_TOKENS = Dialect(
    path="/v1/messages/count_tokens",
    fields=SHARED_FIELDS,
    answer=CountAnswer,
    counts=None,
    takes_cache_salt=False,
    error_body=anthropic_body,
)
