"""Logprobs: of the entries that an engine gives for all tokens it made, those of the text that the client sees.

Reasoning, headers and markers have entries too (Harmony's `<|channel|>final<|message|>`, an end-of-turn token); OpenAI's
`logprobs.content` is about the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

Entry = dict[str, Any]


class Visible:
    """The entries of one content, given out as far as its text is."""

    def __init__(self) -> None:
        #: Tokens that ended inside a character, which comes with a later one.
        self._unfinished: list[Entry] = []
        #: Entries whose text has come, and has not all been given out.
        self._waiting: list[Entry] = []
        self._released_bytes = 0

    def take(self, entries: Sequence[Entry], text: str) -> None:
        """Entries of the tokens that came with `text`, and with no text if that is empty."""
        entries = [*self._unfinished, *entries]
        self._unfinished = [] if text else [entry for entry in entries if _is_unfinished(entry)]
        if text:
            self._waiting += spelling(entries, text)

    def release(self, text: str) -> list[Entry]:
        """The entries that end within the text given out so far, `text` added to it."""
        self._released_bytes += len(text.encode())
        ends = [*accumulate(len(_bytes(entry)) for entry in self._waiting)]
        count = sum(end <= self._released_bytes for end in ends)
        released, self._waiting = self._waiting[:count], self._waiting[count:]
        self._released_bytes -= ends[count - 1] if count else 0
        return released


def spelling(entries: Sequence[Entry], text: str) -> list[Entry]:
    """The run of entries that spells `text`, the last one; where none does, all but markers, which have no text."""
    borders = [0, *accumulate(len(_bytes(entry)) for entry in entries)]
    wanted = text.encode()
    start = b"".join(map(_bytes, entries)).rfind(wanted)
    if start in borders and start + len(wanted) in borders:
        run = list(entries[borders.index(start) : borders.index(start + len(wanted))])
    else:
        run = [entry for entry in entries if entry["token"]]
    return [entry | {"top_logprobs": _named(entry.get("top_logprobs") or ())} for entry in run]


def _named(alternatives: Sequence[Entry]) -> list[Entry]:
    """Tokens that might have stood there, without markers: those have no name here."""
    return [entry for entry in alternatives if entry["token"] or not entry.get("bytes")]


def _bytes(entry: Entry) -> bytes:
    said = entry.get("bytes")
    return bytes(said) if said is not None else str(entry["token"]).encode()


def _is_unfinished(entry: Entry) -> bool:
    try:
        _bytes(entry).decode()
    except UnicodeDecodeError:
        return True
    return False
