"""Capture: the reasoning in a stream that calls tools, read once in a while and not chunk by chunk.

Bytes are set aside as they pass, and read when there are many, or when the answer ends. They rest on one property of JSON: inside
a string every quote is escaped, so a bare one is structure.
"""

from __future__ import annotations

import re

import msgspec

from serving.gateway.answers.reasoning import TEXT_BYTES_MAX, Keeper

#: Bytes set aside before they are read.
ASIDE_BYTES_MAX = 16 * 1024
#: Calls of one answer.
CALLS_MAX = 128

_STRING = rb'"([^"\\]*(?:\\.[^"\\]*)*)"'


class Marks(msgspec.Struct, frozen=True):
    """Where one API's events say it."""

    #: A piece of reasoning; its text is the only group.
    text: re.Pattern[bytes]
    #: The beginning of a call; its id is the only group.
    call: re.Pattern[bytes]
    #: Stands in the event that says why the answer ended.
    end: bytes


CHAT = Marks(
    re.compile(rb'"reasoning":' + _STRING),
    re.compile(rb'\{"id":"([^"\\]{1,128})","type":"function"'),
    b'"finish_reason":"',
)
MESSAGES = Marks(
    re.compile(rb'"thinking":' + _STRING),
    re.compile(rb'"type":"tool_use","id":"([^"\\]{1,128})"'),
    b"event: message_delta\n",
)


class Capture:
    """One answer's reasoning, kept with the ids of its calls once it ends."""

    def __init__(self, marks: Marks, keeper: Keeper) -> None:
        self._marks = marks
        self._keeper = keeper
        self._aside = bytearray()
        self._text = bytearray()
        self._calls: list[str] = []

    def feed(self, block: bytes) -> None:
        """More whole events of the engine's."""
        self._aside += block
        if self._marks.end in block:
            self._read()
            self._keep()
        elif len(self._aside) > ASIDE_BYTES_MAX:
            self._read()

    def _read(self) -> None:
        for piece in self._marks.text.findall(self._aside):
            if len(self._text) <= TEXT_BYTES_MAX:
                self._text += piece
        self._calls += [call.decode(errors="replace") for call in self._marks.call.findall(self._aside)]
        del self._calls[CALLS_MAX:]
        self._aside.clear()

    def _keep(self) -> None:
        if not self._calls or not self._text:
            return
        try:
            text = msgspec.json.decode(b'"' + self._text + b'"', type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        self._keeper.keep(text, *self._calls)
