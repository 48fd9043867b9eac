"""Responses: `/v1/responses`, called stateless: what a tenant has stored is put before the input (`stored`)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import ApiError, InvalidRequest, UnsupportedParameter
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.namespaces import flat
from serving.gateway.answers.reasoning import Keeper
from serving.gateway.answers.response_answers import InputTokensShaper, ResponseAssembly, ResponseShaper
from serving.gateway.dialects import checks, conversation, effort, openai
from serving.gateway.dialects.checks import OfKind, typed
from serving.gateway.dialects.dialect import Body, Dialect, EventStream
from serving.gateway.dialects.effort import Effort
from serving.gateway.dialects.fields import Disposition, Table, honoured, ignored, refused, remembered
from serving.gateway.dialects.items import ITEMS_KIND, recalled, responses_input
from serving.gateway.dialects.openai import Details
from serving.gateway.dialects.shapes import FIRST_RESPONSES_EVENT, CountAnswer, ResponsesAnswer
from serving.gateway.dialects.tables import (
    DEFAULT_LIMIT,
    FLAG,
    GENERATION_OPERATORS,
    MODEL,
    NO_MEDIA,
    OPENAI_HINTS,
    OPERATORS,
    SAMPLING,
    SAVES_CONTEXT,
    TEMPLATE,
)
from serving.gateway.dialects.tools import AUTO, TOOLS_NOTE, Choice, HostedTool, choose, tool_list
from serving.gateway.http.bodies import OpenAIError, openai_error
from serving.gateway.nouns import Usage


class Reasoning(msgspec.Struct):
    """Keys that no engine knows, such as `context`, are hints and are left out."""

    effort: Effort | UnsetType | None = UNSET
    summary: str | UnsetType | None = UNSET
    generate_summary: str | UnsetType | None = UNSET


#: Kinds of summary that engines know.
_SUMMARIES = frozenset({"auto", "concise", "detailed"})


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
    type: str = "function"
    name: checks.Name | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    parameters: dict[str, checks.Json] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET

    @property
    def called(self) -> str | UnsetType:
        return self.name


class Namespace(msgspec.Struct):
    name: checks.Name
    tools: list[dict[str, checks.Json]] = []


class ResponsesNamedTool(msgspec.Struct):
    """One tool by name; of any other type but `function` only hosted ones are."""

    type: str
    name: str | UnsetType = UNSET
    namespace: str | UnsetType | None = UNSET

    @property
    def called(self) -> str:
        if self.name is UNSET:
            return self.type
        return flat(self.namespace, self.name) if self.namespace else self.name


class AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[ResponsesNamedTool]


def _own_tool(where: str, value: Any) -> Any:
    """A function; the engine's types require its parameters and strictness, if only as null."""
    tool: ResponsesTool = _tool(where, value)
    if tool.name is UNSET:
        raise InvalidRequest(f"Missing required parameter: '{where}.name'.", param=f"{where}.name")
    tool.parameters = None if tool.parameters is UNSET else tool.parameters
    tool.strict = None if tool.strict is UNSET else tool.strict
    return tool


def _own_tools(where: str, value: Any) -> Any:
    """A function, or those of a namespace under flat names; what else a namespace holds is left out."""
    if not isinstance(value, dict) or value.get("type") != "namespace":
        return _own_tool(where, value)
    group: Namespace = _namespace(where, value)
    if not group.tools:
        return HostedTool("namespace", group.name)
    return [_grouped(f"{where}.tools[{index}]", group.name, tool) for index, tool in enumerate(group.tools)]


def _grouped(where: str, namespace: str, tool: dict[str, Any]) -> Any:
    name = flat(namespace, str(tool.get("name")))
    if tool.get("type") != "function" or len(name) > checks.NAME_CHARS_MAX:
        return HostedTool("namespace", name)
    return _own_tool(where, tool | {"name": name})


_tool = typed(ResponsesTool)
_namespace = typed(Namespace)
responses_tools = tool_list(_own_tools, lambda kind: kind in ("function", "namespace"))


_CHOICE = Literal["none", "auto", "required"] | ResponsesNamedTool


