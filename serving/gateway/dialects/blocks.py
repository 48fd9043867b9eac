"""Blocks: the content of `/v1/messages`, reduced to what engines read: text, thinking, tools' calls and their results.

Blocks of hosted tools, and of kinds that this release does not know, come from earlier turns: what has text keeps it, what
has none is left out, so that an old block never stops a session. A picture that a user shows now is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.errors import InvalidRequest
from serving.gateway.dialects import checks, history
from serving.gateway.dialects.checks import typed

Block = dict[str, Any]


class AnthropicMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


_READ = frozenset({"text", "tool_use", "thinking", "redacted_thinking"})
#: In system messages; `messages.changed_tools` takes them out.
TOOL_CHANGES = frozenset({"tool_addition", "tool_removal"})
_STRINGS = ("text", "thinking", "id", "tool_use_id", "name")
MESSAGES_KIND = Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=checks.MESSAGES_MAX)]
SYSTEM_KIND = str | list[dict[str, checks.Json]]
_messages = typed(MESSAGES_KIND)
_system = typed(SYSTEM_KIND)


def anthropic_messages(name: str, value: Any) -> Any:
    """A conversation in Anthropic's shape, text and tools only."""
    messages: list[AnthropicMessage] = _messages(name, value)
    read = []
    for index, message in enumerate(messages):
        was_empty = message.content == []
        if isinstance(message.content, list):
            message.content = _blocks(message.content, f"{name}[{index}].content", message.role)
        if message.content != [] or was_empty:
            read.append(message)
    if not read:
        raise InvalidRequest(f"Invalid value for '{name}': none of its blocks holds anything to read.", param=name)
    return read


def anthropic_system(name: str, value: Any) -> Any:
    """A system prompt: a string or text blocks."""
    system = _system(name, value)
    return _blocks(system, name, "user") if isinstance(system, list) else system


def _blocks(blocks: list[Any], where: str, role: str) -> list[Block]:
    return [read for place, block in _each(blocks, where) for read in _read(block, place, role)]


def _each(blocks: list[Any], where: str) -> Iterator[tuple[str, Block]]:
    """Each block with its place; raises for what is no typed object."""
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest(f"Invalid value for '{place}': Expected an object with a type.", param=place)
        for key in _STRINGS:
            if block.get(key) is not None and not isinstance(block[key], str):
                raise InvalidRequest(f"Invalid value for '{place}.{key}': Expected str.", param=place)
        yield place, block


def _read(block: Block, where: str, role: str) -> Iterator[Block]:
    """The block in the kinds that engines read."""
    kind = block["type"]
    if kind == "tool_use":
        yield _call(block, where)
    elif kind == "tool_result":
        yield _result(block, where)
    elif kind in _READ or (kind in TOOL_CHANGES and role == "system"):
        yield block
    elif text := _text(block, role):
        yield {"type": "text", "text": text}
    elif role == "user":
        raise checks.unsupported_part(kind, where)


def _text(block: Block, role: str) -> str:
    """What a block of any other kind says; "" where it says nothing, or is a file that a user wants read."""
    if block["type"] == "document":
        return history.document_text(block) or (history.sentence("document") or "" if role != "user" else "")
    if instead := history.sentence(block["type"]):
        return instead if role != "user" else ""
    return history.text_of(block)


def _call(block: Block, where: str) -> Block:
    if block.get("input") is None:
        return block | {"input": {}}
    if not isinstance(block["input"], dict):
        raise InvalidRequest(f"Invalid value for '{where}.input': Expected an object.", param=f"{where}.input")
    return block


def _result(block: Block, where: str) -> Block:
    content = block.get("content")
    if content is None or isinstance(content, str):
        return block
    if not isinstance(content, list):
        raise InvalidRequest(f"Invalid value for '{where}.content': Expected a string or a list.", param=where)
    parts = [
        part if part["type"] == "text" else {"type": "text", "text": history.in_result(part)}
        for _, part in _each(content, f"{where}.content")
    ]
    return block | {"content": parts}
