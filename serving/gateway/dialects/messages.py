"""Messages: Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import ApiError, InvalidRequest, ThreadUnsupported
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.message_answers import CountShaper, MessageAssembly, MessageShaper
from serving.gateway.answers.reasoning import Keeper
from serving.gateway.dialects import checks, conversation, effort
from serving.gateway.dialects.blocks import (
    MESSAGES_KIND,
    SYSTEM_KIND,
    TOOL_CHANGES,
    AnthropicMessage,
    anthropic_messages,
    anthropic_system,
)
from serving.gateway.dialects.checks import OfKind, typed
from serving.gateway.dialects.dialect import Body, Dialect, EventStream
from serving.gateway.dialects.effort import BUDGETS, Effort
from serving.gateway.dialects.fields import Table, honoured, ignored, refused
from serving.gateway.dialects.shapes import FIRST_MESSAGES_EVENT, CountAnswer, MessagesAnswer
from serving.gateway.dialects.tables import (
    FLAG,
    LABELS,
    MODEL,
    NO_TIERS,
    NOT_SENT_FOR_PRIVACY,
    NOTHING_CACHED_BY_KEY,
    OPERATORS,
    SAMPLING,
    SAVES_CONTEXT,
    TEMPLATE,
)
from serving.gateway.dialects.tools import AUTO, TOOLS_NOTE, Choice, choose, tool_list
from serving.gateway.http.bodies import anthropic_body
from serving.gateway.nouns import Usage
from serving.wire import STOP_STRINGS_MAX


class AnthropicTool(msgspec.Struct):
    name: checks.Name
    input_schema: dict[str, checks.Json]
    type: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET

    @property
    def called(self) -> str:
        return self.name


class AnthropicToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | UnsetType | None = UNSET
    disable_parallel_tool_use: bool | UnsetType | None = UNSET


class Thinking(msgspec.Struct):
    """Keys that no engine knows are hints, as all of it is."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: checks.TopK | UnsetType | None = UNSET
    display: str | UnsetType | None = UNSET


class AnthropicFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, checks.Json]


class OutputConfig(msgspec.Struct):
    """Keys that no engine knows, such as a task's budget, are hints and are left out."""

    effort: Effort | UnsetType | None = UNSET
    format: AnthropicFormat | UnsetType | None = UNSET


def _own_tool(where: str, value: Any) -> Any:
    tool: AnthropicTool = _tool(where, value)
    tool.type = UNSET
    return tool


_tool = typed(AnthropicTool)
anthropic_tools = tool_list(_own_tool, lambda kind: kind == "custom", "custom")

SHARED_FIELDS: Table = {
    **MODEL,
    "messages": honoured(
        "1 to 4096 messages of text, tools and thinking; media in a tool's result become a sentence; the thinking before a"
        " call is put back for clients that drop it ([RLY-10](decisions/relay.md))",
        OfKind(MESSAGES_KIND, anthropic_messages),
        is_required=True,
    ),
    "system": honoured("text, or text blocks", OfKind(SYSTEM_KIND, anthropic_system)),
    "thinking": honoured(
        f"`enabled`, `disabled`, `adaptive`; a budget is a hint that becomes an effort where none is given: {BUDGETS};"
        " below 1024 it is none; models without efforts think as much as they do",
        typed(Thinking),
    ),
    "output_config": honoured(
        f"`format`; `effort`: `low`, `medium` or `high`; {effort.MAPPING}; models without efforts think as much as they"
        " do; other keys are ignored",
        typed(OutputConfig),
    ),
    "output_format": honoured("the older name of `output_config.format`", typed(AnthropicFormat)),
    "tools": honoured(
        f"up to 128; `custom` ones are the client's own; {TOOLS_NOTE}", OfKind(list[AnthropicTool], anthropic_tools)
    ),
    "tool_choice": honoured(
        "`auto`, `any`, `none` (then no tools are sent) or one tool; SmolLM2's template has no place for tools",
        typed(AnthropicToolChoice),
    ),
    "chat_template_kwargs": TEMPLATE["chat_template_kwargs"],
    "cache_control": ignored(NOTHING_CACHED_BY_KEY, typed(dict)),
    "speed": ignored(NO_TIERS, typed(str)),
    "user_profile_id": ignored(NOT_SENT_FOR_PRIVACY, typed(str)),
    "workspace_id": ignored(NOT_SENT_FOR_PRIVACY, typed(str)),
    "context_management": ignored(SAVES_CONTEXT),
    "diagnostics": ignored("It belongs to Anthropic's own service."),
    "metadata": ignored(NOT_SENT_FOR_PRIVACY, typed(dict)),
    **LABELS,
    **{
        name: ignored("What is known here needs no switch.")
        for name in ("betas", "anthropic_beta", "anthropic_version")
    },
    "fallbacks": ignored("No model here declines for another to take over."),
    "fallback_credit_token": ignored("It is about Anthropic's bill."),
    "billing_policy": refused("The tenant of the key pays.", {"type": "billing_policy", "bill_to": "self"}),
    "compaction": refused("No summaries are written here: ask for one in a message."),
    "service_tier": ignored(NO_TIERS, typed(str)),
    "mcp_servers": refused("No MCP server is called from here."),
    "container": refused("No hosted tools run here."),
    "inference_geo": refused("The operator decides where engines run.", "global"),
    "thread": refused("No conversation is stored here: send the earlier messages.", error=ThreadUnsupported),
}

