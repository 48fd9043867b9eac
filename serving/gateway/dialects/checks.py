"""Checks: what one request field may hold, so that a wrong type is our 400 and never an engine's 500.

A check takes a decoded JSON value and returns what is sent on: known keys only, of known types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects import constraints

#: Decoded JSON in, checked JSON (or structs that encode to it) out. `Any`: JSON has no narrower type before its check.
Check = Callable[[str, Any], Any]
Json = Any

# OpenAI's documented bounds where it has them; elsewhere far above use and far below harm.
INT64_MAX = 2**63 - 1
TOKENS_MAX = 2**31 - 1
STOPS_MAX = 4
STOP_CHARS_MAX = 1024
TOOLS_MAX = 128
MESSAGES_MAX = 4096
EMBEDDING_INPUTS_MAX = 2048
#: Prompts of one completion call, times `n`: each is a sequence in the engine's batch.
SEQUENCES_MAX = 128
TOKEN_IDS_MAX = 1024
PATTERN_CHARS_MAX = 8192

Tokens = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
TokensOrNone = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
TokenIds = Annotated[list[TokenId], Meta(max_length=TOKEN_IDS_MAX)]
Seed = Annotated[int, Meta(ge=-(2**63), le=INT64_MAX)]
Share = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]
TopK = Annotated[int, Meta(ge=-1, le=TOKENS_MAX)]
Choices = Annotated[int, Meta(ge=1, le=8)]
ShortText = Annotated[str, Meta(max_length=512)]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = Annotated[str, Meta(min_length=1, max_length=STOP_CHARS_MAX)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=STOPS_MAX)]
BadWords = Annotated[list[Stop], Meta(max_length=128)]
LogitBias = Annotated[
    dict[Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")], Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=TOKEN_IDS_MAX),
]
Effort = Literal["low", "medium", "high"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


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


class FunctionDefinition(msgspec.Struct):
    name: Name
    description: str | UnsetType | None = UNSET
    parameters: dict[str, Json] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class FunctionTool(msgspec.Struct):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct):
    name: Name


class NamedTool(msgspec.Struct):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(msgspec.Struct):
    name: Name
    description: str | UnsetType | None = UNSET
    schema: dict[str, Json] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | UnsetType = UNSET


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """One constraint on the output's form, and how strictly it is read."""

    json: dict[str, Json] | str | UnsetType = UNSET
    regex: Annotated[str, Meta(max_length=PATTERN_CHARS_MAX)] | UnsetType = UNSET
    choice: Annotated[list[str], Meta(min_length=1, max_length=TOKEN_IDS_MAX)] | UnsetType = UNSET
    json_object: bool | UnsetType = UNSET
    disable_any_whitespace: bool | UnsetType = UNSET
    disable_additional_properties: bool | UnsetType = UNSET
    whitespace_pattern: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET


class TemplateSwitches(msgspec.Struct, forbid_unknown_fields=True):
    """The only template variables a client may set; the others belong to whoever wrote the template."""

    enable_thinking: bool | UnsetType = UNSET
    thinking: bool | UnsetType = UNSET


class RepetitionDetection(msgspec.Struct, forbid_unknown_fields=True):
    max_pattern_size: Annotated[int, Meta(ge=0, le=256)] = 0
    min_pattern_size: Annotated[int, Meta(ge=0, le=256)] = 0
    min_count: Annotated[int, Meta(ge=0, le=TOKENS_MAX)] = 0


class Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    effort: Effort | UnsetType | None = UNSET
    summary: Literal["auto", "concise", "detailed"] | UnsetType | None = UNSET
    generate_summary: Literal["auto", "concise", "detailed"] | UnsetType | None = UNSET


class TextFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | UnsetType = UNSET
    schema: dict[str, Json] | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class TextConfig(msgspec.Struct, forbid_unknown_fields=True):
    format: TextFormat | UnsetType | None = UNSET
    verbosity: Literal["low", "medium", "high"] | UnsetType | None = UNSET


class ResponsesTool(msgspec.Struct):
    type: str
    name: Name | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    parameters: dict[str, Json] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class ResponsesNamedTool(msgspec.Struct):
    type: Literal["function"]
    name: Name


class AnthropicMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Json]]


class AnthropicTool(msgspec.Struct):
    name: Name
    input_schema: dict[str, Json]
    type: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class AnthropicToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | UnsetType = UNSET
    disable_parallel_tool_use: bool | UnsetType = UNSET


class Thinking(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1024, le=TOKENS_MAX)] | UnsetType = UNSET
    display: Literal["summarized", "omitted", "updates"] | UnsetType | None = UNSET


class AnthropicFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Json]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    effort: Effort | UnsetType | None = UNSET
    format: AnthropicFormat | UnsetType | None = UNSET


def typed(kind: Any) -> Check:
    """A check by msgspec's rules: exact types, an int where a float is asked."""

    def check(name: str, value: Any) -> Any:
        try:
            return msgspec.convert(value, kind, strict=True)
        except (msgspec.ValidationError, OverflowError) as error:
            raise invalid(name, str(error)) from None

    return check


