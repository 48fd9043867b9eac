"""Structure: values are counted as a decoder would find them, wherever a slice ends."""

from __future__ import annotations

import json
import random

import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects import structure
from serving.gateway.dialects.structure import (
    CONTAINERS_MAX,
    DIGITS_MAX,
    ITEMS_MAX,
    NAMES_MAX,
    SLICE_BYTES,
    STRINGS_MAX,
    require_modest,
)


def listed(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


@pytest.mark.parametrize(
    ("within", "past"),
    [
        (listed(b"[]", CONTAINERS_MAX - 1), listed(b"[]", CONTAINERS_MAX)),
        (listed(b"{}", CONTAINERS_MAX - 1), listed(b"{}", CONTAINERS_MAX)),
        (listed(b'""', STRINGS_MAX), listed(b'""', STRINGS_MAX + 1)),
        (b"{" + b",".join([b'"":0'] * NAMES_MAX) + b"}", b"{" + b",".join([b'"":0'] * (NAMES_MAX + 1)) + b"}"),
        (listed(b"1", ITEMS_MAX + 1), listed(b"1", ITEMS_MAX + 2)),
        (b"9" * DIGITS_MAX, b"9" * (DIGITS_MAX + 1)),
        (b"[" * CONTAINERS_MAX, b"[" * (CONTAINERS_MAX + 1)),
    ],
    ids=["lists", "objects", "strings", "names", "items", "digits", "deep"],
)
def test_a_text_is_refused_past_each_bound(within: bytes, past: bytes) -> None:
    """The last one that is allowed passes."""
    require_modest(within)
    with pytest.raises(InvalidRequest, match="The JSON body holds"):
        require_modest(past)


@pytest.mark.parametrize("text", ["[{,:" * 500_000, '["' * 500_000, "\\" * 999_999, "9" * 1_000_000, '\\"' * 400_000])
@pytest.mark.parametrize("before", range(4))
def test_what_stands_in_a_string_is_text(text: str, before: int) -> None:
    """However it looks, wherever its escapes fall on the end of a slice, and in every language."""
    require_modest(b" " * before + json.dumps({"role": "user", "content": text}).encode())


def found(raw: bytes, slice_bytes: int) -> tuple[int, int, int]:
    """Lists and objects, strings, and commas, as the module counts them."""
    pieces = list(structure._outside_strings(raw, slice_bytes))
    outside = b"".join(piece for piece, _ in pieces)
    return outside.count(b"[") + outside.count(b"{"), sum(quotes for _, quotes in pieces) // 2, outside.count(b",")


def counted(value: object) -> tuple[int, int, int]:
    """The same by walking the value."""
    if isinstance(value, str):
        return 0, 1, 0
    if isinstance(value, dict):
        below = [counted(it) for pair in value.items() for it in pair]
    elif isinstance(value, list):
        below = [counted(it) for it in value]
    else:
        return 0, 0, 0
    containers, strings, items = (sum(column) for column in zip(*below, strict=True)) if below else (0, 0, 0)
    return containers + 1, strings, items + max(len(value) - 1, 0)


@pytest.mark.parametrize("seed", range(40))
def test_counts_are_those_of_the_decoded_value(seed: int) -> None:
    """Of random values full of quotes, backslashes and brackets, in slices of a few bytes."""
    dice = random.Random(seed)

    def value(depth: int) -> object:
        kind = dice.randrange(5 if depth else 3)
        if kind == 0:
            return "".join(dice.choices('ab\\"[]{},:é\n', k=dice.randrange(12)))
        if kind == 1:
            return dice.choice([0, -1.5e3, True, None])
        if kind == 2:
            return ""
        some = [value(depth - 1) for _ in range(dice.randrange(5))]
        return some if kind == 3 else {f'{n}\\"': it for n, it in enumerate(some)}

    made = [value(4) for _ in range(20)]
    raw = json.dumps(made, ensure_ascii=bool(dice.randrange(2)), indent=dice.choice([None, 1])).encode()
    assert found(raw, dice.randrange(1, 40)) == found(raw, SLICE_BYTES) == counted(made)


@pytest.mark.parametrize("raw", [b"", b'"', b'"\\', b"\\" * (SLICE_BYTES + 1), b'{"a": ', b"\xff\x00" * 100])
def test_what_is_no_json_is_left_to_the_decoder(raw: bytes) -> None:
    """It has the sentence for that."""
    require_modest(raw)
