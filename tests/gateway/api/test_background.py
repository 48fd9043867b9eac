"""Background: a call runs on without its client, is billed once, and any gateway tells how it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from serving.config import StoredSettings
from serving.gateway.identity import people
from serving.gateway.identity.keys import id_of
from serving.gateway.nouns import Right
from serving.gateway.policies import Policy
from tests.gateway.api.test_responses import STORES, client_of, storing, storing_at
from tests.gateway.places import Place
from tests.gateway.stored.speaking import message, response, speaking, stream
from tests.gateway.test_server import free_port, served
from tests.gateway.world import World, running_gateway, until
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, compact

WORDS = "one two three four five six"


@asynccontextmanager
async def two(place: Place, engine: ScriptedEngine) -> AsyncIterator[tuple[World, AsyncOpenAI, AsyncOpenAI]]:
    """Two gateways on one store, and a client of each."""
    async with (
        storing(place.home, engine, place) as world,
        running_gateway(place.home, (engine.url,), place=place, key=world.key, gateway_id="other:1:1") as other,
        client_of(world) as here,
        client_of(other) as there,
    ):
        yield world, here, there


async def ended(client: AsyncOpenAI, response_id: str) -> Response:
    """Poll, as OpenAI's guide shows it."""
    for _ in range(500):
        found = await client.responses.retrieve(response_id)
        if found.status not in ("queued", "in_progress"):
            return found
        await asyncio.sleep(0.02)
    raise AssertionError("the response does not end")


async def test_a_call_runs_on_without_its_client(place: Place, engine: ScriptedEngine) -> None:
    """It is told to be queued at once, runs, and is found at another gateway; one row of the ledger has all its tokens."""
    gate = asyncio.Event()
    engine.say(Script([compact(response([message("Done.")])).encode()], content_type="application/json", gate=gate))
    engine.improvise = speaking([message("More.")])
    async with two(place, engine) as (world, here, there):
        asked = await here.responses.create(model=MODEL, input="Go.", background=True)
        running = await there.responses.retrieve(asked.id)
        gate.set()
        found = await ended(there, asked.id)
        row = await world.row()
        again = await there.responses.create(model=MODEL, input="More?", previous_response_id=asked.id)

    assert (asked.status, asked.background, asked.output) == ("queued", True, [])
    assert running.status in ("queued", "in_progress")
    assert (found.status, found.output_text, found.id, again.status) == ("completed", "Done.", asked.id, "completed")
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("ok", 11, 2)


async def test_a_stream_is_taken_up_again(place: Place, engine: ScriptedEngine) -> None:
    """A client that lost it asks for what is behind the last event that it has, here or at another gateway: none twice, none missing."""
    gate = asyncio.Event()
    events = stream([message(WORDS)])
    engine.say(Script(events, pace_s=0.01), Script(events, pace_s=0.01, gate=gate))
    async with two(place, engine) as (_, here, there):
        whole = [it async for it in await here.responses.create(model=MODEL, input="x", background=True, stream=True)]
        gate.set()
        begun = await here.responses.create(model=MODEL, input="x", background=True, stream=True)
        first = []
        async for event in begun:
            first.append(event)
            if event.type == "response.output_text.delta":
                break
        await begun.close()
        response_id = first[0].response.id
        place_of = first[-1].sequence_number
        rests = [
            [it async for it in await client.responses.retrieve(response_id, stream=True, starting_after=place_of)]
            for client in (here, there)
        ]
        done = await ended(there, response_id)
        late = [it async for it in await there.responses.retrieve(response_id, stream=True)]

    numbers = [it.sequence_number for it in whole]
    assert numbers == list(range(len(numbers))) and whole[-1].type == "response.completed"
    assert [it.type for it in whole[:3]] == ["response.created", "response.queued", "response.in_progress"]
    for rest in rests:
        assert [it.sequence_number for it in [*first, *rest]] == numbers
        assert [it.type for it in [*first, *rest]] == [it.type for it in whole]
    assert [it.sequence_number for it in late] == numbers
    assert done.output_text == WORDS


