"""Desk: the database work of what is stored, in threads of its own: one that hangs holds up no call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

#: As many connections to the database at most.
THREADS = 2

P = ParamSpec("P")
T = TypeVar("T")


class Desk:
    """`await desk.done(work, …)` returns what `work` does, and raises what it raises."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="stored")

    async def done(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In a thread, when it is its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def close(self) -> None:
        """No further work is taken."""
        self._threads.shutdown(wait=False, cancel_futures=True)
