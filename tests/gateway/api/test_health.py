"""Health: what probes see, without a key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.config import GatewaySettings
from serving.gateway.api.health import Health, summary
from serving.gateway.api.visit import Visit
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet, Model
from serving.gateway.http.asgi import Request, Responder
from serving.gateway.http.upstream import Upstream
from serving.gateway.identity.identity import Identity
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import CallRecord
from serving.gateway.observe.tracing import Trace
from serving.wire import ReplicaState
from tests.clock import Clock
from tests.gateway.asgi import Wire
from tests.gateway.calls import settle
from tests.gateway.places import SqlitePlace
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


async def test_a_gateway_whose_ledger_takes_no_calls_is_not_ready(tmp_path: Path) -> None:
    """Calls would be refused there: a load balancer sends them elsewhere until rows can be written again."""
    clock, place = Clock(), SqlitePlace(tmp_path)
    upstream = Upstream(1.0)
    with place.open() as store:
        (tmp_path / "ledger-spill.jsonl").mkdir()
        ledger = Ledger(store, clock=clock, pending_rows_max=1)
        tenants = Tenants(store, Keyring.open(store), key_cache_s=10, lookup_timeout_s=10, clock=clock)
        identity = Identity(GatewaySettings(), store, tenants, clock, clock)
        health = Health(Fleet((), Demands(clock), clock, clock), upstream, identity, ledger)
        said: list[tuple[int, bytes]] = []
        async with upstream.opened():
            for is_away in (False, True, False):
                if is_away:
                    place.take_away()
                    settle(ledger, "r1")
                    ledger.stop()
                elif said:
                    place.bring_back()
                    (tmp_path / "ledger-spill.jsonl").rmdir()
                    assert ledger.flush()
                wire = Wire()
                record = CallRecord(request_id="r", started_at=0.0)
                visit = Visit(Request(wire.scope(), wire.receive), Responder(wire.send, "r"), record, Trace(), clock)
                await health.ready(visit)
                said.append((wire.status, wire.body))
    ok = (200, b'{"status":"ok"}')
    assert said == [ok, (503, b'{"status":"the ledger cannot be written"}'), ok]
