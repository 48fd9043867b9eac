"""Sink: what an answer is written to. The HTTP responder is one; whatever else takes answers is metered and billed on the same
path.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from serving.gateway.http.asgi import Header


class Sink(Protocol):
    """Takes one answer: `start`, then `write` any number of times, then `finish`."""

    #: All that a client reads of the answer has been handed over, though it has not been finished yet.
    is_whole: bool

    @property
    def is_started(self) -> bool: ...

    @property
    def waited_s(self) -> float:
        """Seconds that writes waited because the reader is slower than the engine."""
        ...

    async def start(self, status: int, headers: Iterable[Header]) -> None: ...

    async def write(self, body: bytes) -> None:
        """Pass bytes on; waits while the reader is slower than the engine (backpressure)."""
        ...

    @property
    def takes_now(self) -> bool:
        """Would a `write` neither wait nor begin anything? Then `write_now` does the same."""
        ...

    def write_now(self, body: bytes) -> None:
        """Pass bytes on in this turn of the event loop; for a sink that `takes_now`."""

    async def finish(self, body: bytes = b"") -> None: ...

    def cut(self) -> None:
        """Give the reader up; what it has not read is lost."""
        ...