async def test_any_gateway_cancels(place: Place, engine: ScriptedEngine) -> None:
    """The engine's work ends at once, a second time changes nothing, and what is over or has a client that waits is not cancelled."""
    engine.say(Script(stream([message(WORDS)])[:7], ending=Ending.HANG))
    async with two(place, engine) as (world, here, there):
        begun = await here.responses.create(model=MODEL, input="x", background=True, stream=True)
        async for event in begun:
            if event.type == "response.output_text.delta":
                break
        (response_id,) = stored(world)
        cancelled = await there.responses.cancel(response_id)
        await until(lambda: engine.aborted == 1)
        await begun.close()
        again = await here.responses.cancel(response_id)
        direct = await here.responses.create(model=MODEL, input="x")
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await here.responses.cancel(direct.id)
        await until(lambda: all(row["outcome"] != "open" for row in world.rows()))
        outcomes = {row["outcome"] for row in world.rows()}

    assert (cancelled.status, again.status) == ("cancelled", "cancelled")
    assert outcomes == {"client_disconnected", "ok"}


def stored(world: World) -> list[str]:
    """Ids of responses in the database."""
    with world.store.begin() as connection:
        return [row[0] for row in connection.exec_driver_sql("select id from responses")]


@pytest.mark.parametrize("streams", [False, True])
async def test_a_failure_is_told(tmp_path: Path, engine: ScriptedEngine, streams: bool) -> None:
    """The response says `failed` and why in OpenAI's code, and a stream of it ends with that; nothing is run again."""
    engine.improvise = lambda path, body: Script(dies_first=True)
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        if streams:
            made = await client.responses.create(model=MODEL, input="x", background=True, stream=True)
            events = [it async for it in made]
            assert [it.type for it in events] == ["response.created", "response.queued", "response.failed"]
            failed = events[-1].response
        else:
            failed = await ended(client, (await client.responses.create(model=MODEL, input="x", background=True)).id)
        kept = await client.responses.retrieve(failed.id)
        row = await world.row()

    assert failed.status == kept.status == "failed" and kept.error is not None
    assert (kept.error.code, row["outcome"]) == ("server_error", "error")


