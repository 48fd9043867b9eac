"""Visit: one request on its way through: what was sent, the answer, the record of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from serving.errors import ApiError, RequestTimedOut
from serving.gateway.dialects import speaks_anthropic
from serving.gateway.http.asgi import Header, Request, Responder, free
from serving.gateway.nouns import CallRecord
from serving.gateway.observe.tracing import Trace


class Visit:
    """What a handler works with."""

    def __init__(
        self,
        request: Request,
        responder: Responder,
        record: CallRecord,
        trace: Trace,
        clock: Callable[[], float],
    ) -> None:
        self.request = request
        self.responder = responder
        self.record = record
        self.trace = trace
        self.clock = clock
        #: The client speaks Anthropic's API.
        self.is_anthropic = speaks_anthropic(request.path, request.header("anthropic-version"))
        if self.is_anthropic:
            # The name under which Anthropic's clients know it.
            responder.announce((b"request-id", responder.request_id.encode("ascii")))
        #: What stands in place of `{id}` in the route's path.
        self.argument = ""
        #: The bytes that end a stream which has begun, for an error; None where no stream is answered.
        self.error_event: Callable[[ApiError], bytes] | None = None
        #: Its call runs on in the background, and is settled there.
        self.is_handed_over = False

    def announce(self, *headers: Header) -> None:
        """Headers that go out with the answer, whichever it will be."""
        self.responder.announce(*headers)

    async def body(self, max_bytes: int, limit_s: float, take: Callable[[int], None] = free) -> bytes:
        """The request's whole body, within `limit_s`; raises RequestTimedOut and what `Request.read_body` does."""
        if self.request.has_come:
            return await self.request.read_body(max_bytes, take)
        began_at = self.clock()
        try:
            async with asyncio.timeout(limit_s):
                return await self.request.read_body(max_bytes, take)
        except TimeoutError:
            raise RequestTimedOut(f"The request body did not arrive within {limit_s:g} seconds.") from None
        finally:
            self.record.body_s = self.clock() - began_at

    async def answer(self, status: int, body: msgspec.Struct | dict[str, object]) -> None:
        """A complete answer in JSON."""
        await self.responder.whole(status, msgspec.json.encode(body))


Handler = Callable[[Visit], Awaitable[None]]
