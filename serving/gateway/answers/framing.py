"""Framing: server-sent events taken apart and put together, for the few that are read. A block holds whole events."""

from __future__ import annotations

from typing import Any

import msgspec

_BORDER = b"\n\n"


def split(block: bytes) -> list[bytes]:
    """The events of a block, each with its border; joined they are the block."""
    return [event + _BORDER for event in block.split(_BORDER)[:-1]] if block.endswith(_BORDER) else [block]


def read(event: bytes) -> dict[str, Any] | None:
    """The JSON object that an event carries; None for a comment, for `[DONE]`, and for what is no object."""
    data = event.partition(b"data: ")[2]
    if not data.startswith(b"{"):
        return None
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return document if isinstance(document, dict) else None


def chunk(document: object) -> bytes:
    """An event without a name, as chat and completions stream them."""
    return b"data: " + msgspec.json.encode(document) + _BORDER


def named(document: dict[str, Any]) -> bytes:
    """An event that is named after its type, as Responses and Messages stream them."""
    return b"event: " + str(document["type"]).encode() + b"\n" + chunk(document)
