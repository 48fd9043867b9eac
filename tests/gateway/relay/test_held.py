"""Held: whole answers wait for their end, within one bound for each and one for all."""

from __future__ import annotations

from collections.abc import AsyncIterator

from serving.gateway.relay.held import Room


async def coming(*pieces: bytes) -> AsyncIterator[bytes]:
    """An answer as an engine sends it."""
    for piece in pieces:
        yield piece


async def test_an_answer_within_the_bound_is_kept_to_its_end() -> None:
    """All of it is there, up to the last byte that the bound allows."""
    with Room(answer_bytes_max=6).answer() as held:
        assert await held.fill(coming(b"abc", b"def"))
        assert held.body == b"abcdef"


async def test_an_answer_past_its_bound_is_given_up_at_once() -> None:
    """What has come is there to go on with, and not a byte more of it was read."""
    rest = coming(b"abc", b"defg", b"hi")
    with Room(answer_bytes_max=6).answer() as held:
        assert not await held.fill(rest)
        assert held.body == b"abcdefg" and [piece async for piece in rest] == [b"hi"]


async def test_all_held_answers_share_one_bound() -> None:
    """Many answers that are each small are not held either once they are too much together; a place is given back."""
    room = Room(answer_bytes_max=6, all_bytes_max=8)
    with room.answer() as first:
        assert await first.fill(coming(b"abcde"))
        with room.answer() as second:
            assert not await second.fill(coming(b"abcd"))
        assert room.bytes_held == 5
    assert room.bytes_held == 0
