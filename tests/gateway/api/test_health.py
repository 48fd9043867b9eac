"""Health: what probes see, without a key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.gateway.api.health import summary
from serving.gateway.fleet.fleet import Model
from serving.wire import ReplicaState
from tests.gateway.world import World, running_gateway
from tests.scripted_engine import (
    MODEL,
    ScriptedEngine,
)


async def test_health_says_what_can_be_asked(world: World, engine: ScriptedEngine) -> None:
    """Live and ready while the process runs, engines or not; models only while one answers; no address in it."""
    assert (await world.ask("GET", "/health/models", headers={})).json == {"models": {MODEL: "ready"}}
    await engine.stop()
    deadline = asyncio.get_running_loop().time() + 5
    while (answer := await world.ask("GET", "/health/models", headers={})).status != 503:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert answer.json == {"models": {MODEL: "failed"}}
    for path in ("/health/ready", "/health"):
        assert (await world.ask("GET", path, headers={})).json == {"status": "ok"}
    assert (await world.ask("GET", "/health/live", headers={})).status == 200


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({ReplicaState.FAILED: 1, ReplicaState.READY: 1}, "ready"),
        ({ReplicaState.LOADING: 3, ReplicaState.WARMING: 1}, "warming"),
        ({ReplicaState.FAILED: 2}, "failed"),
        ({}, "starting"),
    ],
)
def test_a_model_is_as_far_as_its_best_replica(states: dict[ReplicaState, int], said: str) -> None:
    """Without one it is on its way."""
    assert summary(Model("m", 0, 4096, states)) == said


@pytest.mark.parametrize(
    ("wanted", "may_sleep", "said"),
    [(0, True, "asleep"), (1, True, "starting"), (None, True, "starting"), (0, False, "starting")],
)
def test_a_model_sleeps_while_none_is_wanted(wanted: int | None, may_sleep: bool, said: str) -> None:
    """Only one that may; before a directory has decided it is not known to."""
    assert summary(Model("m", 0, 4096, {}, wanted, may_sleep)) == said


async def test_without_models_there_is_nothing_to_ask(tmp_path: Path) -> None:
    """503 and an empty list: no source has answered, or none serves anything."""
    async with running_gateway(tmp_path, is_awaited=False) as world:
        answer = await world.ask("GET", "/health/models", headers={})
    assert (answer.status, answer.json) == (503, {"models": {}})
