"""Running: a response that runs in the background: what has been made of it so far, for those who follow it, here and elsewhere.

The engine's answer goes into it as into any sink. Its events are kept in the database in pieces, so that any gateway can go on with
the stream for a client that comes back; those who follow it here have them at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import accumulate, islice, takewhile

import msgspec

from serving.errors import ApiError, RateLimitExceeded
from serving.gateway.answers import framing
from serving.gateway.http.asgi import Header, free
from serving.gateway.stored.keeping import require_room, response_in

#: Bytes of one response's events that are kept; of a longer stream the last event follows on those.
EVENT_BYTES_MAX = 8 * 1024 * 1024
#: Bytes of its last events that followers have from memory once it is over; one that is further behind reads the database.
TAIL_BYTES = 64 * 1024

_NUMBER = re.compile(rb'"sequence_number":(\d{1,15})')
_CREATED = b"event: response.created\n"
#: Called with the finished response in JSON.
End = Callable[[bytes], Awaitable[object]]


class Running:
    """One response: a Sink, and what followers read."""

    def __init__(self, response_id: str, tenant_id: str, *, is_streamed: bool, end: End) -> None:
        self.id = response_id
        self.tenant_id = tenant_id
        self.is_streamed = is_streamed
        self._end = end
        #: Number of an event → the event; those before them, as many as were `dropped`, are in the database alone.
        self.events: list[tuple[int, bytes]] = []
        self.dropped = 0
        self.last_number = -1
        #: Events that stand before the engine's.
        self._own = 0
        self._event_bytes = 0
        #: Events that are in the database.
        self.kept = 0
        self.is_over = False
        self._body = bytearray()
        self._changed = asyncio.Event()
        #: One piece is kept at a time: none is missing once the end is told.
        self.keeping = asyncio.Lock()
        #: Takes bytes of the gateway's memory; raises GatewayFull where all calls have too many.
        self.take_memory: Callable[[int], None] = free
        self.is_whole = False
        self.is_started = False
        self.status: int | None = None
        self.waited_s = 0.0
        # Each write may raise, for want of memory.
        self.takes_now = False

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        self.is_started = True
        self.status = status

    async def write(self, body: bytes) -> None:
        if not self.is_streamed:
            require_room(len(self._body) + len(body))
            self.take_memory(len(body))
            self._body += body
        elif self.is_whole and not self.is_over and (response := response_in(body)) is not None:
            require_room(len(response))
            *before, last = self._numbered(body)
            self._take(b"".join(before))
            # Once its end is kept nothing may fail any more.
            self.take_memory(len(last))
            await self._end(response)
            self._add(last)
            # Kept as well: it is made of the response.
            self.kept = self.count
            self.close()
        else:
            self.write_now(body)

    def write_now(self, body: bytes) -> None:
        self._take(b"".join(self._numbered(body)))

    async def finish(self, body: bytes = b"") -> None:
        if not self.is_streamed:
            await self._end(bytes(self._body))
        self.close()

    def open(self, document: dict[str, object]) -> None:
        """The first events of a stream: the response is there, and waits. The engine's own beginning is left out."""
        for kind in ("response.created", "response.queued"):
            number = self.last_number + 1
            self._take(framing.named({"type": kind, "sequence_number": number, "response": document}))
        self._own = self.last_number + 1

    def cut(self) -> None:
        return None

    def fail(self, last: bytes) -> None:
        """It came to nothing, which the `last` event of its stream says."""
        if self.is_streamed and not self.is_over:
            # Its call is over, and its memory given back: none is there to be taken.
            self._add(last)
        self.close()

    def close(self) -> None:
        """Nothing follows. Its call's memory is given back: what is kept is held no more, but for the end that followers wait for."""
        self.is_over = True
        sizes = accumulate(len(event) for _, event in reversed(self.events))
        held = sum(1 for _ in takewhile(lambda size: size <= TAIL_BYTES, sizes))
        gone = min(len(self.events) - held, self.kept - self.dropped)
        self.dropped += gone
        del self.events[:gone]
        self._tell()

    @property
    def count(self) -> int:
        """Events so far."""
        return self.dropped + len(self.events)

    def has(self, place: int) -> bool:
        """Are the events from the one at this place on still in memory?"""
        return place >= self.dropped

    def behind(self, place: int, bytes_max: int) -> list[tuple[int, bytes]]:
        """Events from a place on, for one that it `has`: one at least and else no more than so many bytes."""
        start = place - self.dropped
        sizes = accumulate(len(event) for _, event in islice(self.events, start, None))
        count = sum(1 for _ in takewhile(lambda size: size <= bytes_max, sizes))
        return self.events[start : start + max(count, 1)]

    def unkept(self) -> list[tuple[int, bytes]]:
        """Events that are yet to be kept."""
        return self.events[self.kept - self.dropped :]

    async def changed(self, limit_s: float) -> None:
        """Return when something has come, or after so long."""
        changed = self._changed
        try:
            async with asyncio.timeout(limit_s):
                await changed.wait()
        except TimeoutError:
            return

    def _numbered(self, block: bytes) -> list[bytes]:
        """The engine's events behind those that stand before them."""
        events = framing.split(block)
        if not self._own:
            return events
        # Its `response.created` is among them: what follows moves on by one less.
        shift = self._own - 1
        return [_NUMBER.sub(partial(_moved, shift), event, 1) for event in events if not event.startswith(_CREATED)]

    def _take(self, block: bytes) -> None:
        if self._event_bytes + len(block) > EVENT_BYTES_MAX:
            return
        self.take_memory(len(block))
        self._event_bytes += len(block)
        self._add(block)

    def _add(self, block: bytes) -> None:
        for event in framing.split(block):
            if (number := _NUMBER.search(event)) is not None:
                self.last_number = int(number[1])
                self.events.append((self.last_number, event))
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _moved(shift: int, number: re.Match[bytes]) -> bytes:
    return b'"sequence_number":%d' % (int(number[1]) + shift)


def last_event(document: dict[str, object], number: int) -> bytes:
    """The event that ends the stream of a response; it is made anew where the one that was sent is not at hand."""
    return framing.named({"type": f"response.{document['status']}", "sequence_number": number, "response": document})


def numbered(block: bytes) -> list[tuple[int, bytes]]:
    """The events of a kept piece, each with its number."""
    return [(int(found[1]), event) for event in framing.split(block) if (found := _NUMBER.search(event))]


def failed(document: dict[str, object], error: ApiError | None) -> dict[str, object]:
    """A response that came to nothing."""
    return document | {"status": "failed", "error": _said(error)}


def cancelled(document: dict[str, object], error: ApiError | None = None) -> dict[str, object]:
    """A response that was ended by a client, or because of an error of who called."""
    return document | {"status": "cancelled"} | ({"error": _said(error)} if error else {})


def _said(error: ApiError | None) -> dict[str, object]:
    """An error in a response; the codes are those that OpenAI's have."""
    if isinstance(error, RateLimitExceeded):
        code = "rate_limit_exceeded"
    elif error is not None and error.status < 500:
        code = "invalid_prompt"
    else:
        code = "server_error"
    message = error.message if error else "The gateway that ran this response was stopped; it was not run again."
    return {"code": code, "message": message}


def encoded(document: dict[str, object]) -> bytes:
    """A response as it is kept."""
    return msgspec.json.encode(document)
