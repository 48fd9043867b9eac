"""Descriptors: a process that has none left says so, once, and says when it has some again."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.gateway.http import descriptors
from serving.gateway.http.descriptors import REPEAT_S, WANTED, follow, is_any_left, raise_limit
from tests.clock import Clock
from tests.gateway.processes import at_once
from tests.gateway.world import until


@contextmanager
def none_left() -> Iterator[None]:
    """Every descriptor below a low limit is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    try:
        while is_any_left():
            taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_running_out_is_said_once_a_minute_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise nothing would: libuv resets new connections by itself."""
    caplog.set_level(logging.WARNING, descriptors.__name__)
    clock = Clock()
    following = asyncio.create_task(follow(0.001, clock))

    with none_left():
        await until(lambda: len(caplog.messages) == 1)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len(caplog.messages) == 1 and "file descriptors are in use" in caplog.messages[0]
        clock.advance(REPEAT_S)
        await until(lambda: len(caplog.messages) == 2)
    await until(lambda: len(caplog.messages) == 3)
    assert "again" in caplog.messages[2]
    following.cancel()


def lowered() -> tuple[int, int]:
    """Another process's limit after it was low, and what it may be at most."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    return raise_limit(), hard


def test_the_limit_is_raised_as_far_as_the_system_lets() -> None:
    """A login's soft limit is often 1,024, which a thousand streams use up; what was asked for is never more than hard."""
    ((most, hard),) = at_once(1, lowered)
    assert most == (WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard))
