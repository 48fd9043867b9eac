"""Stops: a client's stop strings, searched in the text that the client sees, however the engine cuts it into deltas.

What may be the beginning of a match is held back until more text decides. The match that is complete first ends the text, and of
two that end together the longer one.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopSearch:
    """One text on its way. After a match nothing more of it goes on."""

    def __init__(self, stops: Sequence[str], *, keeps_match: bool) -> None:
        self._stops = stops
        self._keeps_match = keeps_match
        self._held = ""
        #: The stop string that ended the text.
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """What may go on now that `text` has come."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._keeps_match else start]
        border = min((_beginning(stop, text) for stop in self._stops), default=len(text))
        self._held = text[border:]
        return text[:border]

    def rest(self) -> str:
        """The text is over: what was held back is no match."""
        held, self._held = self._held, ""
        return held


def _beginning(stop: str, text: str) -> int:
    """The first place from which the end of `text` is a beginning of `stop`; the text's length where there is none."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) if start < 0 else start
