"""JSONL: the lines of a file that comes in pieces, in memory for one piece and one line; and what a line of a batch says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import msgspec

#: Characters of a `custom_id`.
CUSTOM_ID_CHARS_MAX = 512


class Line(msgspec.Struct, frozen=True):
    """A line that is not blank: its place among the calls, its number in the file from 1, and the bytes up to its end."""

    number: int
    line: int
    ends_at: int
    #: None: it is longer than it may be, and was not kept.
    raw: bytes | None


class Place(msgspec.Struct, frozen=True):
    """Where in a file reading begins: calls, lines and bytes before it."""

    number: int = 0
    lines: int = 0
    bytes: int = 0


START = Place()


class Splitter:
    """Cuts pieces into lines."""

    def __init__(self, place: Place, line_bytes_max: int) -> None:
        self._number = place.number
        self._line = place.lines
        self._at = place.bytes
        self._line_bytes_max = line_bytes_max
        self._begun = bytearray()
        #: Bytes of the line that comes; more than are kept where it is too long.
        self._length = 0

    @property
    def lines(self) -> int:
        """How many have ended, blank ones included."""
        return self._line

    def feed(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in the next piece."""
        first = 0
        while (end := piece.find(b"\n", first)) >= 0:
            self._add(piece[first:end])
            self._at += 1
            yield from self._ended()
            first = end + 1
        self._add(piece[first:])

    def rest(self) -> Iterator[Line]:
        """The last line, which may end without a break."""
        yield from self._ended()

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        self._at += len(part)
        if self._length <= self._line_bytes_max:
            self._begun += part
        else:
            self._begun.clear()

    def _ended(self) -> Iterator[Line]:
        is_whole = self._length <= self._line_bytes_max
        raw, self._length = bytes(self._begun), 0
        self._begun.clear()
        self._line += 1
        if is_whole and (not raw or raw.isspace()):
            return
        yield Line(self._number, self._line, self._at, raw if is_whole else None)
        self._number += 1


async def lines(pieces: AsyncIterator[bytes], place: Place, line_bytes_max: int, skipped: int) -> AsyncIterator[Line]:
    """The lines from a place on; of the first piece `skipped` bytes are before it."""
    splitter = Splitter(place, line_bytes_max)
    async for piece in pieces:
        for line in splitter.feed(piece[skipped:]):
            yield line
        skipped = 0
    for line in splitter.rest():
        yield line


class Request(msgspec.Struct):
    """A line of a batch as its client wrote it."""

    custom_id: str
    method: str
    url: str
    #: As it goes to the endpoint.
    body: msgspec.Raw


class _Manner(msgspec.Struct):
    stream: msgspec.Raw = msgspec.Raw(b"null")
    background: msgspec.Raw = msgspec.Raw(b"null")


def not_for_a_batch(body: msgspec.Raw) -> str | None:
    """The field of a call that asks for what a batch has not: an answer in pieces, or later. What is no truth value there the call itself
    is refused for, as anything else of it.
    """
    manner = msgspec.json.decode(body, type=_Manner)
    fields = (("stream", manner.stream), ("background", manner.background))
    return next((name for name, said in fields if bytes(said) == b"true"), None)


def request_of(raw: bytes) -> Request:
    """A line that was checked; raises msgspec.DecodeError where it was not."""
    return msgspec.json.decode(raw, type=Request)
