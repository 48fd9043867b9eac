"""Events: an engine's server-sent events as bytes, cut at event borders and stripped of usage that the client did not ask for;
never parsed chunk by chunk.

The byte patterns rest on one property of JSON: inside a string every quote is escaped and no newline is raw, so a
pattern with a bare quote or a newline can only match structure. Layouts: vLLM 0.32, `ChatCompletionStreamResponse` and
`CompletionStreamResponse` dumped by pydantic (tests/engine holds them against the classes).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Bytes of one unfinished event that are held back. The largest regular ones echo a request (8 MiB by default).
EVENT_BYTES_MAX = 16 * 1024 * 1024

KEEP_ALIVE = b": keep-alive\n\n"

#: What ends each event.
BORDER = b"\n\n"
#: The usage object with what it nests (details, and modalities inside those): numbers and nulls, no strings with braces.
_USAGE = re.compile(rb',"usage":\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\}')
_COMMENTS = re.compile(rb"\A(?:(?::|retry:)[^\n]*\n|\n)+")
_NO_CHOICES = b'"choices":[]'
_FINAL_CHUNK = re.compile(rb'data: \{[^\n]*"choices":\[\],"usage":[^\n]*\n\n')

_ERROR = b"error"
_ERROR_MARKS = (b'data: {"error"', b"event: error\n", b'data: {"type":"error"', b'data: {"object":"error"')
_ERROR_EVENT = re.compile(
    rb'(?:\A|(?<=\n\n))(?:event: error\n[^\n]*|(?:event: [^\n]*\n)?data: \{"(?:error"|(?:type|object)":"error")[^\n]*)\n\n'
)


class Splitter:
    """Releases whole events. `feed` returns what may go on; an unfinished tail waits for its rest."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._tail = bytearray()
        self._event_bytes_max = event_bytes_max

    @property
    def is_empty(self) -> bool:
        """No unfinished event waits for its rest."""
        return not self._tail

    def feed(self, data: bytes) -> bytes:
        """Everything up to the last event border. A tail past the limit is released as it is: better whole than held."""
        if not self._tail and data.endswith(BORDER):
            return data
        # A border may lie across two reads.
        searched = max(len(self._tail) - 1, 0)
        self._tail += data
        end = self._tail.rfind(BORDER, searched)
        if end >= 0:
            return self._release(end + len(BORDER))
        return self._release(len(self._tail)) if len(self._tail) > self._event_bytes_max else b""

    def _release(self, end: int) -> bytes:
        released = bytes(self._tail[:end])
        del self._tail[:end]
        return released


def are_ordinary(block: bytes, endings: Sequence[bytes]) -> bool:
    """Are these whole events, of which none is an error and none the stream's end?"""
    return block.endswith(BORDER) and find_error(block) is None and find_end(block, endings) is None


def without_usage(block: bytes, *, keeps_final: bool) -> bytes:
    """Chunks without the usage the gateway asked for; the final one stays for a client that asked for it itself."""
    if _NO_CHOICES not in block:
        return _USAGE.sub(b"", block)
    parts: list[bytes] = []
    position = 0
    for final in _FINAL_CHUNK.finditer(block):
        parts.append(_USAGE.sub(b"", block[position : final.start()]))
        if keeps_final:
            parts.append(final[0])
        position = final.end()
    parts.append(_USAGE.sub(b"", block[position:]))
    return b"".join(parts)


def without_comments(block: bytes) -> bytes:
    """Whole events without the comments, blank lines and `retry:` fields before the first one."""
    return _COMMENTS.sub(b"", block, count=1)


def find_end(block: bytes, endings: Sequence[bytes]) -> int | None:
    """Where a stream is over among whole events: behind the first event that is one of its endings. None while it is not."""
    for ending in endings:
        start = block.find(ending)
        if start >= 0:
            border = block.find(BORDER, start)
            return len(block) if border < 0 else border + len(BORDER)
    return None


def find_error(block: bytes) -> tuple[bytes, bytes] | None:
    """An error event among whole events: what stands before it, and its data. None when there is none."""
    # A word of them all: nearly no block has it.
    if _ERROR not in block or not any(mark in block for mark in _ERROR_MARKS):
        return None
    found = _ERROR_EVENT.search(block)
    if found is None:
        return None
    data = found[0].partition(b"data: ")[2].strip()
    return block[: found.start()], data
