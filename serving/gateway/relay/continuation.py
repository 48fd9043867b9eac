"""Continuation: what of a stream another engine needs to go on with it, and what of that engine's events the client lacks.

Engines say before each event which tokens are behind it (`engine/continuation`). They are kept here, and taken out of the stream.
The engine that goes on makes all events anew, from the first, so that meters and shapers need to know nothing of a seam; here the
events that the client has are left out, once the last of them has proved to be the one that it has.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence

from serving.errors import GatewayFull
from serving.wire import NOTE, SEED_HEADER, SENT_HEADER

#: Bytes of tokens that are kept for one stream: some 120,000 tokens. A longer one cannot go on elsewhere.
NOTED_BYTES_MAX = 1024 * 1024
#: Bytes of memory that are asked for at a time.
TAKEN_BYTES = 4 * 1024

NO_NOTES: tuple[bytes, ...] = ()

_BORDER = b"\n\n"
#: When an answer was begun, once in each event that says it.
_CREATED = re.compile(rb'(data: \{[^\n]*?"created(?:_at)?":)(\d+)')
#: What is drawn or sealed anew each time, and says nothing of the text.
_DRAWN = re.compile(rb'("(?:signature|encrypted_content)":")[^"]*')


class Misaligned(Exception):
    """The engine that goes on did not make the event that the client had last. Never leaves this room."""


class Continuation:
    """One stream. `take` takes bytes of memory for its call; it raises GatewayFull when all calls have too many."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self._seed = secrets.token_hex(16)
        #: Tokens that engines have said, as JSON without its brackets.
        self._noted = bytearray()
        self._taken_bytes = 0
        #: Notes of the engine that goes on which repeat the ones that it was sent.
        self._repeated_bytes = 0
        self._is_too_long = False
        #: Events that the client has, and the last of them at the end of a block.
        self._events = 0
        self._last = b""
        self._created = b""
        #: Events that the engine makes again.
        self._ahead = 0
        self.resumed = 0

    @property
    def can_go_on(self) -> bool:
        """Whether another engine could go on: the engines have said all tokens behind what the client has."""
        return bool(self._noted) and not self._is_too_long

    @property
    def is_repeating(self) -> bool:
        """The engine that goes on has not yet come to what the client lacks."""
        return self._ahead > 0

    def begin(self) -> None:
        """An engine gets the call: one that goes on, or the first of which a client gets something."""
        if not self._events:
            self._noted.clear()
        self._ahead = self._events
        self._repeated_bytes = len(self._noted)

    def headers(self) -> dict[str, str]:
        """What an engine is asked for, and told."""
        headers = {SEED_HEADER.decode(): self._seed, "X-Request-Id": self._seed}
        return headers | ({SENT_HEADER.decode(): str(len(self._noted) + 2)} if self._events else {})

    def body(self, body: bytes) -> bytes:
        """The call's body as the engine gets it."""
        return b"[" + bytes(self._noted) + b"]" + body if self._events else body

    def received(self, block: bytes) -> bytes:
        """An engine's whole events without its notes, which are kept."""
        block, notes = self.parted(block)
        self.keep(notes)
        return block

    def parted(self, block: bytes) -> tuple[bytes, Sequence[bytes]]:
        """An engine's whole events without its notes, and these."""
        if block.startswith(NOTE) and block.find(NOTE, 1) < 0 and block.endswith(_BORDER):
            # One event, as nearly always.
            end = block.index(_BORDER)
            return block[end + len(_BORDER) :], (block[len(NOTE) : end],)
        start, kept = block.find(NOTE), 0
        parts, notes = [], []
        while start >= 0:
            # Elsewhere it is a text that looks like one.
            if start == kept or block.endswith(_BORDER, kept, start):
                end = block.find(_BORDER, start)
                if end < 0:
                    break
                notes.append(block[start + len(NOTE) : end])
                parts.append(block[kept:start])
                kept = end + len(_BORDER)
            start = block.find(NOTE, max(kept, start + 1))
        return (b"".join((*parts, block[kept:])), notes) if kept else (block, NO_NOTES)

    def keep(self, notes: Sequence[bytes]) -> None:
        """Keep what engines have said of tokens; what is said again by one that goes on is known."""
        for note in notes:
            self._keep(note)

    def _keep(self, note: bytes) -> None:
        if self._repeated_bytes > 0:
            self._repeated_bytes -= len(note) + 1
            return
        if self._is_too_long:
            return
        if self._noted:
            self._noted += b","
        self._noted += note
        if len(self._noted) > NOTED_BYTES_MAX or not self._has_memory():
            self._is_too_long = True
            self._noted.clear()

    def _has_memory(self) -> bool:
        while self._taken_bytes < len(self._noted):
            try:
                self._take(TAKEN_BYTES)
            except GatewayFull:
                return False
            self._taken_bytes += TAKEN_BYTES
        return True

    def lacking(self, block: bytes) -> bytes:
        """Of the whole events that come next, those that the client lacks; it gets them now. Raises Misaligned."""
        if not self._events and not self._created:
            created = _CREATED.search(block)
            self._created = created[2] if created else b""
        elif self.resumed or self._ahead:
            block = self._repeated(block)
        if block:
            self._events += block.count(_BORDER)
            self._last = block
        return block

    def _repeated(self, block: bytes) -> bytes:
        if self._created:
            block = _CREATED.sub(rb"\g<1>" + self._created, block)
        start = 0
        while self._ahead and start < len(block):
            end = block.find(_BORDER, start) + len(_BORDER)
            self._ahead -= 1
            if not self._ahead:
                self._require_same(block[start:end])
                self.resumed += 1
            start = end
        return block[start:]

    def _require_same(self, event: bytes) -> None:
        last = self._last[self._last.rfind(_BORDER, 0, -len(_BORDER)) + 1 :].lstrip(b"\n")
        if _DRAWN.sub(rb"\1", event) != _DRAWN.sub(rb"\1", last):
            raise Misaligned
