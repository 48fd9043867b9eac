"""Desk: database work beside the event loop."""

from __future__ import annotations

import threading

import pytest

from serving.gateway.stored.desk import THREADS, Desk


async def test_work_is_done_in_a_few_threads_and_gives_what_it_gives() -> None:
    """What it returns, what it raises; never in the event loop's own thread."""
    desk = Desk()
    threads = {await desk.done(threading.get_ident) for _ in range(8)}

    assert len(threads) <= THREADS and threading.get_ident() not in threads
    assert await desk.done(int, "7") == 7
    with pytest.raises(ValueError, match="invalid"):
        await desk.done(int, "x")
    desk.close()
    with pytest.raises(RuntimeError):
        await desk.done(int, "7")
