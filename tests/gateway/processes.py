"""Processes for tests of what several do at once: forked from one that has imported the gateway already, so each starts
in milliseconds instead of a second."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["serving.gateway.cli.opening", "serving.gateway.ledger.ledger", "alembic.command"])


def _meet(start: multiprocessing.synchronize.Barrier) -> None:
    start.wait(60)


def at_once(count: int, do: Callable[..., T], *arguments: object) -> list[T]:
    """What `do` returns in each of `count` processes, all of which begin when the last one is there.

    `do` is a module's own function, so that another process can find it. Raises what it raises.
    """
    start = FORKS.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=FORKS, initializer=_meet, initargs=(start,)) as pool:
        return [future.result(60) for future in [pool.submit(do, *arguments) for _ in range(count)]]
