"""An ASGI server's side of one request, for tests of what stands between it and the rooms."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from serving.gateway.http.asgi import FLOW, Flow, Header, Message, Scope


class Wire:
    """Hands out the messages of a request, and keeps those of its answer."""

    def __init__(self, *body: bytes, leaves: bool = False) -> None:
        """`leaves`: the client closes the connection after its last piece of a body that is not complete."""
        self._pieces = deque(body or (b"",))
        self._leaves = leaves
        self.left = asyncio.Event()
        #: Messages that were asked for.
        self.asked = 0
        self.sent: list[Message] = []

    def scope(
        self, method: str = "POST", path: str = "/", headers: tuple[Header, ...] = (), flow: Flow | None = None
    ) -> Scope:
        extensions = {FLOW: flow} if flow else {}
        return {"type": "http", "method": method, "path": path, "headers": headers, "extensions": extensions}

    async def receive(self) -> Message:
        self.asked += 1
        if self._pieces:
            piece = self._pieces.popleft()
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or self._leaves}
        if not self._leaves:
            await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


class TimedFlow:
    """A connection whose client reads slowly, by as much as a test says."""

    def __init__(self, waited_s: float = 0.0) -> None:
        self.waited_s = waited_s
        self.is_cut = False
        self.is_closed = False
        self.takes_now = False
        self.has_request = False
        self.tell: Callable[[], None] | None = None

    def on_left(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def take_back(self, tell: Callable[[], None]) -> None:
        if self.tell == tell:
            self.tell = None

    def write_now(self, body: bytes) -> None: ...

    def cut(self) -> None:
        self.is_cut = True
