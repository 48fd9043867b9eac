"""Unattended: a call without a client is settled like any other, and what is kept of it goes into the database with what it cost."""

from __future__ import annotations

import asyncio
import json

import pytest
from sqlalchemy import Connection, text

from serving.gateway.api.unattended import Answered, Asked
from serving.gateway.dialects import DIALECTS
from serving.gateway.ledger.ledger import Beside
from tests.gateway.world import CHAT, World, until
from tests.scripted_engine import Script, ScriptedEngine


async def asked(world: World, **fields: object) -> Asked:
    body = json.dumps(CHAT | fields).encode()
    return Asked(DIALECTS["/v1/chat/completions"], await world.caller(), body, "batch_req_1", "batch_1")


async def test_what_is_kept_is_written_with_the_cost_or_not_at_all(world: World) -> None:
    """Both are there when the answer is given; the row is that of any call, its line in the log names the batch."""
    seen: list[Answered] = []

    def keep(answered: Answered) -> Beside:
        seen.append(answered)

        def write(connection: Connection) -> bool:
            return connection.execute(text("update tenants set name = 'kept'")).rowcount > 0

        return write

    answered = await world.unattended.answered(await asked(world), keep)
    assert answered.is_kept and answered.error is None and answered.status == 200 and seen[0].body == answered.body
    (row,) = world.rows()
    assert (row["outcome"], row["completion_tokens"]) == ("ok", answered.usage.completion_tokens)
    assert [it.name for it in world.registry.tenants()] == ["kept"]
    assert [it["batch_id"] for it in world.lines if it["request_id"] == "batch_req_1"] == ["batch_1"]


async def test_a_call_of_which_nothing_is_kept_is_not_billed(world: World, engine: ScriptedEngine) -> None:
    """It is made again, and billed then: one whose batch another gateway has, and one that is cut off."""
    await world.unattended.answered(await asked(world), lambda _: lambda connection: False)
    engine.improvise = lambda path, body: Script([b"{}"], content_type="application/json", gate=asyncio.Event())
    cut = asyncio.create_task(world.unattended.answered(await asked(world), lambda _: lambda connection: True))
    await until(lambda: engine.running > 0)
    cut.cancel()
    await asyncio.wait([cut])

    said = [(row["outcome"], row["prompt_tokens"], row["completion_tokens"]) for row in world.rows()]
    assert said == [("gateway_crashed", 0, 0), ("cancelled", 0, 0)]


@pytest.mark.parametrize(("fields", "status"), [({"temperature": -1}, 400), ({"model": "unknown"}, 404), ({}, 502)])
async def test_an_error_is_what_a_client_would_have_got(
    world: World, engine: ScriptedEngine, fields: dict[str, object], status: int
) -> None:
    """In the body too; where nothing is to be kept, nothing is waited for."""
    engine.improvise = lambda path, body: Script([b"{}"], status=500, content_type="application/json")
    answered = await world.unattended.answered(await asked(world, **fields), lambda _: None)
    assert (answered.status, answered.is_kept) == (status, False) and b'"error"' in answered.body
    assert [row["status"] for row in world.rows()] == [status]
