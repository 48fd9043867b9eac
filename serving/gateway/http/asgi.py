"""ASGI: one Request and one Responder per request, between the HTTP server and everything that answers."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import parse_qs

from serving.errors import InvalidRequest, RequestTooLarge
from serving.gateway.nouns import ClientLeft

# ASGI itself types its messages as open mappings (asgiref.typing); they do not travel past this module.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

#: A client's own request id is taken over only in this shape: it goes to logs and the ledger.
SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")


#: The extension under which a server tells of a connection's Flow.
FLOW = "serving.flow"
#: The extension that holds the InvalidRequest of a request that is no HTTP; it may come while the body is read.
FAULT = "serving.fault"


class Flow(Protocol):
    """Whether one connection's client takes what is written to it."""

    #: Seconds that writes have waited for the client so far, in all requests on this connection.
    waited_s: float

    @property
    def is_closed(self) -> bool:
        """Can nothing more be written?"""
        ...

    @property
    def takes_now(self) -> bool:
        """Has the answer begun, in pieces, and is there room for the next one?"""
        ...

    @property
    def has_request(self) -> bool:
        """Has all come of the request that is served, its body included?"""
        ...

    def on_left(self, tell: Callable[[], None]) -> None:
        """Call `tell`, and no other, when the client closes the connection; at once where it has."""

    def take_back(self, tell: Callable[[], None]) -> None:
        """Call `tell` no more; that of a later request on the connection stays."""

    def write_now(self, body: bytes) -> None:
        """Send the next piece of the answer that runs; for a flow that `takes_now`."""

    def cut(self) -> None:
        """Close the connection now, whatever the client has not read."""


def free(_: int) -> None:
    """There is room for anything."""


