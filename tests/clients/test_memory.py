"""OpenAI's client for Node with responses that have memory; the one for Python is in tests/gateway/api."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.clients import environments
from tests.gateway.api.test_responses import storing, storing_at
from tests.gateway.places import Place
from tests.gateway.stored.speaking import Item, message, response, stream
from tests.gateway.test_server import free_port, served
from tests.gateway.world import World
from tests.scripted_engine import MODEL, Script, ScriptedEngine, answering, compact, unscripted

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = "openai_memory.mjs"
SEEN = {
    "retrieved": "Blue.",
    "input": 3,
    "counted": "response.input_tokens",
    "deleted": ["NotFoundError", "not_found"],
    "orphan": ["BadRequestError", "previous_response_not_found"],
    "items": 3,
    "item": "hi",
    "metadata": {"topic": "b"},
    "ended": True,
    "queued": "queued",
    "polled": "completed",
    "begun": ["response.created", "response.queued", "response.in_progress"],
    "resumed": True,
    "cancelled": "completed",
}


def speaking(path: str, body: Item) -> Script:
    """What the engine improvises."""
    if path != "/v1/responses":
        return unscripted(path, body)
    answer = [message("Blue.")]
    return Script(stream(answer)) if body.get("stream") is True else answering(compact(response(answer)).encode())


async def told_by(script: str, world: World) -> object:
    """What a script of the official client has seen of a gateway, with its base URL and a key."""
    return await told_by_two(script, world.url, world.url, world.key)


async def told_by_two(script: str, url: str, other_url: str, key: str) -> object:
    """The same of one that asks now one gateway and now another."""
    folder = await asyncio.to_thread(environments.packages, "libraries")
    with environments.held(folder.name):
        shutil.copy(SCRIPTS / script, folder)
    told = {"OPENAI_BASE_URL": f"{url}/v1", "OTHER_BASE_URL": f"{other_url}/v1", "OPENAI_API_KEY": key}
    done = await asyncio.create_subprocess_exec(
        environments.node(), folder / script, env=told | {"CLIENT_MODEL": MODEL}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await done.communicate()
    return json.loads(output)


async def test_its_own_resources_work(tmp_path: Path) -> None:
    """Each of them: chains, lists by pages, deletion, conversations with items, polling, a stream that is taken up again, cancellation."""
    async with ScriptedEngine() as engine, storing(tmp_path, engine) as world:
        engine.improvise = speaking
        assert await told_by(SCRIPT, world) == SEEN


@pytest.mark.long  # PostgreSQL, and two processes
async def test_they_work_with_two_gateways(place: Place) -> None:
    """What one process has, the other has: on SQLite and on PostgreSQL."""
    settings, key = storing_at(place)
    first, second = free_port(), free_port()
    async with (
        ScriptedEngine() as engine,
        served(place.home, first, engine.url, **settings),
        served(place.home, second, engine.url, **settings),
    ):
        engine.improvise = speaking
        told = await told_by_two(SCRIPT, f"http://127.0.0.1:{first}", f"http://127.0.0.1:{second}", key)

    assert told == SEEN
