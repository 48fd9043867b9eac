"""OpenAI's client for Node with responses that have memory; the one for Python is in tests/gateway/api."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

from tests.clients import environments
from tests.gateway.api.test_responses import storing
from tests.gateway.stored.speaking import message, speaking
from tests.gateway.world import World
from tests.scripted_engine import MODEL, ScriptedEngine

SCRIPTS = Path(__file__).parent / "scripts"


async def told_by(script: str, world: World) -> object:
    """What a script of the official client has seen of a gateway, with its base URL and a key."""
    folder = await asyncio.to_thread(environments.packages, "libraries")
    with environments.held(folder.name):
        shutil.copy(SCRIPTS / script, folder)
    told = {"OPENAI_BASE_URL": f"{world.url}/v1", "OPENAI_API_KEY": world.key, "CLIENT_MODEL": MODEL}
    done = await asyncio.create_subprocess_exec(
        environments.node(), folder / script, env=told, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await done.communicate()
    return json.loads(output)


async def test_its_own_resources_work(tmp_path: Path) -> None:
    """Each of them: chains, lists by pages, deletion, conversations with items, polling, a stream that is taken up again, cancellation."""
    async with ScriptedEngine() as engine, storing(tmp_path, engine) as world:
        engine.improvise = speaking([message("Blue.")])
        told = await told_by("openai_memory.mjs", world)

    assert told == {
        "retrieved": "Blue.",
        "input": 3,
        "deleted": ["NotFoundError", "not_found"],
        "orphan": ["BadRequestError", "previous_response_not_found"],
        "items": 3,
        "item": "hi",
        "metadata": {"topic": "b"},
        "ended": True,
        "queued": "queued",
        "polled": "completed",
        "resumed": True,
        "cancelled": "completed",
    }
