"""Chat: `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import InvalidRequest
from serving.gateway.dialects import checks, openai
from serving.gateway.dialects.checks import typed
from serving.gateway.dialects.dialect import Body, Dialect
from serving.gateway.dialects.fields import Table, honoured, ignored, refused
from serving.gateway.dialects.openai import ChatCounts
from serving.gateway.dialects.shapes import ChatAnswer
from serving.gateway.dialects.tables import (
    CHAT_TOOLS,
    DEFAULT_LIMIT,
    FLAG,
    GENERATION_OPERATORS,
    MODEL,
    NO_MEDIA,
    OPENAI_HINTS,
    SAMPLING,
    TEMPLATE,
)


class Part(msgspec.Struct):
    """One content part; media parts are recognised by their type and refused."""

    type: str
    text: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    #: The older name of `reasoning`; the engine reads both.
    reasoning_content: str | UnsetType | None = UNSET


class NamedFunction(msgspec.Struct):
    name: checks.Name


class NamedTool(msgspec.Struct):
    type: Literal["function"]
    function: NamedFunction


_TEXT_PARTS = frozenset({"text", "refusal", "thinking"})


def _check_parts(parts: Iterable[Part], where: str) -> None:
    for index, part in enumerate(parts):
        place = f"{where}.content[{index}]"
        if part.type not in _TEXT_PARTS:
            raise checks.unsupported_part(part.type, place)
        if getattr(part, part.type) is UNSET:
            raise InvalidRequest(f"Missing required parameter: '{place}.{part.type}'.", param=place)


_messages = typed(Annotated[list[ChatMessage], Meta(min_length=1, max_length=checks.MESSAGES_MAX)])


def chat_messages(name: str, value: Any) -> Any:
    """A conversation in OpenAI's shape, text only."""
    messages: list[ChatMessage] = _messages(name, value)
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if isinstance(message.content, list):
            _check_parts(message.content, where)
        elif message.content is None and message.role != "assistant":
            raise InvalidRequest(f"Missing required parameter: '{where}.content'.", param=f"{where}.content")
        if message.role == "tool" and not message.tool_call_id:
            raise InvalidRequest(f"Missing required parameter: '{where}.tool_call_id'.", param=f"{where}.tool_call_id")
        if message.tool_calls == []:
            # The engine refuses an empty list; clients that echo an answer send one.
            message.tool_calls = UNSET
    return messages


FIELDS: Table = {
    **MODEL,
    "messages": honoured("1 to 4096 messages of text", chat_messages, is_required=True),
    "max_tokens": honoured("1 or more; see `max_completion_tokens`", typed(checks.Tokens)),
    "max_completion_tokens": honoured(f"1 or more; includes reasoning; {DEFAULT_LIMIT}", typed(checks.Tokens)),
    "logprobs": honoured("true or false", FLAG),
    "top_logprobs": honoured("0 to 20", typed(Annotated[int, Meta(ge=0, le=20)])),
    "tool_choice": honoured(
        "`none`, `auto`, `required` or one function", typed(Literal["none", "auto", "required"] | NamedTool)
    ),
    "parallel_tool_calls": honoured("true or false", FLAG),
    "reasoning_effort": honoured("`low`, `medium` or `high`", typed(checks.Effort)),
    "include_reasoning": honoured("true or false", FLAG),
    "echo": honoured("true or false", FLAG),
    **CHAT_TOOLS,
    **SAMPLING,
    **TEMPLATE,
    **OPENAI_HINTS,
    "store": ignored("Nothing is stored.", FLAG),
    "modalities": ignored("Text is the only one.", typed(list[Literal["text"]])),
    "prediction": ignored("A hint for speed that the engine does not use.", typed(dict)),
    "verbosity": ignored("The models have no such dial.", typed(Literal["low", "medium", "high"])),
    "audio": refused(NO_MEDIA),
    "web_search_options": refused("No hosted tools run here."),
    "functions": refused("It was replaced: use `tools`."),
    "function_call": refused("It was replaced: use `tool_choice`."),
    "documents": refused("The served templates have no place for documents: put them into a message."),
    "return_prompt_text": refused("It would show the operator's template."),
    **GENERATION_OPERATORS,
}


def _check(body: Body, kept: Body) -> None:
    openai.check_streaming(body, kept)
    if kept.get("top_logprobs") and not kept.get("logprobs"):
        raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    choice = kept.get("tool_choice")
    if choice not in (None, "none") and "tools" not in kept:
        raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")


CHAT = Dialect(
    path="/v1/chat/completions",
    fields=FIELDS,
    answer=ChatAnswer,
    counts=ChatCounts,
    stream=openai.CHUNKS,
    check=_check,
    limit_fields=("max_completion_tokens", "max_tokens"),
    default_limit_field="max_completion_tokens",
)
