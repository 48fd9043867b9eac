"""Lines: whose calls a batch's lines are, and which refusals it waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from serving import errors
from serving.gateway.api.lines import _PASSING
from serving.gateway.policies import Policy
from serving.wire import ListedModel, Traffic
from tests.gateway.api.test_batches import ANSWER, STORES, counts, ended, line, made
from tests.gateway.api.test_files import client_of
from tests.gateway.fleet.directory import Directory
from tests.gateway.fleet.reports import answer, report
from tests.gateway.world import World, running_gateway, until
from tests.scripted_engine import MODEL, Script, ScriptedEngine


def test_what_passes_is_a_limit_or_an_outage() -> None:
    """And nothing that is the line's own fault."""
    passing = {it for it in vars(errors).values() if isinstance(it, type) and issubclass(it, _PASSING)}
    assert {it.status for it in passing} == {429, 503}
    assert not issubclass(errors.EngineFailed, _PASSING) and not issubclass(errors.InvalidRequest, _PASSING)


async def test_a_batch_wakes_a_model_that_sleeps_and_asks_for_no_more(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Its directory is told of one call that waits, then of lines at the engine, and of no work that arrives."""
    gate = asyncio.Event()
    engine.improvise = lambda path, body: Script([ANSWER], content_type="application/json", gate=gate)
    model = ListedModel(MODEL, may_sleep=True, wanted=0)
    async with Directory() as directory:
        directory.says = msgspec.structs.replace(answer(), models=(model,))
        async with running_gateway(tmp_path, directories=(directory.url,), is_awaited=False) as world:
            await world.bound(STORES)

            def told() -> list[Traffic]:
                return [it.traffic[MODEL] for it in directory.reports if MODEL in it.traffic]

            async with client_of(world, world.key) as client:
                batch_id = await made(client, b"".join(line(str(number)) for number in range(5)))
                await until(lambda: any(it.waiting_requests == 1 for it in told()))
                directory.says = msgspec.structs.replace(
                    answer(report("r", model=MODEL, url=engine.url)), models=(model,)
                )
                await until(lambda: any(it.line_requests for it in told()))
                gate.set()
                batch = await ended(client, batch_id)
    assert counts(batch) == (5, 5, 0)
    assert {(it.arrived_prompt_tokens, it.expected_output_tokens) for it in told()} == {(0, 0)}
    assert max(it.waiting_requests for it in told()) == 1


@pytest.mark.parametrize("how", ["key", pytest.param("tenant", marks=pytest.mark.long)])
async def test_a_batch_ends_with_the_right_to_call(world: World, engine: ScriptedEngine, how: str) -> None:
    """A key that was revoked calls no more, by its batches either; nor does a tenant for which nothing is kept any more."""
    await world.bound(Policy(store_responses=True, requests_per_minute=1))
    night = world.registry.create_key("acme", name="night")
    async with client_of(world, night) as client:
        batch_id = await made(client, b"".join(line(str(number)) for number in range(5)))
    await until(lambda: any(row["status"] == 429 for row in world.rows()))
    (key_id,) = {it.id for it in world.registry.keys("acme") if it.name == "night"}
    if how == "key":
        world.registry.revoke_key(key_id)
    else:
        await world.bound(Policy(requests_per_minute=1))
        await until(lambda: world.batches.open_ones() == [], timeout_s=30)
        await world.bound(STORES)
    async with client_of(world, world.key) as client, asyncio.timeout(60):
        batch = await ended(client, batch_id)
    assert batch.status == "cancelled" and batch.errors is not None
    (why,) = batch.errors.data or []
    assert why.code == {"key": "key_revoked", "tenant": "insufficient_permissions"}[how]
    assert counts(batch) == (5, 1, 4)
