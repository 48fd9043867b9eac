"""Chat: `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chat_answers import ChatAssembly, ChatShaper
from serving.gateway.answers.reasoning import Keeper
from serving.gateway.dialects import checks, conversation, effort, history, openai
from serving.gateway.dialects.checks import OfKind, typed
from serving.gateway.dialects.dialect import Body, Dialect
from serving.gateway.dialects.fields import Table, honoured, ignored, left_out, refused
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
    OTHER_SERVICES,
    SAMPLING,
    TEMPLATE,
    THINKING,
)
from serving.gateway.dialects.tools import AUTO, Choice, choose

#: A content part, as a decoded JSON object.
Part = dict[str, Any]


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class CustomCall(msgspec.Struct):
    name: str
    input: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall | UnsetType = UNSET
    type: Literal["function", "custom"] = "function"
    custom: CustomCall | UnsetType = UNSET


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    #: The older name of `reasoning`; the engine reads both.
    reasoning_content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET


class NamedFunction(msgspec.Struct):
    name: checks.Name


class NamedTool(msgspec.Struct):
    """One tool by name; of any other type but `function` only hosted ones are."""

    type: str
    function: NamedFunction | UnsetType = UNSET
    custom: NamedFunction | UnsetType = UNSET

    @property
    def called(self) -> str:
        named = self.function if self.function is not UNSET else self.custom
        return named.name if named is not UNSET else self.type


class AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedChoice(msgspec.Struct):
    allowed_tools: AllowedTools


_TEXT_PARTS = frozenset({"text", "refusal", "thinking"})


def _content(message: ChatMessage, where: str) -> str | list[Part] | None:
    """What a message says, in the kinds of parts that engines read. Raises for what a user says in no text."""
    content = message.content
    if message.role == "assistant" and not content and message.refusal:
        return message.refusal
    if content is None and message.role != "assistant":
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where)
    if content is None or isinstance(content, str):
        return content
    parts = [read for index, part in enumerate(content) for read in _read(part, f"{where}[{index}]", message.role)]
    return parts or (None if content else [])


def _read(part: Part, where: str, role: str) -> Iterator[Part]:
    """The part, or in earlier turns and under other names its text, if it has any."""
    kind = part.get("type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"Invalid value for '{where}': Expected an object with a type.", param=where)
    if kind in _TEXT_PARTS:
        yield {"type": kind, kind: _text(part.get(kind), kind, where)}
    elif role == "tool":
        yield {"type": "text", "text": history.in_result(part)}
    elif role == "assistant":
        yield from _said(part, kind)
    elif checks.medium(kind) or not (text := history.text_of(part)):
        raise checks.unsupported_part(kind, where)
    else:
        yield {"type": "text", "text": text}


def _text(text: Any, kind: str, where: str) -> str:
    if text is None:
        raise InvalidRequest(f"Missing required parameter: '{where}.{kind}'.", param=where)
    if not isinstance(text, str):
        raise InvalidRequest(f"Invalid value for '{where}.{kind}': Expected str.", param=f"{where}.{kind}")
    return text


def _said(part: Part, kind: str) -> Iterator[Part]:
    """A part of an earlier answer in another API's kinds: reasoning stays reasoning, and what has no text is left out."""
    text = history.sentence(kind) or history.text_of(part)
    if kind.startswith("reasoning") and text:
        yield {"type": "thinking", "thinking": text}
    elif text and kind != "redacted_thinking":
        yield {"type": "text", "text": text}


def _as_function_calls(calls: list[ToolCall], where: str) -> None:
    """Calls of custom tools as functions that take their text as `input`."""
    for index, call in enumerate(calls):
        if call.custom is not UNSET:
            arguments = msgspec.json.encode({"input": call.custom.input}).decode()
            call.function = FunctionCall(call.custom.name, arguments)
        if call.function is UNSET:
            place = f"{where}.tool_calls[{index}].function"
            raise InvalidRequest(f"Missing required parameter: '{place}'.", param=place)
        call.type, call.custom = "function", UNSET


_messages = typed(Annotated[list[ChatMessage], Meta(min_length=1, max_length=checks.MESSAGES_MAX)])


def chat_messages(name: str, value: Any) -> Any:
    """A conversation in OpenAI's shape, text only."""
    messages: list[ChatMessage] = _messages(name, value)
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        message.content, message.refusal = _content(message, f"{where}.content"), UNSET
        if message.role == "tool" and not message.tool_call_id:
            raise InvalidRequest(f"Missing required parameter: '{where}.tool_call_id'.", param=f"{where}.tool_call_id")
        if message.tool_calls == []:
            # The engine refuses an empty list; clients that echo an answer send one.
            message.tool_calls = UNSET
        if isinstance(message.tool_calls, list):
            _as_function_calls(message.tool_calls, where)
    return messages


#: What `messages` takes.
MESSAGES = OfKind(_messages.kind, chat_messages)
_CHOICE = Literal["none", "auto", "required"] | NamedTool


