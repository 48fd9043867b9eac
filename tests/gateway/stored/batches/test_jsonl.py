"""JSONL: lines come out of pieces whatever the pieces are, in memory for one of each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.stored.batches.jsonl import START, Line, Place, Splitter, lines, not_for_a_batch

PARTS = st.lists(st.sampled_from([b"a", b"{}", b"\n", b" ", b"bb\r\n", b"\n\n", b"x" * 12]), max_size=30)


def split(content: bytes, sizes: list[int], place: Place = START, most: int = 10) -> list[Line]:
    """The lines of this content, fed in pieces of these sizes and then the rest."""
    splitter = Splitter(place, most)
    found: list[Line] = []
    for size in [*sizes, len(content)]:
        found += splitter.feed(content[:size])
        content = content[size:]
    return found + list(splitter.rest())


@given(PARTS, st.lists(st.integers(1, 5), max_size=20))
def test_pieces_do_not_matter(parts: list[bytes], sizes: list[int]) -> None:
    """The same lines, numbers and ends as of the whole; blank ones are none, and one that is too long is not kept."""
    content = b"".join(parts)
    found = split(content, sizes)
    whole = [(number, it) for number, it in enumerate(content.split(b"\n"), 1) if len(it) > 10 or it.strip()]

    assert [(it.number, it.line) for it in found] == [(at, number) for at, (number, _) in enumerate(whole)]
    assert [it.raw for it in found] == [it if len(it) <= 10 else None for _, it in whole]
    assert all(content[: it.ends_at].endswith(b"\n") or it.ends_at == len(content) for it in found)


@given(PARTS)
def test_reading_goes_on_where_a_line_ended(parts: list[bytes]) -> None:
    """From the end of any line on, the rest of the lines comes as it would have."""
    content = b"".join(parts)
    found = split(content, [])
    for at, line in enumerate(found):
        place = Place(line.number + 1, line.line, line.ends_at)
        assert split(content[line.ends_at :], [], place) == found[at + 1 :]


async def test_no_more_is_read_than_a_piece_ahead() -> None:
    """Of a file of any length one piece and one line are in memory: the next piece is asked for when the lines of this one are taken."""
    asked = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield b"{}\n" * 10

    taken = 0
    async for _ in lines(pieces(), START, 10, 0):
        taken += 1
        assert asked <= (taken + 9) // 10
        if taken == 50:
            break
    assert asked == 5


def test_how_a_call_wants_to_be_answered_is_read_of_any_body() -> None:
    """What is wrong with such a field is told with the call's own faults, and stops no other line."""
    for body, param in (
        (b'{"stream": true}', "stream"),
        (b'{"background":true ,"stream":false}', "background"),
        (b'{"stream":null,"background":1e999}', None),
        (b'{"stream":"\xff"}', None),
        (b'{"\xff":[{}]}', None),
    ):
        assert not_for_a_batch(msgspec.Raw(body)) == param