FIELDS: Table = {
    **SHARED_FIELDS,
    "max_tokens": honoured("1 or more", typed(checks.Tokens), is_required=True),
    "stop_sequences": honoured(
        f"up to {STOP_STRINGS_MAX}", checks.stops(Annotated[list[checks.Stop], Meta(max_length=STOP_STRINGS_MAX)])
    ),
    "stream": honoured("true or false", FLAG),
    "temperature": honoured("0 to 2", typed(checks.Temperature)),
    "top_p": SAMPLING["top_p"],
    "top_k": SAMPLING["top_k"],
    **{name: OPERATORS[name] for name in ("cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs")},
    **{name: OPERATORS[name] for name in ("mm_payload", "return_mm_kwargs", "watermarking")},
}

#: Fields of a message that its count does not depend on; clients count the body that they are about to send.
COUNT_FIELDS: Table = {
    **{
        name: ignored("The count of a prompt does not depend on it.", FIELDS[name].check)
        for name in ("max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k")
    },
    **SHARED_FIELDS,
}


def _check(body: Body, kept: Body) -> None:
    thinking = kept.get("thinking")
    if thinking is None or thinking.type != "enabled":
        return
    if (thinking.budget_tokens or 0) >= kept["max_tokens"]:
        raise InvalidRequest("'thinking.budget_tokens' must be less than 'max_tokens'.", param="thinking.budget_tokens")


def _adapt(kept: Body) -> Iterable[str]:
    _adapt_format(kept)
    _adapt_thinking(kept)
    kept["tools"] = changed_tools(kept.get("tools", []), kept["messages"])
    chosen: AnthropicToolChoice | None = kept.get("tool_choice")
    if chosen is None:
        return choose(kept, AUTO, _spelt)
    return choose(kept, _choice(chosen), partial(_spelt, is_serial=chosen.disable_parallel_tool_use or UNSET))


def changed_tools(tools: list[Any], messages: list[AnthropicMessage]) -> list[Any]:
    """The tools in effect at the end of a conversation whose system messages add and remove some."""
    if not any(
        block["type"] in TOOL_CHANGES for it in messages if isinstance(it.content, list) for block in it.content
    ):
        return tools
    by_name = {tool.called if isinstance(tool, AnthropicTool) else tool.label: tool for tool in tools}
    for index, message in enumerate(messages):
        if isinstance(message.content, str):
            continue
        for place, block in enumerate(message.content):
            if block["type"] in TOOL_CHANGES:
                _change(by_name, block, f"messages[{index}].content[{place}].tool")
        message.content = [block for block in message.content if block["type"] not in TOOL_CHANGES]
    return list(by_name.values())


def _change(tools: dict[str, Any], block: dict[str, Any], where: str) -> None:
    """Add a tool that is defined here, or remove one; one that is referred to was sent with the others."""
    change = block.get("tool")
    if not isinstance(change, dict):
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where)
    if block["type"] == "tool_removal":
        tools.pop(str(change.get("name")), None)
    elif "definition" in change:
        for tool in anthropic_tools(f"{where}.definition", [change["definition"]]):
            tools[tool.called if isinstance(tool, AnthropicTool) else tool.label] = tool


