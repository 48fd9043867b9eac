"""Shaper: one answer between the engine's words and the client's. Each API has its own; this one only leaves keys out.

A new wish on answers (a field to fill in, something to remember of them) is a line in an API's `_finished`, which sees a whole answer
as its client gets it, or a Shaper that reads events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec

from serving.gateway.answers import documented
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.documented import Document, Shape
from serving.gateway.nouns import Usage

#: Tokens of the answer so far, as the meter has them.
Counted = Callable[[], Usage]


class Shaper:
    """One answer, whole or streamed; made anew for each attempt at an engine."""

    #: The keys of a whole answer; None where all of them pass.
    shape: Shape | None = None

    def __init__(self, asked: Asked, counted: Counted) -> None:
        self._asked = asked
        self._counted = counted
        #: The client has all that it gets, though the engine goes on: its connection is closed.
        self.is_over = False

    def events(self, block: bytes) -> bytes:
        """What the client gets for whole events of the engine's stream; may be nothing."""
        return block

    def ordinary(self, event: bytes) -> bytes | None:
        """The same for one event in the middle of a stream, without its usage; None, and nothing is done, for any other."""
        return None

    def whole(self, body: bytes) -> bytes:
        """What the client gets for the engine's whole answer; as it is where it is no JSON object."""
        answer = documented.read(body, self.shape) if self.shape else None
        return body if answer is None else msgspec.json.encode(self._finished(answer))

    def _finished(self, answer: Document) -> Document:
        """A whole answer as its client gets it."""
        return answer


class Assembly(ABC):
    """A whole answer, put together from a stream that was shaped."""

    def __init__(self) -> None:
        #: Characters of text that it holds; the relay bounds them.
        self.held_chars = 0

    @abstractmethod
    def add(self, block: bytes) -> None:
        """More whole events."""

    @abstractmethod
    def body(self) -> bytes:
        """The answer; the stream has ended."""
