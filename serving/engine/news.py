"""News: has anything changed that a gateway must learn at once? A gateway that has nothing to do waits for it in its poll.

An answer carries a token; a poll that brings the same token back is answered when there is news, or after a while (long
polling). Loads are no news: a gateway without calls has no use for them, and one with calls brings no token.
"""

from __future__ import annotations

import asyncio
import contextlib


class News:
    """Counts the changes of one incarnation of a directory."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._count = 0
        self._next = asyncio.Event()

    @property
    def token(self) -> str:
        """Names what has happened so far; another incarnation's never equals it."""
        return f"{self._incarnation}:{self._count}"

    def happen(self) -> None:
        """Something changed."""
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, token: str, within_s: float) -> None:
        """Return when there is news since `token`, and after `within_s` seconds at the latest."""
        if token == self.token:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._next.wait(), within_s)