class Request:
    """What the client sent: method, path, headers at once, the body when asked for."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        #: Of the client's connection here: what a proxy before us speaks it does not say.
        self.scheme: str = scope.get("scheme", "http")
        self.query_string: bytes = scope.get("query_string", b"")
        self._extensions = scope.get("extensions", {})
        #: None where the server does not tell.
        self.flow: Flow | None = self._extensions.get(FLOW)
        self._sent_headers: Iterable[Header] = scope["headers"]
        self._headers = dict(self._sent_headers)
        self._receive = receive

    def header(self, name: str) -> str | None:
        """A header's value, or None."""
        value = self._headers.get(name.lower().encode("ascii"))
        return None if value is None else value.decode("latin-1").strip()

    def query(self, name: str) -> str | None:
        """A parameter of the query, its last value, or None."""
        return parse_qs(self.query_string.decode("latin-1")).get(name, [None])[-1]

    def query_names(self) -> set[str]:
        """The names of the query's parameters, those without a value included."""
        return set(parse_qs(self.query_string.decode("latin-1"), keep_blank_values=True))

    def joined(self, name: str) -> str | None:
        """All values of a header that may be sent in parts, or None."""
        wanted = name.lower().encode("ascii")
        return ",".join(value.decode("latin-1") for sent, value in self._sent_headers if sent == wanted) or None

    def request_id(self) -> str:
        """The client's own id when it is safe to repeat, else a fresh one."""
        given = self.header("x-request-id")
        if given and SAFE_REQUEST_ID.fullmatch(given):
            return given
        # A name and no secret: one asked of the kernel costs a hundred times as much, and gives the interpreter away meanwhile.
        return f"req_{random.getrandbits(96):024x}"

    def presented_key(self) -> str | None:
        """The API key from `Authorization: Bearer …` or Anthropic's `x-api-key`."""
        scheme, _, key = (self.header("authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return key.strip()
        return self.header("x-api-key") or None

    def require_http(self) -> None:
        """Raises InvalidRequest where what has been sent so far is no HTTP."""
        fault: InvalidRequest | None = self._extensions.get(FAULT)
        if fault is not None:
            raise fault

    async def read_body(self, max_bytes: int, take: Callable[[int], None] = free) -> bytes:
        """The whole body; raises RequestTooLarge past `max_bytes`, before or while reading, ClientLeft and InvalidRequest.

        `take` is asked for room before each piece is kept, and may raise.

        What is left unread the HTTP server throws away after the answer.
        """
        announced = self.header("content-length") or ""
        if announced.isdigit() and int(announced) > max_bytes:
            raise RequestTooLarge(f"The request body is larger than {max_bytes} bytes.")
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            self.require_http()
            piece = message.get("body", b"")
            if len(body) + len(piece) > max_bytes:
                raise RequestTooLarge(f"The request body is larger than {max_bytes} bytes.")
            take(len(piece))
            body += piece
            if not message.get("more_body", False):
                return bytes(body)

    async def pieces(self, max_bytes: int) -> AsyncIterator[bytes]:
        """The body as it comes, never held whole; raises RequestTooLarge past `max_bytes`, ClientLeft and InvalidRequest."""
        count, has_more = 0, True
        while has_more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            self.require_http()
            piece, has_more = message.get("body", b""), message.get("more_body", False)
            count += len(piece)
            if count > max_bytes:
                raise RequestTooLarge(f"The request body is larger than {max_bytes} bytes.")
            yield piece

    def cancel_when_client_leaves(self, responder: Responder) -> Attention:
        """Cancels the body of this `with` when the client disconnects; raises ClientLeft then."""
        return Attention(self, responder)

    @property
    def has_come(self) -> bool:
        """The body can be read without waiting for the client."""
        return self.flow is not None and self.flow.has_request

    async def left(self) -> None:
        """Return when the client has closed the connection, or has its answer; the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Attention:
    """Whether the client is still there, while inside `async with`."""

    def __init__(self, request: Request, responder: Responder) -> None:
        self._request = request
        self._responder = responder
        self._has_left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a running task can be cancelled")
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        if self._request.flow is not None:
            self._request.flow.on_left(self._leave)
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        elif self._request.flow is not None:
            self._request.flow.take_back(self._leave)
        if not self._has_left:
            return
        if kind is None:
            # The cancellation has not been delivered yet; take it here rather than in someone else's await.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        elif not issubclass(kind, asyncio.CancelledError):
            return
        if self._task.uncancel() == 0:
            raise ClientLeft from None
        if kind is None:
            raise asyncio.CancelledError

    async def _watch(self) -> None:
        await self._request.left()
        self._leave()

    def _leave(self) -> None:
        # A server also says so once the answer is complete.
        if not (self._responder.is_complete or self._responder.is_whole):
            self._has_left = True
            self._task.cancel()


class Responder:
    """The one answer to a request, with the headers that it has `always`; knows how far it has got."""

    def __init__(self, send: Send, request_id: str, flow: Flow | None = None, always: Sequence[Header] = ()) -> None:
        self._send = send
        self._always = always
        self._flow = flow
        self._waited_before_s = flow.waited_s if flow else 0.0
        self.request_id = request_id
        self.status: int | None = None
        self.is_complete = False
        #: All that a client reads of it has been handed over, though it has not been closed yet.
        self.is_whole = False
        self._announced: list[Header] = []
        self._is_safe: Callable[[], Awaitable[None]] | None = None

    def announce(self, *headers: Header) -> None:
        """Headers that go out with the answer, whichever it will be: whole, streamed or an error."""
        self._announced += headers

    def wait_for(self, is_safe: Callable[[], Awaitable[None]]) -> None:
        """Hand over nothing, not even a status, before `is_safe` has returned."""
        self._is_safe = is_safe

    @property
    def is_started(self) -> bool:
        return self.status is not None

    @property
    def waited_s(self) -> float:
        """Seconds that writes of this answer waited because the client read more slowly than the engine wrote."""
        return self._flow.waited_s - self._waited_before_s if self._flow else 0.0

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        if self._is_safe:
            await self._is_safe()
        self.status = status
        all_headers = [(b"x-request-id", self.request_id.encode("ascii")), *self._always, *self._announced, *headers]
        await self._hand_over({"type": "http.response.start", "status": status, "headers": all_headers})

    async def write(self, body: bytes) -> None:
        """Pass bytes on; waits while the client is slower than the engine."""
        await self._hand_over({"type": "http.response.body", "body": body, "more_body": True})

    @property
    def takes_now(self) -> bool:
        """Would a `write` neither wait nor begin anything? Then `write_now` does the same."""
        return self._flow is not None and not self.is_complete and self.status is not None and self._flow.takes_now

    def write_now(self, body: bytes) -> None:
        """Pass bytes on in this turn of the event loop; for a responder that `takes_now`."""
        if self._flow is not None:
            self._flow.write_now(body)

    async def finish(self, body: bytes = b"") -> None:
        self.is_complete = True
        await self._hand_over({"type": "http.response.body", "body": body, "more_body": False})

    async def _hand_over(self, message: Message) -> None:
        """Raises ClientLeft where the connection is closed under the answer, which uvloop says in a RuntimeError."""
        try:
            await self._send(message)
        except RuntimeError:
            if self._flow is None or not self._flow.is_closed:
                raise
            self._flow.cut()
            raise ClientLeft from None

    def cut(self) -> None:
        """Give the client up; what it has not read is lost."""
        if self._flow:
            self._flow.cut()

    async def whole(
        self, status: int, body: bytes, headers: Iterable[Header] = (), content_type: bytes = b"application/json"
    ) -> None:
        """A complete answer at once."""
        length = str(len(body)).encode("ascii")
        await self.start(status, [(b"content-type", content_type), (b"content-length", length), *headers])
        await self.finish(body)


def require_json(request: Request) -> None:
    """Refuses a body that says it is something other than JSON."""
    content_type = (request.header("content-type") or "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise InvalidRequest("The request body must be JSON, sent with the header 'content-type: application/json'.")