def tool_choice(name: str, value: Any) -> Choice:
    """OpenAI's choices among tools; hosted tools may be named, to be refused once it is known what they are."""
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        allowed: AllowedTools = typed(AllowedTools)(name, value)
        return Choice(allowed.mode, allowed=frozenset(tool.called for tool in allowed.tools))
    chosen: str | ResponsesNamedTool = typed(_CHOICE)(name, value)
    if isinstance(chosen, ResponsesNamedTool):
        if chosen.type == "function" and chosen.name is UNSET:
            raise InvalidRequest(f"Missing required parameter: '{name}.name'.", param=f"{name}.name")
        return Choice("named", name=chosen.called)
    return Choice(chosen)  # type: ignore[arg-type]  # one of the three words


def _spelt(choice: Choice) -> Any:
    return {"type": "function", "name": choice.name} if choice.mode == "named" else choice.mode


def includes(name: str, value: Any) -> Any:
    """What more the answer should hold; what this service does not have is not missed."""
    return [it for it in typed(list[str])(name, value) if it in INCLUDED]


_text_config = typed(TextConfig)


def text_config(name: str, value: Any) -> Any:
    """The answer's form; a schema needs a name, as at OpenAI."""
    config: TextConfig = _text_config(name, value)
    if config.format and config.format.type == "json_schema":
        for key in ("name", "schema"):
            if getattr(config.format, key) is UNSET:
                where = f"{name}.format.{key}"
                raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where)
    elif config.format:
        config.format = TextFormat(config.format.type)
    return config


#: Reasoning that the client carries and only gateways open.
SEALED = "reasoning.encrypted_content"
INCLUDED = (SEALED, "message.output_text.logprobs")

#: Said in the table of fields alone.
_STORED = "Where the tenant's policy says `store_responses` it is honoured ([MEM-1](decisions/stored.md))."

