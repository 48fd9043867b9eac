"""Items: the input of `/v1/responses`, reduced to the four kinds that engines read: messages, reasoning, function calls and
their outputs.

Items of hosted tools, and of kinds that this release does not know, come from earlier turns: what has text keeps it, what
has none is left out, so that an old item never stops a session.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.answers.namespaces import flat
from serving.gateway.answers.reasoning import Keeper
from serving.gateway.dialects import checks, history
from serving.gateway.dialects.checks import typed

Item = dict[str, Any]

_ROLES = frozenset({"system", "developer", "user", "assistant"})
#: Parts of text, whatever they are called.
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"})
#: Where a hosted tool's call keeps what came of it.
_OUTPUTS = ("output", "outputs", "results", "error")
#: What of a hosted tool's call is no argument of it.
_NO_ARGUMENTS = frozenset({*_OUTPUTS, "type", "id", "call_id", "status", "name", "created_by", "caller", "namespace"})
ITEMS_KIND = str | Annotated[list[dict[str, checks.Json]], Meta(min_length=1, max_length=checks.MESSAGES_MAX)]
_items = typed(ITEMS_KIND)


class Continued(msgspec.Struct, frozen=True):
    """An `input` that goes on from stored items, which were read before."""

    earlier: list[Item]
    #: As the client sent it; None where it sent none.
    said: Any


def responses_input(name: str, value: Any) -> Any:
    """A string, or input items that need nothing stored and no media."""
    if isinstance(value, Continued):
        return _continued(name, value)
    items = _items(name, value)
    if isinstance(items, str):
        return items
    calls: set[str] = set()
    read = [it for index, item in enumerate(items) for it in _read(item, f"{name}[{index}]", calls)]
    if not read:
        raise _nothing_to_read(name)
    return read


def _continued(name: str, value: Continued) -> list[Item]:
    """Earlier items and new ones as one input; what is wrong with a new one is told by its own place."""
    calls: set[str] = set()
    said = [] if value.said is None else _items(name, value.said)
    if isinstance(said, str):
        said = [{"type": "message", "role": "user", "content": said}]
    read = [it for index, item in enumerate(value.earlier) for it in _read(item, f"earlier[{index}]", calls)]
    read += [it for index, item in enumerate(said) for it in _read(item, f"{name}[{index}]", calls)]
    if not read:
        raise _nothing_to_read(name)
    return read


def require_items(name: str, items: list[Any]) -> None:
    """Raises InvalidRequest for items that could not be read later; calls that outputs are of may have been made before."""
    if items:
        calls = {str(item.get("call_id") or item.get("id")) for item in _items(name, items) if isinstance(item, dict)}
        for index, item in enumerate(items):
            list(_read(item, f"{name}[{index}]", calls))


def recalled(name: str, items: list[Item], keeper: Keeper) -> list[Item]:
    """The items with the reasoning that their client carries sealed, refers to, or left out before its calls.

    What cannot be opened or found is left out: without it the model thinks again.
    """
    read: list[Item] = []
    has_thought = False
    for item in items:
        kind = item.get("type", "message")
        if kind in ("reasoning", "item_reference"):
            item = _with_text(item, keeper)
            has_thought = has_thought or "content" in item
        elif kind != "function_call":
            has_thought = has_thought and item.get("role") == "assistant"
        elif not has_thought and (text := keeper.recall(item["call_id"])):
            read.append(_thought(text))
            has_thought = True
        if item.get("type") != "item_reference":
            read.append(item)
    if not read:
        raise _nothing_to_read(name)
    return read


def _with_text(item: Item, keeper: Keeper) -> Item:
    """A reasoning item or a reference to one, with its text where it can be had."""
    sealed = item.get("encrypted_content")
    item = {key: value for key, value in item.items() if key != "encrypted_content"}
    if "content" in item:
        return item
    text = (keeper.open(sealed) if sealed else None) or keeper.recall(item.get("id") or "")
    return {**_thought(text), **({"id": item["id"]} if "id" in item else {})} if text else item


def _thought(text: str) -> Item:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def _nothing_to_read(name: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{name}': none of its items holds anything to read.", param=name)


def _read(item: Item, where: str, calls: set[str]) -> Iterator[Item]:
    """The item in the kinds that engines read; `calls` are the ids of the calls before it."""
    kind = item.get("type") or ("item_reference" if item.keys() == {"id"} else "message")
    if not isinstance(kind, str):
        raise InvalidRequest(f"Invalid value for '{where}.type': Expected str.", param=f"{where}.type")
    if kind == "message":
        # An answer of calls alone has no text.
        if item.get("role") != "assistant" or item.get("content") is not None:
            yield _message(item, where)
    elif kind == "reasoning":
        yield _reasoning(item, where)
    elif kind == "item_reference":
        yield from _reference(item, where)
    elif kind == "function_call":
        yield _function_call(item, where, calls)
    elif kind.endswith("_output"):
        yield from _output(item, where, kind, calls)
    elif kind.endswith("_call"):
        yield from _hosted_call(item, kind, calls)
    elif text := history.text_of(item):
        yield {"type": "message", "role": item["role"] if item.get("role") in _ROLES else "assistant", "content": text}


def _require_text(item: Item, where: str, *keys: str) -> None:
    for key in keys:
        if not isinstance(item.get(key), str):
            raise InvalidRequest(f"Invalid value for '{where}.{key}': Expected str.", param=f"{where}.{key}")


def _message(item: Item, where: str) -> Item:
    _require_text(item, where, "role")
    role, content = item["role"], item.get("content")
    if role not in _ROLES:
        raise InvalidRequest(f"Invalid value for '{where}.role'.", param=f"{where}.role")
    if content is None:
        raise InvalidRequest(f"Missing required parameter: '{where}.content'.", param=f"{where}.content")
    if isinstance(content, str):
        return item
    is_now = role != "assistant"
    texts = [_part(part, place, is_now) for place, part in _parts(content, f"{where}.content")]
    if is_now:
        return item | {"content": [{"type": "input_text", "text": text} for text in texts]}
    # Engines read only the first part of several, and refuse an answer with nulls or without its type.
    return item if _is_as_answered(item) else {"type": "message", "role": role, "content": "".join(texts)}


def _is_as_answered(item: Item) -> bool:
    """Is a message with parts as an engine's own answers are?"""
    first = item["content"][0] if len(item["content"]) == 1 else {}
    return (
        item.get("type") == "message"
        and first.get("type") == "output_text"
        and isinstance(first.get("annotations", []), list)
        and isinstance(item.get("id", ""), str)
        and isinstance(item.get("status", ""), str)
    )


