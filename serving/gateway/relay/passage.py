"""Passage: a stream's events on their way in the turn of the event loop in which they come, without a task that wakes for each
(RLY-41).

Only what is ordinary goes so: whole events in the middle of a stream, while the client takes what is written. Everything else is
left to the relay, which sees it as if this were not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.gateway.dialects.dialect import Stream
from serving.gateway.relay.events import Splitter
from serving.gateway.relay.exchange import Exchange


class Passage:
    """One engine's stream to one client."""

    def __init__(self, exchange: Exchange, stream: Stream, splitter: Splitter) -> None:
        self._exchange = exchange
        self._stream = stream
        self._splitter = splitter

    def take(self, data: bytes) -> bool:
        """Pass on what has come; False, and nothing is done, where it is the relay's; raises Misshapen."""
        exchange = self._exchange
        return exchange.takes_now and self._splitter.is_empty and exchange.pass_on_now(data, self._stream)


class Reminder:
    """Calls `remind` once no time is left, while inside: one timer, which looks when it fires, and not one for each event."""

    def __init__(self, left_s: Callable[[], float], remind: Callable[[], None]) -> None:
        self._left_s = left_s
        self._remind = remind

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._left_s(), self._look)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if (left_s := self._left_s()) > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._look)
        else:
            self._remind()