FIELDS: Table = {
    **MODEL,
    "input": honoured(
        "text or items: messages, reasoning, function calls, their outputs; older items of hosted tools become text or"
        " are left out, and media in a tool's output a sentence; reasoning may come back as text, sealed, by reference, or not at all"
        " before a call ([RLY-10](decisions/relay.md)); where the tenant's policy says `store_responses` any item of an answer by reference"
        " ([MEM-11](decisions/stored.md))",
        OfKind(ITEMS_KIND, responses_input),
        is_required=True,
    ),
    "instructions": honoured("text", typed(str)),
    "max_output_tokens": honoured(f"1 or more; includes reasoning; {DEFAULT_LIMIT}", typed(checks.Tokens)),
    "max_tool_calls": honoured(
        "1 or more, returned as sent; it limits calls of hosted tools, and none run here", typed(checks.Tokens)
    ),
    "metadata": honoured("up to 16 pairs, returned as sent", typed(checks.Metadata)),
    "parallel_tool_calls": honoured("true or false", FLAG),
    "reasoning": honoured(
        f"`effort`: `low`, `medium` or `high`; {effort.MAPPING}; models without efforts think as much as they do."
        " `summary`: `none` and unknown ones count as absent; other keys are ignored",
        typed(Reasoning),
    ),
    "include_reasoning": honoured("true or false; of models that reason; false is refused for gpt-oss", FLAG),
    "include": honoured(
        "`reasoning.encrypted_content` (opened by gateways when it comes back, for a week), `message.output_text.logprobs`"
        " (refused for gpt-oss); others are ignored",
        OfKind(list[str], includes),
    ),
    "text": honoured("`format`, `verbosity`", OfKind(TextConfig, text_config)),
    "tools": honoured(
        "up to 128; functions are the client's own; those of a `namespace` go to the model as `namespace__name`, and"
        f" calls come back as the client knows them; {TOOLS_NOTE}",
        OfKind(list[ResponsesTool], responses_tools),
    ),
    "tool_choice": honoured(
        "`none` (then no tools are sent), `auto`, `required`, one function, or `allowed_tools`",
        OfKind(_CHOICE, tool_choice),
    ),
    "top_logprobs": honoured("0 to 20; refused for gpt-oss", typed(Annotated[int, Meta(ge=0, le=20)])),
    "truncation": honoured("`auto` or `disabled`", typed(Literal["auto", "disabled"])),
    "store": ignored(f"Nothing is stored; the engine is told false. {_STORED}", FLAG),
    "background": ignored(f"false is what happens anyway; true is refused. {_STORED}", FLAG),
    "stream_options": ignored("Only `include_obfuscation` exists.", typed(checks.StreamOptions)),
    "previous_response_id": remembered("No response is stored here: send the earlier items as input."),
    "conversation": remembered("No conversation is stored here: send the earlier items as input."),
    "prompt": refused("No prompt templates are stored here."),
    "background_options": refused("Background calls have no options here."),
    "context_management": ignored(SAVES_CONTEXT),
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


#: What a prompt is made of.
_OF_PROMPT = frozenset({*MODEL, "input", "instructions", "reasoning", "tools", "tool_choice", "chat_template_kwargs"})
_NOT_COUNTED = "The count of a prompt does not depend on it."
#: Fields of a request for a count: those of the request that is about to be sent.
COUNT_FIELDS: Table = {
    **{
        name: ignored(_NOT_COUNTED, field.check)
        if field.disposition is Disposition.HONOURED and name not in _OF_PROMPT
        else field
        for name, field in FIELDS.items()
    },
    **{name: ignored(_NOT_COUNTED, FLAG) for name in ("background", "store")},
    "personality": ignored("No model here has one to choose.", typed(str)),
}


def _check(body: Body, kept: Body) -> None:
    if body.get("background") is True:
        raise UnsupportedParameter(
            "Unsupported parameter: 'background'. A tenant has it honoured whose policy says `store_responses`.",
            param="background",
        )


def _adapt(kept: Body) -> Iterable[str]:
    if wished := kept.get("reasoning"):
        kept["reasoning"] = _reasoning(wished)
        if wished.effort == "none":
            effort.switch(kept, False)
    return choose(kept, kept.get("tool_choice", AUTO), _spelt)


def _reasoning(wished: Reasoning) -> dict[str, Any]:
    said: dict[str, Any] = {"effort": effort.level(wished.effort, "reasoning.effort")} if wished.effort else {}
    for name in ("summary", "generate_summary"):
        if getattr(wished, name) in _SUMMARIES:
            said[name] = getattr(wished, name)
    return said


def _complete(kept: Body) -> None:
    # The engine's own store is per process and never emptied.
    kept["store"] = False


def _recall(kept: Body, keeper: Keeper) -> None:
    if isinstance(kept["input"], list):
        kept["input"] = recalled("input", kept["input"], keeper)


def _ask(kept: Body) -> Asked:
    return Asked(
        offers_tools=bool(kept.get("tools")) and kept.get("tool_choice") != "none",
        stops=openai.taken_stops(kept),
        wants_sealed=SEALED in kept.get("include", ()),
        keeps_stop=kept.pop("include_stop_str_in_output", False),
    )


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


def error_event(error: ApiError, request_id: str, events_sent: int) -> bytes:
    """The event that ends a stream which failed."""
    event = _ErrorEvent(
        type="error",
        sequence_number=events_sent,
        message=error.message,
        param=error.param,
        code=error.code,
        error=openai_error(error),
    )
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


#: OpenAI's responses repeat them.
_ECHOED = (
    "instructions",
    "max_tool_calls",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "text",
    "tool_choice",
    "tools",
    "user",
)
_LAST_EVENTS = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")

RESPONSES = Dialect(
    path="/v1/responses",
    summary="Answer input items (OpenAI's responses).",
    fields=FIELDS,
    answer=ResponsesAnswer,
    counts=ResponsesCounts,
    stream=EventStream(
        opening=FIRST_RESPONSES_EVENT,
        endings=_LAST_EVENTS,
        last_events=_LAST_EVENTS,
        text_event=b".delta\ndata: ",
        part_event=b"event: response.output_item.added\n",
        tool_part=b'"type":"function_call"',
        error_event=error_event,
    ),
    check=_check,
    adapt=_adapt,
    recall=_recall,
    complete=_complete,
    ask=_ask,
    echoed=_ECHOED,
    shaper=ResponseShaper,
    assembly=ResponseAssembly,
    conversation=partial(conversation.of_turns, "input"),
    prompt_field="input",
    limit_fields=("max_output_tokens",),
    default_limit_field="max_output_tokens",
    remembers=True,
)
INPUT_TOKENS = Dialect(
    path="/v1/responses/input_tokens",
    summary="Count the tokens of what a response would be made of (OpenAI's).",
    fields=COUNT_FIELDS,
    answer=CountAnswer,
    counts=None,
    adapt=_adapt,
    recall=_recall,
    complete=_complete,
    shaper=InputTokensShaper,
    prompt_field="input",
    takes_cache_salt=False,
    remembers=True,
)
