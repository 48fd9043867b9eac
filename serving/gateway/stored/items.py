"""Items: what was said and answered, one after another, as the API lists it and as an engine is told of it again.

An item is kept as its client gave it, in the API's long form and with an id; how it is read for an engine is `dialects/items`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from serving.errors import InvalidRequest, ResourceNotFound

Item = dict[str, Any]

#: Items on one page: at most, and where a client does not say; OpenAI's.
PAGE_MAX = 100
PAGE = 20
#: What each kind of item's id begins with.
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
_ID_CHARS_MAX = 128
#: A client's ids that are kept: a path can name them, and a database takes them.
_IDS = re.compile(rf"[A-Za-z0-9_.:-]{{1,{_ID_CHARS_MAX}}}")
_LIMIT_CHARS_MAX = 9


class Page(msgspec.Struct, frozen=True):
    """A list as OpenAI's API gives it."""

    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Deleted(msgspec.Struct, frozen=True):
    """What the API says of what it has deleted."""

    id: str
    object: str
    deleted: bool = True


class Asked(msgspec.Struct, frozen=True):
    """Which page: behind an item, so many, oldest or newest first."""

    after: str | None = None
    limit: int = PAGE
    is_ascending: bool = False


def fresh_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return f"{prefix}_{secrets.token_hex(24)}"


def said(value: str | list[Item]) -> list[Item]:
    """A request's `input` as items of the API, each with an id."""
    if isinstance(value, str):
        return [_listed({"type": "message", "role": "user", "content": value})]
    # A reference adds nothing: what it names is kept where it was said.
    return [_listed(item) for item in value if _kind(item) != "item_reference"]


def _kind(item: Item) -> str:
    return item.get("type") or ("item_reference" if item.keys() == {"id"} else "message")


def is_id(value: str) -> bool:
    """Can this be an item's id?"""
    return _IDS.fullmatch(value) is not None


def references(value: Any) -> list[str]:
    """The ids of stored items that a request's `input` refers to, in its order."""
    listed = value if isinstance(value, list) else []
    ids = [item.get("id") for item in listed if isinstance(item, dict) and _kind(item) == "item_reference"]
    return [it for it in ids if isinstance(it, str) and is_id(it)]


def resolved(value: list[Any], found: Mapping[str, Item], before: Collection[str]) -> list[Any]:
    """A request's `input` with the items that it refers to; references to what stands `before` it add nothing.

    Reasoning that is not found is still referred to: gateways may remember it, and models can do without. Raises ResourceNotFound
    for any other.
    """
    read = []
    for item in value:
        item_id = str(item.get("id")) if isinstance(item, dict) and _kind(item) == "item_reference" else None
        if item_id is None or (item_id not in found and item_id not in before and item_id.startswith("rs_")):
            read.append(item)
        elif item_id not in before:
            if item_id not in found:
                raise ResourceNotFound(f"Item with id '{item_id[:_ID_CHARS_MAX]}' not found.", param="input")
            read.append(found[item_id])
    return read


def _listed(item: Item) -> Item:
    kind = _kind(item)
    item_id = item.get("id")
    if not isinstance(item_id, str) or not is_id(item_id):
        item_id = fresh_id(_PREFIXES.get(kind, "item"))
    kept = {"id": item_id, "type": kind, **{name: it for name, it in item.items() if name not in ("id", "type")}}
    if kind == "message" and isinstance(kept.get("content"), str):
        part = {"type": "output_text", "annotations": []} if item.get("role") == "assistant" else {"type": "input_text"}
        kept["content"] = [{**part, "text": kept["content"]}]
    if kind in ("message", "function_call", "function_call_output"):
        kept.setdefault("status", "completed")
    return kept


def carried(items: Sequence[Item]) -> list[Item]:
    """What an engine is told of earlier turns: reasoning up to the last final answer is dropped, as gpt-oss was trained.

    Behind it a loop of tool calls runs: its reasoning says why they were made. A message before a call is no final answer.
    """
    kept: list[Item] = []
    is_answered = False
    following = ""
    for item in reversed(items):
        kind = item.get("type")
        if kind == "reasoning":
            if not is_answered:
                kept.append(item)
            continue
        if kind == "message" and item.get("role") == "assistant" and following != "function_call":
            is_answered = True
        following = str(kind)
        kept.append(_told(item))
    kept.reverse()
    return kept


def _told(item: Item) -> Item:
    """Ids and states of what a client said are the API's business."""
    if item.get("type") == "message" and item.get("role") != "assistant":
        return {"type": "message", "role": item.get("role"), "content": item.get("content")}
    return item


def page(items: Iterable[Item], asked: Asked, what: str) -> Page:
    """One page of items that are given oldest first; `what` holds them. Raises ResourceNotFound for an `after` that it has not."""
    listed = list(items)
    if not asked.is_ascending:
        listed.reverse()
    if asked.after is not None:
        places = [place for place, item in enumerate(listed) if item.get("id") == asked.after]
        if not places:
            raise ResourceNotFound(f"Item with id '{asked.after[:_ID_CHARS_MAX]}' not found in {what}.")
        listed = listed[places[0] + 1 :]
    return paged(listed[: asked.limit + 1], asked.limit)


def paged(found: list[Item], limit: int) -> Page:
    """A page of what was found, one more than it takes where there are more."""
    data = found[:limit]
    return Page(data, data[0]["id"] if data else None, data[-1]["id"] if data else None, len(found) > limit)


def asked(query: Callable[[str], str | None]) -> Asked:
    """What a query asks for; raises InvalidRequest."""
    after, limit, order = query("after"), query("limit"), query("order")
    if limit is not None and not _is_limit(limit):
        raise InvalidRequest(f"Invalid value for 'limit': Expected an integer from 1 to {PAGE_MAX}.", param="limit")
    if order not in (None, "asc", "desc"):
        raise InvalidRequest("Invalid value for 'order': Expected 'asc' or 'desc'.", param="order")
    return Asked(after, PAGE if limit is None else int(limit), order == "asc")


def _is_limit(said: str) -> bool:
    return said.isdecimal() and len(said) <= _LIMIT_CHARS_MAX and 1 <= int(said) <= PAGE_MAX
