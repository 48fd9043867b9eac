"""Held: whole answers that wait for their end before any of it goes out, so that an engine that fails in the middle is replaced
unseen. One bound for each answer, one for all together.
"""

from __future__ import annotations

from typing import Self

#: Bytes of one whole answer that are held: some 250,000 tokens of text. Only large embeddings exceed it.
ANSWER_BYTES_MAX = 1024 * 1024
#: Bytes of all whole answers that are held at one time.
ALL_BYTES_MAX = 32 * 1024 * 1024


class Room:
    """Memory for the held answers of a gateway."""

    def __init__(self, answer_bytes_max: int = ANSWER_BYTES_MAX, all_bytes_max: int = ALL_BYTES_MAX) -> None:
        self._answer_bytes_max = answer_bytes_max
        self._all_bytes_max = all_bytes_max
        self.bytes_held = 0

    def answer(self) -> Held:
        """One answer, kept until the end of its `with`."""
        return Held(self)

    def has_for(self, answer_bytes: int) -> bool:
        """May an answer that has come this far be held on?"""
        return answer_bytes <= self._answer_bytes_max and self.bytes_held <= self._all_bytes_max


class Held:
    """One answer, as far as it has come."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.body = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.bytes_held -= len(self.body)

    def take(self, piece: bytes) -> bool:
        """More of it. False once there is no room: what is here must go on now, and the rest as it comes."""
        self.body += piece
        self._room.bytes_held += len(piece)
        return self._room.has_for(len(self.body))