async def test_what_is_refused_is_refused_at_once(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Too many of them, a limit of the tenant, and what cannot be: the request has the error, and nothing is stored."""
    hanging = Script(stream([message(WORDS)])[:2], ending=Ending.HANG)
    engine.improvise = lambda path, body: hanging
    ask = {"model": MODEL, "input": "x", "background": True}
    async with running_gateway(tmp_path, (engine.url,), stored=StoredSettings(background_calls_max=1)) as world:
        await world.bound(STORES)
        first = await world.post("/v1/responses", ask)
        full = await world.post("/v1/responses", ask)
        await world.ask("POST", f"/v1/responses/{first.json['id']}/cancel")
        unstored = await world.post("/v1/responses", ask | {"store": False})
        unknown = await world.post("/v1/responses", ask | {"model": "none"})
        await until(lambda: engine.running == 0)
        await world.bound(Policy(store_responses=True, requests_per_minute=0))
        limited = await world.post("/v1/responses", ask)
        kept = stored(world)

    assert (first.status, full.status, full.error["code"]) == (200, 503, "overloaded")
    assert (unstored.status, unstored.error["param"], unknown.status) == (400, "store", 404)
    assert limited.status == 429 and kept == [first.json["id"]]


async def test_a_stream_that_is_followed_ends_with_the_time_of_its_response(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    """A client that does not read would hold its place among all calls for as long as it liked."""
    hanging = Script(stream([message(WORDS)])[:2], ending=Ending.HANG)
    engine.improvise = lambda path, body: hanging
    async with running_gateway(tmp_path, (engine.url,), stored=StoredSettings(background_total_s=1.0)) as world:
        await world.bound(STORES)
        async with client_of(world) as client:
            begun = await client.responses.create(model=MODEL, input="x", background=True)
            await ended(client, begun.id)
        with world.store.begin() as connection:
            connection.exec_driver_sql("update responses set status = 'in_progress', is_streamed = 1")
        told = await world.ask("GET", f"/v1/responses/{begun.id}?stream=true")
    assert b"request_timeout" in told.body


async def test_a_gateway_that_stops_says_so(tmp_path: Path, engine: ScriptedEngine) -> None:
    """What it ran is told to have failed by the time it is gone; its row in the ledger is closed."""
    engine.say(Script(is_mute=True))
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        made = await client.responses.create(model=MODEL, input="x", background=True)
        key = world.key
    async with running_gateway(tmp_path, (engine.url,), key=key) as world, client_of(world) as client:
        found = await client.responses.retrieve(made.id)
        outcomes = [row["outcome"] for row in world.rows()]

    assert found.status == "failed" and found.error is not None and "stopped" in found.error.message
    assert outcomes == ["cancelled"]


async def test_a_deleted_response_runs_no_more(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Its engine stops, and nothing of it is stored."""
    engine.say(Script(is_mute=True))
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        made = await client.responses.create(model=MODEL, input="x", background=True)
        await until(lambda: engine.running == 1)
        await client.responses.delete(made.id)
        await until(lambda: engine.aborted == 1)
        await world.row()
        assert stored(world) == []


async def test_a_deleted_response_ends_its_streams_in_an_error(place: Place, engine: ScriptedEngine) -> None:
    """At the gateway that runs it and at any other: a client learns that no more comes."""
    engine.improvise = lambda path, body: Script(stream([message(WORDS)])[:7], ending=Ending.HANG)
    async with two(place, engine) as (world, here, there):

        async def followed(client: AsyncOpenAI, response_id: str) -> str:
            try:
                async for event in await client.responses.retrieve(response_id, stream=True):
                    if event.type == "response.output_text.delta":
                        reached.add(client)
            except openai.APIError as told:
                return str(told.message)
            return ""

        reached: set[AsyncOpenAI] = set()
        begun = await here.responses.create(model=MODEL, input="x", background=True, stream=True)
        (response_id,) = stored(world)
        following = [asyncio.create_task(followed(client, response_id)) for client in (here, there)]
        await until(lambda: len(reached) == 2)
        await here.responses.delete(response_id)
        said = await asyncio.gather(*following)
        await begun.close()

    assert said == [f"Response with id '{response_id}' not found."] * 2


async def test_what_no_one_may_call_for_is_ended(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A person who is erased: it is gone. A key that is revoked, a tenant that is disabled: cancelled, and why. Others run on."""
    engine.improvise = lambda path, body: Script(is_mute=True)
    asked = {"model": MODEL, "input": "x", "background": True}
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        key = world.registry.create_key("acme", name="other", allowed=[Right.NAME_USERS])
        async with client_of(world, key) as other:
            stays = await client.responses.create(**asked)
            gone = await other.responses.create(**asked, extra_headers={"X-Serving-User": "ada"})
            ended_first = await other.responses.create(**asked)
            await until(lambda: engine.running == 3)
            people.erase(world.store, "acme", "ada")
            await until(lambda: engine.aborted == 1)
            assert gone.id not in stored(world)
            world.registry.revoke_key(id_of(key) or "")
            await until(lambda: engine.aborted == 2)
        cancelled = await ended(client, ended_first.id)
        assert (await client.responses.retrieve(stays.id)).status == "in_progress"
        world.registry.update_tenant("acme", is_disabled=True)
        await until(lambda: engine.aborted == 3)
        world.registry.update_tenant("acme", is_disabled=False)
        await until(lambda: all(row["outcome"] != "open" for row in world.rows()))
        while (await world.ask("GET", f"/v1/responses/{stays.id}")).status == 401:
            pass
        last = await ended(client, stays.id)

    assert cancelled.status == last.status == "cancelled"
    said = [it.error and it.error.message for it in (cancelled, last)]
    assert said == ["This API key was revoked.", "The tenant of these credentials is disabled."]
    assert {row["outcome"] for row in world.rows()} == {"client_disconnected", "rejected"}


@pytest.mark.long  # PostgreSQL's gateways give one another a minute
async def test_a_killed_gateways_response_has_failed(place: Place, engine: ScriptedEngine) -> None:
    """Two processes: what the killed one ran is told to have failed by the other, and is not run again."""
    settings, key = storing_at(place)
    engine.say(Script(is_mute=True))
    first, second = free_port(), free_port()
    asked = {"model": MODEL, "input": "x", "background": True}
    async with (
        served(place.home, first, engine.url, **settings) as dying,
        served(place.home, second, engine.url, **settings),
        AsyncOpenAI(base_url=f"http://127.0.0.1:{first}/v1", api_key=key) as here,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{second}/v1", api_key=key) as there,
    ):
        made = await here.responses.create(**asked)
        await until(lambda: engine.running == 1)
        dying.kill()
        found = await there.responses.retrieve(made.id)
        began = time.monotonic()
        while found.status in ("queued", "in_progress"):
            assert time.monotonic() - began < 180
            await asyncio.sleep(0.5)
            found = await there.responses.retrieve(made.id)

    assert found.status == "failed" and found.error is not None and "gone" in found.error.message
    assert len(engine.received) == 1
