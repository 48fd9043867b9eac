"""What a client asks, read out of any API's body: enough of it to know what to say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """The last question, and what has happened since it was put."""

    #: Everything the user has said last, agents' own additions included.
    question: str
    #: What the last called tool answered; None when none was called.
    tool_result: str | None
    #: Was the reasoning before that call sent back?
    is_reasoning_kept: bool
    #: Name → JSON schema of each offered function.
    tools: Mapping[str, Any]
    #: The one function that must be called, or any of them.
    must_call: str | bool
    #: The JSON schema that the answer must follow.
    schema: Any
    #: Words of the whole prompt: the scripted engine's tokens.
    words: int


@dataclass(frozen=True)
class _Turn:
    role: str
    text: str = ""
    is_reasoned: bool = False


def asked(path: str, body: Body) -> Asked:
    """Raises KeyError for a path that generates nothing."""
    turns = list(_TURNS[path](body))
    last = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=0)
    since = turns[last + 1 :]
    results = [turn.text for turn in since if turn.role == "tool"]
    return Asked(
        question=turns[last].text if turns else "",
        tool_result=results[-1] if results else None,
        is_reasoning_kept=any(turn.is_reasoned for turn in since),
        tools=dict(_tools(body)),
        must_call=_must_call(body.get("tool_choice")),
        schema=_schema(body),
        words=sum(len(turn.text.split()) for turn in turns),
    )


def _chat_turns(body: Body) -> Iterator[_Turn]:
    for message in body["messages"]:
        # vLLM takes the second for the first.
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        yield _Turn(message["role"], _text(message.get("content")), bool(reasoning))


def _response_turns(body: Body) -> Iterator[_Turn]:
    items = body["input"]
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        match item.get("type", "message"):
            case "function_call_output":
                yield _Turn("tool", _text(item["output"]))
            case "reasoning":
                yield _Turn("assistant", is_reasoned=bool(_text(item.get("content"))))
            case "message":
                yield _Turn(item["role"], _text(item["content"]))


def _message_turns(body: Body) -> Iterator[_Turn]:
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        results = [_text(block.get("content")) for block in blocks if block["type"] == "tool_result"]
        if results:
            yield _Turn("tool", "\n".join(results))
        elif texts := [block["text"] for block in blocks if block["type"] == "text"]:
            yield _Turn(message["role"], "\n".join(texts))
        if any(block["type"] == "thinking" and block["thinking"] for block in blocks):
            yield _Turn("assistant", is_reasoned=True)


_TURNS = {
    "/v1/chat/completions": _chat_turns,
    "/v1/responses": _response_turns,
    "/v1/messages": _message_turns,
}


def _text(content: Any) -> str:
    """A string, or the texts of its parts."""
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


def _tools(body: Body) -> Iterator[tuple[str, Any]]:
    for tool in body.get("tools") or []:
        function = tool.get("function", tool)
        yield function["name"], function.get("parameters", function.get("input_schema")) or {}


def _must_call(choice: Any) -> str | bool:
    if not isinstance(choice, dict):
        return bool(choice == "required")
    name: str | None = choice.get("name", choice.get("function", {}).get("name"))
    return name or bool(choice["type"] == "any")


def _schema(body: Body) -> Any:
    """Where each API has it: `response_format`, `text.format`, `output_config.format`."""
    chat = body.get("response_format") or {}
    places = [chat.get("json_schema"), *((body.get(key) or {}).get("format") for key in ("text", "output_config"))]
    return next((place["schema"] for place in places if place and "schema" in place), None)


def instance(schema: Any, numbers: Iterator[int], definitions: Any = None, *, text: str = "text") -> Any:
    """A value that follows a schema; integers are taken from `numbers` while there are any, free strings are `text`."""
    definitions = definitions or schema.get("$defs", {})
    if "$ref" in schema:
        return instance(definitions[schema["$ref"].rpartition("/")[2]], numbers, definitions, text=text)
    if options := schema.get("anyOf"):
        return instance(options[0], numbers, definitions, text=text)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            wanted = {
                name: it for name, it in schema.get("properties", {}).items() if name in schema.get("required", ())
            }
            return {name: instance(it, numbers, definitions, text=text) for name, it in wanted.items()}
        case "array":
            return [instance(schema.get("items", {}), numbers, definitions, text=text)]
        case "integer" | "number":
            return next(numbers, 1)
        case "boolean":
            return True
        case "null":
            return None
    return json.dumps(schema.get("const", text), ensure_ascii=False).strip('"')
