"""Seeding: how windows are read from the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from serving.errors import StoreUnavailable
from serving.gateway.admission.counters.seeding import Seeding
from serving.gateway.policies import COUNT_MAX


async def test_windows_are_read_together_and_each_once() -> None:
    """Two calls of one tenant wait for the same sums; a third, later, for new ones."""
    asked: list[Sequence[str]] = []

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        asked.append(names)
        await asyncio.sleep(0)
        return [len(name) for name in names]

    read = Seeding(seeds, lambda: 0)
    first, second = await asyncio.gather(read.values(["a", "bb"]), read.values(["bb", "ccc"]))
    assert (first, second) == ({"a": 1, "bb": 2}, {"bb": 2, "ccc": 3})
    assert await read.values(["a"]) == {"a": 1}
    assert asked == [["a", "bb"], ["ccc"], ["a"]]


async def test_a_ledger_that_is_away_is_not_asked_by_each_call(caplog: pytest.LogCaptureFixture) -> None:
    """One call learns it; for a second no other waits."""
    asked = 0

    async def seeds(_names: Sequence[str]) -> Sequence[int]:
        nonlocal asked
        asked += 1
        raise StoreUnavailable("away")

    read = Seeding(seeds, lambda: 0)
    assert [await read.values(["a"]) for _ in range(5)] == [None] * 5
    assert asked == 1 and len(caplog.records) == 1


async def test_no_call_waits_for_a_ledger_that_hangs() -> None:
    """Not for longer than `wait_s`."""

    async def seeds(_names: Sequence[str]) -> Sequence[int]:
        await asyncio.sleep(3600)
        raise AssertionError

    assert await Seeding(seeds, lambda: 0, wait_s=0.01).values(["a"]) is None


async def test_a_call_that_leaves_does_not_end_the_reading() -> None:
    """Others wait for it."""
    may_end = asyncio.Event()

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        await may_end.wait()
        return [1] * len(names)

    read = Seeding(seeds, lambda: 0)
    leaves, stays = (asyncio.create_task(read.values(["a"])) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.sleep(0)
    may_end.set()
    assert await stays == {"a": 1}


async def test_nonsense_is_kept_within_what_can_be_counted() -> None:
    """A ledger's sum may be anything; no limit is larger than COUNT_MAX."""

    async def seeds(_names: Sequence[str]) -> Sequence[int]:
        return [-5, 2**80]

    assert await Seeding(seeds, lambda: 0).values(["a", "b"]) == {"a": 0, "b": COUNT_MAX}
