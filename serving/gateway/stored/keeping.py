"""Keeping: the sink of a call whose client waits and whose answer is stored: it is kept before the client has the end of it.

A client that goes on from a response as soon as it has it finds it there, whichever gateway it asks. What cannot be kept ends in an
error, and not in an id that leads to nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec

from serving.errors import InvalidRequest
from serving.gateway.answers import framing
from serving.gateway.http.asgi import Header, Responder, free

#: Bytes of a response that is stored.
RESPONSE_BYTES_MAX = 8 * 1024 * 1024
#: Bytes of a whole answer that are written at once.
PIECE_BYTES = 64 * 1024

_RESPONSE = b'"response":{'

#: Called with a finished response in JSON.
Keep = Callable[[bytes], Awaitable[None]]


def response_in(block: bytes) -> bytes | None:
    """The response that the last of whole events carries, in JSON; None where none does."""
    for event in reversed(list(framing.split(block))):
        if _RESPONSE in event and (document := framing.read(event)):
            return msgspec.json.encode(document["response"])
    return None


def require_room(size_bytes: int) -> None:
    """Raises InvalidRequest for a response that is too large to be stored."""
    if size_bytes > RESPONSE_BYTES_MAX:
        raise InvalidRequest(
            f"The response is larger than {RESPONSE_BYTES_MAX} bytes and cannot be stored; send 'store': false.",
            param="store",
        )


class KeepingSink:
    """Hands a stream on as it comes, and a whole answer when it is kept."""

    def __init__(
        self, client: Responder, keep: Keep, take_memory: Callable[[int], None] = free, *, is_streamed: bool
    ) -> None:
        self._client = client
        self._take_memory = take_memory
        self._keep = keep
        self._is_streamed = is_streamed
        self._is_kept = False
        #: A whole answer so far.
        self._headers: list[Header] | None = None
        self._body = bytearray()

    @property
    def is_whole(self) -> bool:
        return self._client.is_whole

    @is_whole.setter
    def is_whole(self, value: bool) -> None:
        self._client.is_whole = value

    @property
    def is_started(self) -> bool:
        return self._client.is_started if self._is_streamed else self._headers is not None

    @property
    def waited_s(self) -> float:
        return self._client.waited_s

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        if self._is_streamed:
            await self._client.start(status, headers)
        else:
            self._headers = list(headers)

    async def write(self, body: bytes) -> None:
        if not self._is_streamed:
            require_room(len(self._body) + len(body))
            self._take_memory(len(body))
            self._body += body
            return
        if self.is_whole and not self._is_kept and (response := response_in(body)) is not None:
            require_room(len(response))
            await self._keep(response)
            self._is_kept = True
        await self._client.write(body)

    @property
    def takes_now(self) -> bool:
        return self._is_streamed and self._client.takes_now

    def write_now(self, body: bytes) -> None:
        self._client.write_now(body)

    async def finish(self, body: bytes = b"") -> None:
        if not self._is_streamed:
            await self._hand_over(self._headers or [], bytes(self._body))
        await self._client.finish(body)

    async def _hand_over(self, headers: list[Header], whole: bytes) -> None:
        await self._keep(whole)
        await self._client.start(200, headers)
        for piece in pieces(whole):
            await self._client.write(piece)

    def cut(self) -> None:
        self._client.cut()


def pieces(whole: bytes) -> Iterator[bytes]:
    """What is written at once, one after another: what a client does not read waits with its call, and is counted there."""
    for start in range(0, len(whole), PIECE_BYTES):
        yield whole[start : start + PIECE_BYTES]


def status_of(response: bytes) -> str:
    """The state that a response says it has."""
    document: dict[str, Any] = msgspec.json.decode(response)
    return str(document.get("status") or "completed")