def _adapt_format(kept: Body) -> None:
    """The format under its older name, unless it is given under both."""
    older: AnthropicFormat | None = kept.pop("output_format", None)
    config: OutputConfig = kept.get("output_config") or OutputConfig()
    if older and not config.format:
        kept["output_config"] = OutputConfig(config.effort, older)


def _adapt_thinking(kept: Body) -> None:
    """An engine's request knows efforts and no budgets (GW-10)."""
    thinking: Thinking | None = kept.get("thinking")
    config: OutputConfig = kept.get("output_config") or OutputConfig()
    wanted = config.effort or None
    if thinking and thinking.type == "enabled":
        del kept["thinking"]
        effort.switch(kept, True)
        wanted = wanted or effort.effort_of(thinking.budget_tokens or -1)
    elif thinking:
        kept["thinking"] = Thinking(thinking.type)
    if wanted:
        kept["output_config"] = OutputConfig(effort=effort.level(wanted, "output_config.effort"), format=config.format)
    if wanted == "none":
        effort.switch(kept, False)


def _choice(chosen: AnthropicToolChoice) -> Choice:
    if chosen.type == "tool":
        if not chosen.name:
            raise InvalidRequest("Missing required parameter: 'tool_choice.name'.", param="tool_choice.name")
        return Choice("named", name=chosen.name)
    return Choice("required" if chosen.type == "any" else chosen.type)


_TYPES: dict[str, Literal["auto", "any", "tool", "none"]] = {"required": "any", "named": "tool", "none": "none"}


def _spelt(choice: Choice, is_serial: bool | UnsetType = UNSET) -> AnthropicToolChoice:
    return AnthropicToolChoice(_TYPES.get(choice.mode, "auto"), choice.name or UNSET, is_serial)


def _recall(kept: Body, keeper: Keeper) -> None:
    """Answers with calls of tools whose thinking the client left out get it back."""
    kept["messages"] = [_recalled(message, keeper) for message in kept["messages"]]


def _recalled(message: AnthropicMessage, keeper: Keeper) -> AnthropicMessage:
    if message.role != "assistant" or isinstance(message.content, str):
        return message
    if any(block.get("thinking") for block in message.content):
        return message
    ids = [block.get("id") or "" for block in message.content if block["type"] == "tool_use"]
    text = next(filter(None, map(keeper.recall, ids)), None)
    thinking = {"type": "thinking", "thinking": text, "signature": ""}
    return AnthropicMessage(message.role, [thinking, *message.content]) if text else message


def _ask(kept: Body) -> Asked:
    choice: AnthropicToolChoice | None = kept.get("tool_choice")
    return Asked(
        offers_tools=bool(kept.get("tools")) and (choice is None or choice.type != "none"),
        # The engine would search reasoning and calls too (RLY-22).
        stops=tuple(kept.pop("stop_sequences", ())),
    )


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


#: Anthropic's own words, which clients look for.
_TOO_LONG = "prompt is too long: {prompt} tokens > {limit} maximum"

MESSAGES = Dialect(
    path="/v1/messages",
    summary="Go on with a conversation (Anthropic's messages).",
    fields=FIELDS,
    answer=MessagesAnswer,
    counts=MessagesCounts,
    stream=EventStream(
        opening=FIRST_MESSAGES_EVENT,
        endings=(b"event: message_stop\n",),
        last_events=(b"event: message_delta\n",),
        text_event=b"event: content_block_delta\n",
        no_text=b'"type":"signature_delta"',
        part_event=b"event: content_block_start\n",
        tool_part=b'"content_block":{"type":"tool_use"',
        first_event=b"event: message_start\n",
        error_event=_error_event,
    ),
    check=_check,
    adapt=_adapt,
    recall=_recall,
    ask=_ask,
    shaper=MessageShaper,
    assembly=MessageAssembly,
    conversation=partial(conversation.of_turns, "messages"),
    too_long=_TOO_LONG,
    limit_fields=("max_tokens",),
    error_body=anthropic_body,
)
COUNT_TOKENS = Dialect(
    path="/v1/messages/count_tokens",
    summary="Count the tokens of a conversation (Anthropic's).",
    fields=COUNT_FIELDS,
    answer=CountAnswer,
    counts=None,
    adapt=_adapt,
    recall=_recall,
    shaper=CountShaper,
    too_long=_TOO_LONG,
    takes_cache_salt=False,
    error_body=anthropic_body,
)
