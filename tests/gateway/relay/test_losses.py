"""Losses: the streams of a lost replica go on whatever is left of the retry budget, and a fleet that fails everywhere is still bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.gateway.relay.losses import WINDOW_S, Losses
from serving.gateway.relay.retries import FIRST_RETRIES
from tests.clock import Clock
from tests.exposition import value
from tests.gateway.relay.streams import STREAMED
from tests.gateway.world import CHAT, World, running_gateway, until
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, chat_stream, noted

#: On two engines together: as many as a gateway of the tests has open.
STREAMS = 64
EVENTS = noted(chat_stream(["Once", " upon", " a", " time"]))


def covered(losses: Losses, names: str, *, begun_at: float = 0.0, replicas: int = 2, streams: int = 1) -> list[int]:
    """Of so many streams on each of these replicas, which are lost one after the other, how many go on."""
    return [sum(losses.cover("m", name, begun_at, replicas) for _ in range(streams)) for name in names]


def test_every_stream_of_a_lost_replica_goes_on() -> None:
    """However many it had, and however late some of them learn of it; one of two is covered."""
    clock = Clock()
    losses = Losses(clock)
    assert covered(losses, "a", streams=500) == [500]
    clock.advance(WINDOW_S - 1)
    assert covered(losses, "a", streams=500) == [500]


@pytest.mark.parametrize(("replicas", "most"), [(1, 1), (2, 1), (3, 1), (8, 4)])
def test_half_of_a_models_replicas_may_be_lost_in_a_window(replicas: int, most: int) -> None:
    """And one in any case; what was lost before the window counts no more."""
    clock = Clock()
    losses = Losses(clock)
    names = "abcdefgh"[:replicas]
    expected = [1] * most + [0] * (replicas - most)
    assert [covered(losses, name, replicas=replicas - lost)[0] for lost, name in enumerate(names)] == expected
    clock.advance(WINDOW_S)
    assert covered(losses, names, begun_at=clock(), replicas=replicas) == expected


def test_what_began_after_a_loss_is_not_covered_by_it() -> None:
    """A replica that cuts every stream is no replica that was lost once."""
    clock = Clock()
    losses = Losses(clock)
    assert covered(losses, "a") == [1]
    clock.advance(1)
    assert covered(losses, "a", begun_at=clock() - 0.5) == [0]
    assert covered(losses, "a", begun_at=clock() - 1.5) == [1]


def test_models_lose_replicas_of_their_own() -> None:
    """One whose fleet fails takes nothing from another."""
    losses = Losses(Clock())
    assert covered(losses, "ab") == [1, 0] and losses.cover("another", "c", 0.0, 2)


def test_a_fleet_that_fails_everywhere_is_bounded() -> None:
    """Engines that cut all their streams each second for an hour: one engine's streams are added once a window."""
    clock = Clock()
    losses = Losses(clock)
    free = 0
    for _ in range(3600):
        begun_at = clock()
        clock.advance(1)
        free += sum(covered(losses, "ab", begun_at=begun_at, streams=10))
    assert free == 10 * 3600 / WINDOW_S


async def _reading(world: World, begun: asyncio.Event) -> bytes:
    body = CHAT | STREAMED
    async with world.client.post(world.url + "/v1/chat/completions", json=body, headers=world.headers()) as response:
        whole = b""
        while chunk := await response.content.readany():
            whole += chunk
            if b"upon" in whole:
                begun.set()
        return whole


async def test_one_engine_of_two_is_lost_with_many_streams(tmp_path: Path) -> None:
    """None of them is, though its gateway is young and has few retries."""
    async with (
        ScriptedEngine() as dying,
        ScriptedEngine() as staying,
        running_gateway(tmp_path, (dying.url, staying.url)) as world,
    ):
        for engine in (dying, staying):
            engine.improvise = lambda path, body: Script(EVENTS[:3], ending=Ending.HANG)
        begun = [asyncio.Event() for _ in range(STREAMS)]
        streams = [asyncio.create_task(_reading(world, one)) for one in begun]
        await asyncio.gather(*(one.wait() for one in begun))
        lost = len(dying.received)
        staying.improvise = lambda path, body: Script(EVENTS)
        await dying.stop()
        await until(lambda: sum(one.done() for one in streams) == lost)
        bodies = [one.result() for one in streams if one.done()]
        page = (await world.ask("GET", "/metrics")).body
        for one in streams:
            one.cancel()
    assert lost > FIRST_RETRIES + 0.2 * STREAMS
    assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
    assert value(page, "serving_gateway_continuations_total", model=MODEL) == lost