def tool_choice(name: str, value: Any) -> Choice:
    """OpenAI's choices among tools; hosted tools may be named, to be refused once it is known what they are."""
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        allowed = typed(AllowedChoice)(name, value).allowed_tools
        return Choice(allowed.mode, allowed=frozenset(tool.called for tool in allowed.tools))
    chosen: str | NamedTool = typed(_CHOICE)(name, value)
    if isinstance(chosen, NamedTool):
        if chosen.type == "function" and chosen.function is UNSET:
            raise InvalidRequest(f"Missing required parameter: '{name}.function'.", param=f"{name}.function")
        return Choice("named", name=chosen.called)
    return Choice(chosen)  # type: ignore[arg-type]  # one of the three words


def _spelt(choice: Choice) -> Any:
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode


FIELDS: Table = {
    **MODEL,
    "messages": honoured(
        "1 to 4096 messages of text; media in a tool's result become a sentence; the `reasoning` before a call is put back"
        " for clients that drop it ([RLY-10](decisions/relay.md))",
        MESSAGES,
        is_required=True,
    ),
    "max_tokens": honoured("1 or more; see `max_completion_tokens`", typed(checks.Tokens)),
    "max_completion_tokens": honoured(f"1 or more; includes reasoning; {DEFAULT_LIMIT}", typed(checks.Tokens)),
    "logprobs": honoured("true or false; the entries are those of the content", FLAG),
    "top_logprobs": honoured(
        "0 to 20; a whole answer has room for about 3,000 tokens with 20, a stream for any number",
        typed(Annotated[int, Meta(ge=0, le=20)]),
    ),
    "tool_choice": honoured(
        "`none` (then no tools are sent), `auto`, `required`, one function, or `allowed_tools`",
        OfKind(_CHOICE, tool_choice),
    ),
    "parallel_tool_calls": honoured("true or false", FLAG),
    **THINKING,
    "include_reasoning": honoured("true or false; of models that reason", FLAG),
    "echo": honoured(
        "true or false; repeats a message that is continued, which is refused for gpt-oss; not beside `logprobs`", FLAG
    ),
    **CHAT_TOOLS,
    **SAMPLING,
    **TEMPLATE,
    **OPENAI_HINTS,
    **OTHER_SERVICES,
    "store": ignored("Nothing is stored.", FLAG),
    "modalities": ignored("Text is the only one.", typed(list[Literal["text"]])),
    "prediction": ignored("A hint for speed that the engine does not use.", typed(dict)),
    "verbosity": ignored("The models have no such dial.", typed(Literal["low", "medium", "high"])),
    "audio": refused(NO_MEDIA),
    "web_search_options": left_out("No hosted tools run here.", takes_empty=True),
    "functions": refused("It was replaced: use `tools`."),
    "function_call": refused("It was replaced: use `tool_choice`.", "none", "auto"),
    "documents": refused("The served templates have no place for documents: put them into a message."),
    "return_prompt_text": refused("It would show the operator's template."),
    **GENERATION_OPERATORS,
}


def _check(body: Body, kept: Body) -> None:
    openai.check_streaming(body, kept)
    if kept.get("top_logprobs") and not kept.get("logprobs"):
        raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    if kept.get("echo") and kept.get("logprobs"):
        raise UnsupportedParameter("Log probabilities of the prompt are not given here.", param="logprobs")


def _adapt(kept: Body) -> Iterable[str]:
    effort.adapt(kept)
    if kept.get("echo"):
        # vLLM takes as many for the prompt, and its default is 0 of them, which it computes all the same.
        kept["top_logprobs"] = None
    return choose(kept, kept.get("tool_choice", AUTO), _spelt)


def recall(kept: Body, keeper: Keeper) -> None:
    """Messages with calls of tools whose reasoning the client left out get it back."""
    if "messages" in kept:
        kept["messages"] = [_recalled(message, keeper) for message in kept["messages"]]


def _recalled(message: ChatMessage, keeper: Keeper) -> ChatMessage:
    if not isinstance(message.tool_calls, list) or message.reasoning or message.reasoning_content:
        return message
    texts = (keeper.recall(call.id) for call in message.tool_calls)
    text = next(filter(None, texts), None)
    return msgspec.structs.replace(message, reasoning=text, reasoning_content=UNSET) if text else message


def _ask(kept: Body) -> Asked:
    return Asked(
        offers_tools=bool(kept.get("tools")) and kept.get("tool_choice") != "none",
        stops=openai.taken_stops(kept),
        keeps_stop=kept.pop("include_stop_str_in_output", False),
        min_tokens=kept.get("min_tokens", 0),
        wants_logprobs=kept.get("logprobs", False),
        choices=kept.get("n", 1),
    )


CHAT = Dialect(
    path="/v1/chat/completions",
    summary="Go on with a conversation (OpenAI's chat completions).",
    fields=FIELDS,
    answer=ChatAnswer,
    counts=ChatCounts,
    stream=openai.CHUNKS,
    check=_check,
    adapt=_adapt,
    recall=recall,
    ask=_ask,
    shaper=ChatShaper,
    assembly=ChatAssembly,
    conversation=partial(conversation.of_turns, "messages"),
    limit_fields=("max_completion_tokens", "max_tokens"),
    default_limit_field="max_completion_tokens",
)
