"""Structure: how many values a JSON text holds, counted before it is decoded, and how deep they are, once it is.

Text costs next to nothing, whatever its length: 8 MiB of it are decoded in 20 ms. Values do: the same bytes as `[1],[1],…` took
seconds of the event loop. So they are counted in the raw bytes, outside strings, a slice at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serving.errors import InvalidRequest

#: Objects and lists of one body: 4,096 messages with a tool call each have some 20,000. Decoded in 20 ms.
CONTAINERS_MAX = 32_768
#: Names of fields of one body; those 4,096 messages have 33,000. Decoded in 20 ms if no two are the same.
NAMES_MAX = 65_536
#: Strings of one body, names too; those 4,096 messages have some 60,000. Decoded in 10 ms.
STRINGS_MAX = 131_072
#: Commas of one body: so many token ids and more than OpenAI takes (300,000). Decoded in 20 ms.
ITEMS_MAX = 524_288
#: Digits of one number; the cost of a longer one grows with their square.
DIGITS_MAX = 128
#: Bytes looked at in one go, in which no other thread runs.
SLICE_BYTES = 64 * 1024

#: Every digit is a nought: then a long number is a plain search, which takes no longer for digits that come close.
_NOUGHTS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * (DIGITS_MAX + 1)


def require_modest(raw: bytes) -> None:
    """Raises InvalidRequest for a text that holds too many values to be decoded without holding others up."""
    containers = names = strings = items = 0
    for outside, quotes in _outside_strings(raw):
        containers += outside.count(b"[") + outside.count(b"{")
        names += outside.count(b":")
        items += outside.count(b",")
        strings += quotes
        if containers > CONTAINERS_MAX:
            raise _refusal(f"more than {CONTAINERS_MAX} objects and lists")
        if names > NAMES_MAX:
            raise _refusal(f"more than {NAMES_MAX} fields")
        if strings > 2 * STRINGS_MAX:
            raise _refusal(f"more than {STRINGS_MAX} strings")
        if items > ITEMS_MAX:
            raise _refusal(f"more than {ITEMS_MAX} items")
        if _LONG_NUMBER in outside.translate(_NOUGHTS):
            raise _refusal(f"a number of more than {DIGITS_MAX} digits")


def is_deeper_than(body: Any, limit: int) -> bool:
    """Are there more than `limit` objects and lists inside one another?"""
    level = [body]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _outside_strings(raw: bytes, slice_bytes: int = SLICE_BYTES) -> Iterator[tuple[bytes, int]]:
    """Slice by slice, what stands outside strings, and how many quotes there are. What is no JSON is the decoder's to find."""
    is_inside = is_escaped = False
    for at in range(0, len(raw), slice_bytes):
        piece = raw[at + is_escaped : at + slice_bytes]
        is_escaped = False
        if b"\\" in piece:
            # In pairs from the left, as they are read: what is left of a run escapes what follows it.
            piece = piece.replace(b"\\\\", b"")
            is_escaped = piece.endswith(b"\\")
            piece = piece.replace(b'\\"', b"")
        parts = piece.split(b'"')
        yield b" ".join(parts[is_inside::2]), len(parts) - 1
        is_inside ^= not len(parts) % 2


def _refusal(what: str) -> InvalidRequest:
    return InvalidRequest(f"The JSON body holds {what}.")