def _parts(parts: Any, where: str) -> Iterator[tuple[str, Item]]:
    """Each part with its place; raises for what is no list of typed objects."""
    if not isinstance(parts, list):
        raise InvalidRequest(f"Invalid value for '{where}': Expected a string or a list of parts.", param=where)
    for index, part in enumerate(parts):
        place = f"{where}[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidRequest(f"Invalid value for '{place}': Expected an object with a type.", param=place)
        yield place, part


def _part(part: Item, where: str, is_now: bool) -> str:
    """A part's text. Raises for media in what a client says now, as a user or as an operator."""
    kind = part["type"]
    if kind in _TEXT_PARTS:
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(part.get(key), str):
            raise InvalidRequest(f"Invalid value for '{where}.{key}': Expected str.", param=f"{where}.{key}")
        text: str = part[key]
        return text
    if not is_now:
        return history.in_result(part)
    if checks.medium(kind) or not (text := history.text_of(part)):
        raise checks.unsupported_part(kind, where)
    return text


def _reasoning(item: Item, where: str) -> Item:
    content, summary = item.get("content"), item.get("summary") or []
    if isinstance(content, str):
        content = [{"type": "reasoning_text", "text": content}]
    texts = [_part(part, place, False) for place, part in _parts(content or [], f"{where}.content")]
    if isinstance(summary, str):
        summary = [{"type": "summary_text", "text": summary}]
    said = [_part(part, place, False) for place, part in _parts(summary, f"{where}.summary")]
    read: Item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in said]}
    if texts:
        read["content"] = [{"type": "reasoning_text", "text": text} for text in texts]
    for key in ("id", "encrypted_content"):
        if isinstance(item.get(key), str):
            read[key] = item[key]
    return read


def _reference(item: Item, where: str) -> Iterator[Item]:
    """References to reasoning may be found, and can be done without. Any other item would be missing."""
    if not str(item.get("id")).startswith("rs_"):
        raise UnsupportedParameter(
            f"'{where}' refers to an item, and none is stored here: send the items themselves, in most clients by"
            " `store: false`.",
            param=where,
        )
    yield {"type": "item_reference", "id": item["id"]}


def _function_call(item: Item, where: str, calls: set[str]) -> Item:
    _require_text(item, where, "name", "arguments", "call_id")
    calls.add(item["call_id"])
    if not isinstance(item.get("namespace"), str):
        return item
    flattened = flat(item["namespace"], item["name"])
    return {key: value for key, value in item.items() if key != "namespace"} | {"name": flattened}


def _output(item: Item, where: str, kind: str, calls: set[str]) -> Iterator[Item]:
    """A tool's output as a function's, whatever the tool's kind, as one string; of a tool that ran elsewhere, its text."""
    call_id = item.get("call_id") or item.get("id")
    if call_id is None and kind != "function_call_output":
        if text := history.text_of(item):
            yield {"type": "message", "role": "user", "content": text}
        return
    if not isinstance(call_id, str):
        raise InvalidRequest(f"Invalid value for '{where}.call_id': Expected str.", param=f"{where}.call_id")
    if "output" in item or kind == "function_call_output":
        if item.get("output") is None:
            raise InvalidRequest(f"Missing required parameter: '{where}.output'.", param=f"{where}.output")
        text = history.output_text(item["output"])
    else:
        text = _as_json(_payload(item))
    if call_id not in calls:
        if kind != "function_call_output":
            yield {"type": "message", "role": "user", "content": text}
            return
        raise InvalidRequest(
            f"'{where}' is the output of a call that no earlier item makes: no response is stored here, send the call"
            " as well.",
            param=where,
        )
    yield {"type": "function_call_output", "call_id": call_id, "output": text}


def _hosted_call(item: Item, kind: str, calls: set[str]) -> Iterator[Item]:
    """A call of a tool that is no function as a function's; its output comes with it or in an item of its own."""
    call_id = item.get("call_id") or item.get("id")
    output = next((item[key] for key in _OUTPUTS if item.get(key) not in (None, [])), item.get("output"))
    if not isinstance(call_id, str) or (output is None and "call_id" not in item and kind != "local_shell_call"):
        return
    name = item["name"] if isinstance(item.get("name"), str) else kind.removesuffix("_call")
    calls.add(call_id)
    said = item.get("arguments")
    arguments = said if isinstance(said, str) else _as_json(_payload(item))
    yield {"type": "function_call", "name": name, "arguments": arguments, "call_id": call_id}
    if output is not None:
        yield {"type": "function_call_output", "call_id": call_id, "output": history.output_text(output)}


def _payload(item: Item) -> Item:
    """What an item of a hosted tool says about the call."""
    return {key: value for key, value in item.items() if key not in _NO_ARGUMENTS and value is not None}


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
