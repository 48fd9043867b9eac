"""Chunk answers: completions', and what chat has in common with them. Chunks lose the engine's private keys by their bytes.

The byte patterns rest on one property of JSON: inside a string every quote is escaped, so a bare one is structure.
"""

from __future__ import annotations

import re

from serving.gateway.answers import documented, framing
from serving.gateway.answers.shaper import Shaper

#: How the choice of an ordinary chunk of chat ends, and what is left of that. It is looked for first: nearly all chunks are such.
_ORDINARY = b'"finish_reason":null,"token_ids":null}]'
_LEFT = b'"finish_reason":null}]'
_NEXT = b"\n\nd"
#: In every chunk of chat but the first.
_TOKEN_IDS = b',"token_ids":null'
#: In few chunks, or in completions'.
_PRIVATE = re.compile(
    rb',"(?:prompt_token_ids|prompt_text|prompt_logprobs|token_ids)":null'
    rb'|,"stop_reason":(?:null|-?\d+|"(?:[^"\\]|\\.)*")'
)
_MARKS = (b'"stop_reason":', b'"prompt_text":')


#: Only the last chunk has none.
_NO_CHOICES = b'"choices":[]'


_BEGINNING = b'data: {"id":"'
_USAGE = b',"usage":{'
_END = b"}}\n\n"


class ChunkShaper(Shaper):
    """An answer of choices, whole or as deltas."""

    shape = documented.COMPLETION

    def events(self, block: bytes) -> bytes:
        if (chunk := ordinary(block)) is not None:
            return chunk
        block = without_private_keys(block)
        return b"".join(map(self._last, framing.split(block))) if _NO_CHOICES in block else block

    def _last(self, event: bytes) -> bytes:
        """The last chunk, whose usage has details of vLLM's own; any other as it is."""
        chunk = framing.read(event) if _NO_CHOICES in event else None
        return event if chunk is None else framing.chunk(documented.pruned(chunk, self.shape))


def ordinary(block: bytes) -> bytes | None:
    """One chunk in the middle of its choice, without private keys; None for any other block."""
    head, found, tail = block.partition(_ORDINARY)
    return head + _LEFT + tail if found and _NEXT not in block else None


def without_usage(event: bytes) -> bytes | None:
    """`ordinary` for one event, its usage left out too; None for any other.

    By places instead of patterns: usage is the chunk's last key, and nests one object at most.
    """
    head, found, tail = event.partition(_ORDINARY)
    if not (found and tail.startswith(_USAGE) and tail.endswith(_END) and event.startswith(_BEGINNING)):
        return None
    if event.find(b"\n") != len(event) - 2 or _USAGE in head or _NO_CHOICES in head:
        return None
    opened = tail.count(b"{")
    if opened > 2 or tail.count(b"}") != opened + 1 or tail.find(b"}") < tail.rfind(b"{"):
        return None
    return head + _LEFT + b"}\n\n"


def without_private_keys(block: bytes) -> bytes:
    """Chunks without the keys of vLLM's own that they have when nothing of the kind was asked for."""
    block = block.replace(_TOKEN_IDS, b"")
    return _PRIVATE.sub(b"", block) if any(mark in block for mark in _MARKS) else block
