"""Checks: what one request field may hold, so that a wrong type is our 400 and never an engine's 500.

A check takes a decoded JSON value and returns what is sent on: known keys only, of known types.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
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
#: Characters of a tool's or a format's name: Anthropic's bound, and OpenAI's for Responses.
NAME_CHARS_MAX = 128
Name = Annotated[str, Meta(pattern=rf"^[a-zA-Z0-9_-]{{1,{NAME_CHARS_MAX}}}\Z")]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = Annotated[str, Meta(min_length=1, max_length=STOP_CHARS_MAX)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=STOPS_MAX)]
BadWords = Annotated[list[Stop], Meta(max_length=128)]
LogitBias = Annotated[
    dict[Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")], Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=TOKEN_IDS_MAX),
]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class FunctionDefinition(msgspec.Struct):
    name: Name
    description: str | UnsetType | None = UNSET
    parameters: dict[str, Json] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class FunctionTool(msgspec.Struct, kw_only=True):
    type: Literal["function"] = "function"
    function: FunctionDefinition

    @property
    def called(self) -> str:
        return self.function.name


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
    """One constraint on the output's form."""

    json: dict[str, Json] | str | UnsetType = UNSET
    regex: Annotated[str, Meta(max_length=PATTERN_CHARS_MAX)] | UnsetType = UNSET
    choice: Annotated[list[str], Meta(min_length=1, max_length=TOKEN_IDS_MAX)] | UnsetType = UNSET
    json_object: bool | UnsetType = UNSET
    disable_any_whitespace: bool | UnsetType | None = UNSET
    disable_additional_properties: bool | UnsetType | None = UNSET
    whitespace_pattern: str | UnsetType | None = UNSET


class TemplateSwitches(msgspec.Struct, forbid_unknown_fields=True):
    """The only template variables a client may set; the others belong to the template's author."""

    enable_thinking: bool | UnsetType = UNSET
    thinking: bool | UnsetType = UNSET


class RepetitionDetection(msgspec.Struct, forbid_unknown_fields=True):
    max_pattern_size: Annotated[int, Meta(ge=0, le=256)] = 0
    min_pattern_size: Annotated[int, Meta(ge=0, le=256)] = 0
    min_count: Annotated[int, Meta(ge=0, le=TOKENS_MAX)] = 0


class OfKind:
    """A check, and the kind of value that it takes, for the API's document: a type as msgspec reads it."""

    __slots__ = ("_check", "kind")

    def __init__(self, kind: Any, check: Check) -> None:
        self.kind = kind
        self._check = check

    def __call__(self, name: str, value: Any) -> Any:
        return self._check(name, value)


def typed(kind: Any) -> OfKind:
    """A check by msgspec's rules: exact types, an int where a float is asked, 100.0 where 100 is, and null for absent."""

    def check(name: str, value: Any) -> Any:
        with suppress(msgspec.ValidationError, OverflowError):
            return msgspec.convert(value, kind, strict=True)
        try:
            return msgspec.convert(_plain(value), kind, strict=True)
        except (msgspec.ValidationError, OverflowError) as error:
            raise invalid(name, str(error)) from None

    return OfKind(kind, check)


#: Members that hold JSON of the client's own, in which null, {} and 1.0 mean what they say.
_CLIENTS_OWN = frozenset({"parameters", "input_schema", "schema", "json", "input", "arguments"})


def _plain(value: Any) -> Any:
    """The value as a client means it that has one kind of number and fills in every member: 100.0 is 100, null and {} are
    absent."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_plain(it) for it in value]
        case dict():
            said = {name: it for name, it in value.items() if it is not None and (it != {} or name in _CLIENTS_OWN)}
            return {name: it if name in _CLIENTS_OWN else _plain(it) for name, it in said.items()}
    return value


def stops(kind: Any) -> OfKind:
    """A check of stop strings by msgspec's rules; an empty one stops nothing and is left out."""
    check = typed(kind)

    def said(name: str, value: Any) -> Any:
        return check(name, [it for it in value if it != ""] if isinstance(value, list) else value)

    return OfKind(kind, said)


def invalid(name: str, text: str) -> InvalidRequest:
    """A 400 that names the field, from msgspec's words."""
    # msgspec ends its messages with "- at `$[0].role`" or "- at `key` in `$[...]`".
    sentence, _, place = text.partition(" - at ")
    where = name + place.rpartition("$")[2].rstrip("`")
    return InvalidRequest(f"Invalid value for '{where}': {sentence.replace('`', '')}.", param=where)


_MEDIA = {"image": "Image", "input_image": "Image", "audio": "Audio", "video": "Video", "file": "File", "doc": "File"}
_MEDIA |= {"screenshot": "Image", "container_upload": "File"}


def medium(kind: str) -> str | None:
    """What a content part of this type is, where it is no text: "Image", "Audio", "Video", "File"."""
    return next((word for prefix, word in _MEDIA.items() if prefix in kind), None)


def unsupported_part(kind: str, where: str) -> UnsupportedParameter:
    """The refusal of a content part that is not text; its place stands in the sentence, for APIs whose errors have no
    field for it."""
    if word := medium(kind):
        return UnsupportedParameter(
            f"{word} input is not supported: the models served here read text. It stands in '{where}'.", param=where
        )
    return UnsupportedParameter(f"Content of type '{kind[:64]}' is not supported, in '{where}'.", param=where)


#: vLLM reads these for other grammar compilers than the one that engines here are started with (GW-31).
_WITHOUT_EFFECT = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


def structured_outputs(name: str, value: Any) -> Any:
    """Exactly one constraint."""
    outputs: StructuredOutputs = typed(StructuredOutputs)(name, value)
    for key in _WITHOUT_EFFECT:
        if getattr(outputs, key):
            raise UnsupportedParameter(f"'{name}.{key}' has no effect here: leave it out.", param=f"{name}.{key}")
        setattr(outputs, key, UNSET)
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
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest(f"Invalid value for '{name}.json': it is no JSON object.", param=name) from None
    return outputs


def response_format(name: str, value: Any) -> Any:
    """OpenAI's response formats."""
    chosen: ResponseFormat = typed(ResponseFormat)(name, value)
    if chosen.type != "json_schema":
        return ResponseFormat(chosen.type)
    if chosen.json_schema is UNSET or chosen.json_schema.schema in (UNSET, None):
        where = f"{name}.json_schema.schema"
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where)
    return chosen
