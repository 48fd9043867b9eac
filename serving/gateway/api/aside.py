"""Aside: work on a long body goes to a thread, so that the event loop turns meanwhile (GW-22)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

#: Bytes of a body that is read in the event loop: with as much structure as fits into it, that takes 20 ms. For a longer one
#: a thread costs a tenth of a millisecond.
BODY_BYTES_INLINE = 64 * 1024

T = TypeVar("T")


class Aside:
    """One thread's worth of work at a time: more would only share the interpreter, and hold the loop up longer."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def done(self, work: Callable[[], T], body_bytes: int) -> T:
        """What `work` on a body of this size returns or raises."""
        if body_bytes <= BODY_BYTES_INLINE:
            return work()
        await self._turn.acquire()
        working = asyncio.create_task(asyncio.to_thread(work))
        # Not when the call that waits is cancelled: the thread works on.
        working.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(working)