def invalid(name: str, text: str) -> InvalidRequest:
    """A 400 that names the field, from msgspec's words."""
    # msgspec ends its messages with "- at `$[0].role`" or "- at `key` in `$[...]`".
    sentence, _, place = text.partition(" - at ")
    where = name + place.rpartition("$")[2].rstrip("`")
    return InvalidRequest(f"Invalid value for '{where}': {sentence.replace('`', '')}.", param=where)


# --- Messages -------------------------------------------------------------------------------------------------------

_TEXT_PARTS = frozenset({"text", "refusal", "thinking"})
_MEDIA = {"image": "Image", "input_image": "Image", "audio": "Audio", "video": "Video", "file": "File", "doc": "File"}


def unsupported_part(kind: str, where: str) -> UnsupportedParameter:
    """The refusal of a content part that is not text."""
    medium = next((word for prefix, word in _MEDIA.items() if prefix in kind), None)
    if medium is None:
        return UnsupportedParameter(f"Content of type '{kind[:64]}' is not supported.", param=where)
    return UnsupportedParameter(f"{medium} input is not supported: the models served here read text.", param=where)


def _check_parts(parts: Iterable[Part], where: str) -> None:
    for index, part in enumerate(parts):
        place = f"{where}.content[{index}]"
        if part.type not in _TEXT_PARTS:
            raise unsupported_part(part.type, place)
        if getattr(part, part.type) is UNSET:
            raise InvalidRequest(f"Missing required parameter: '{place}.{part.type}'.", param=place)


_messages = typed(Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)])


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


_ANTHROPIC_BLOCKS = frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"})
_ANTHROPIC_TEXT: dict[str, type] = {"text": str, "thinking": str, "id": str, "tool_use_id": str, "name": str}


def _check_blocks(blocks: list[Any], where: str) -> None:
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest(f"Invalid value for '{place}': Expected an object with a type.", param=place)
        if block["type"] not in _ANTHROPIC_BLOCKS:
            raise unsupported_part(block["type"], place)
        for key, kind in _ANTHROPIC_TEXT.items():
            if block.get(key) is not None and not isinstance(block[key], kind):
                raise InvalidRequest(f"Invalid value for '{place}.{key}': Expected str.", param=place)
        if isinstance(block.get("content"), list):
            _check_blocks(block["content"], f"{place}.content")


_anthropic_messages = typed(Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=MESSAGES_MAX)])
_system = typed(str | list[dict[str, Json]])


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


# --- Responses ------------------------------------------------------------------------------------------------------

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
_items = typed(str | Annotated[list[dict[str, Json]], Meta(min_length=1, max_length=MESSAGES_MAX)])


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
            raise unsupported_part(kind, place)
        if kind != "refusal" and not isinstance(part.get("text"), str):
            raise InvalidRequest(f"Invalid value for '{place}.text': Expected str.", param=f"{place}.text")


_responses_tools = typed(Annotated[list[ResponsesTool], Meta(max_length=TOOLS_MAX)])


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


_anthropic_tools = typed(Annotated[list[AnthropicTool], Meta(max_length=TOOLS_MAX)])


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


# --- Prompts --------------------------------------------------------------------------------------------------------

_token_prompt = typed(Annotated[list[TokenId], Meta(min_length=1)])
_token_prompts = typed(Annotated[list[Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)])
_text_prompts = typed(Annotated[list[str], Meta(min_length=1)])


def prompt(name: str, value: Any) -> Any:
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        if not value:
            raise InvalidRequest(f"Invalid value for '{name}': it is empty.", param=name)
        return value
    if not isinstance(value, list) or not value:
        raise InvalidRequest(
            f"Invalid value for '{name}': Expected a string, strings, token ids, or lists of them.", param=name
        )
    if isinstance(value[0], str):
        return _text_prompts(name, value)
    if isinstance(value[0], list):
        return _token_prompts(name, value)
    return _token_prompt(name, value)


def count_prompts(value: Any) -> int:
    """Prompts in a checked `prompt` value."""
    return len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1


def structured_outputs(name: str, value: Any) -> Any:
    """Exactly one constraint."""
    outputs: StructuredOutputs = typed(StructuredOutputs)(name, value)
    kinds = (outputs.json, outputs.regex, outputs.choice, outputs.json_object)
    if sum(kind is not UNSET for kind in kinds) != 1:
        raise InvalidRequest(
            f"Invalid value for '{name}': give exactly one of json, regex, choice, json_object.", param=name
        )
    if isinstance(outputs.regex, str):
        constraints.require_cheap_pattern(f"{name}.regex", outputs.regex)
    if isinstance(outputs.json, str):
        try:
            outputs.json = msgspec.json.decode(outputs.json, type=dict[str, Json])
        except msgspec.DecodeError:
            raise InvalidRequest(f"Invalid value for '{name}.json': it is no JSON object.", param=name) from None
    return outputs


def response_format(name: str, value: Any) -> Any:
    """OpenAI's response formats."""
    chosen: ResponseFormat = typed(ResponseFormat)(name, value)
    if chosen.type == "json_schema" and (chosen.json_schema is UNSET or chosen.json_schema.schema in (UNSET, None)):
        where = f"{name}.json_schema.schema"
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where)
    return chosen
