"""Held: whole answers wait for their end, within one bound for each and one for all."""

from __future__ import annotations

from serving.gateway.relay.held import Room


def test_an_answer_within_the_bound_is_kept_to_its_end() -> None:
    """All of it is there, up to the last byte that the bound allows."""
    with Room(answer_bytes_max=6).answer() as held:
        assert held.take(b"abc") and held.take(b"def")
        assert held.body == b"abcdef"


def test_an_answer_past_its_bound_is_given_up_at_once() -> None:
    """What has come is there to go on with."""
    with Room(answer_bytes_max=6).answer() as held:
        assert held.take(b"abc") and not held.take(b"defg")
        assert held.body == b"abcdefg"


def test_all_held_answers_share_one_bound() -> None:
    """Many answers that are each small are not held either once they are too much together; a place is given back."""
    room = Room(answer_bytes_max=6, all_bytes_max=8)
    with room.answer() as first:
        assert first.take(b"abcde")
        with room.answer() as second:
            assert not second.take(b"abcd")
        assert room.bytes_held == 5
    assert room.bytes_held == 0
