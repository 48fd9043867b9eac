"""What counts as a failed call, before a real gateway and a scripted engine; and how a directory is asked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import openai
import pytest
import yaml
from aiohttp import web

from serving.wire import DirectoryAnswer, Listed, ReplicaReport, ReplicaState
from tests.cluster.installation import ASK_DIRECTORIES, ready
from tests.cluster.load import MOST_TOKENS, SAMPLE_TOKENS, Chats, Stream, Unfinished, tokens_of
from tests.gateway.test_server import free_port, served
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, answering, chat_answer, chat_stream, failing

#: As vLLM ends a stream; the scripted one has no such chunk of itself.
WHOLE = [*chat_stream(["Paris", "."])[:-3], chat_stream(["."])[1].replace(b'reason":null', b'reason":"stop"')]
WHOLE += chat_stream(["."])[-2:]


@asynccontextmanager
async def chatting(home: Path) -> AsyncIterator[tuple[ScriptedEngine, Chats]]:
    port = free_port()
    async with ScriptedEngine() as engine, served(home, port, engine.url):
        key = (home / "admin.key").read_text().strip()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0) as client:
            yield engine, Chats(client, MODEL)


async def test_an_answer_with_an_end_is_one(tmp_path: Path) -> None:
    """Whole or in pieces, and as a stream beside other things, the text comes back."""
    async with chatting(tmp_path) as (engine, chats):
        engine.say(answering(chat_answer("Paris.")), Script(WHOLE), Script(WHOLE))

        assert await asyncio.to_thread(chats.whole, 8) == "Paris."
        assert await asyncio.to_thread(chats.stream, 8) == "Paris."
        stream = Stream(chats, 8)
        assert await asyncio.to_thread(stream.text, 10.0) == "Paris."
        assert stream.begun.is_set() and not stream.is_running


async def test_what_breaks_off_is_a_failure(tmp_path: Path) -> None:
    """A stream that is cut, one that just stops, and a refusal each raise; in the background too, where it is read."""
    async with chatting(tmp_path) as (engine, chats):
        engine.say(Script(WHOLE[:2], ending=Ending.DIE))
        with pytest.raises(openai.APIError):
            await asyncio.to_thread(chats.stream, 8)

        engine.say(Script(chat_stream(["Paris"])))
        with pytest.raises(Unfinished, match="finish_reason None"):
            await asyncio.to_thread(chats.stream, 8)

        engine.say(failing(400, "no"))
        with pytest.raises(openai.APIStatusError):
            await asyncio.to_thread(chats.whole, 8)

        engine.say(Script(WHOLE[:2], ending=Ending.DIE))
        with pytest.raises(openai.APIError):
            await asyncio.to_thread(Stream(chats, 8).text, 10.0)


async def test_a_stream_that_hangs_is_unfinished(tmp_path: Path) -> None:
    """It is waited for no longer than was said."""
    async with chatting(tmp_path) as (engine, chats):
        engine.say(Script(WHOLE[:2], ending=Ending.HANG))

        with pytest.raises(Unfinished, match="still runs"):
            await asyncio.to_thread(Stream(chats, 8).text, 0.5)


@pytest.mark.parametrize(("took_s", "tokens"), [(6.4, 600), (0.1, MOST_TOKENS), (600.0, SAMPLE_TOKENS)])
async def test_a_long_stream_is_as_long_as_the_engine_is_fast(tmp_path: Path, took_s: float, tokens: int) -> None:
    """By the time of a short one: no longer than the model's context, no shorter than what was measured with."""
    times = iter([0.0, took_s])
    async with chatting(tmp_path) as (engine, chats):
        engine.say(Script(WHOLE))

        assert await asyncio.to_thread(tokens_of, 60.0, chats, lambda: next(times)) == tokens


async def test_directories_are_asked_from_a_gateways_settings(tmp_path: Path) -> None:
    """Each that answers is heard, with the plane secret; that of a paused cell is not there, and says nothing."""
    report = ReplicaReport("one", "m", "http://engine", ReplicaState.READY)
    answer = DirectoryAnswer("a", "1", True, (Listed(report, 0.0),))

    async def directory(request: web.Request) -> web.Response:
        if request.headers.get("authorization") != "Bearer new":
            return web.Response(status=401)
        return web.Response(body=msgspec.json.encode(answer))

    secret, settings = tmp_path / "plane.secret", tmp_path / "settings.yaml"
    secret.write_text("new\nold\n")
    application = web.Application()
    application.router.add_get("/directory", directory)
    runner = web.AppRunner(application)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    urls = [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"]
    settings.write_text(yaml.safe_dump({"plane_secret_file": str(secret), "gateway": {"directories": urls}}))

    line = [sys.executable, "-c", ASK_DIRECTORIES, str(settings)]
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, check=True)
    await runner.cleanup()

    assert len(json.loads(done.stdout)) == 1
    assert ready(msgspec.json.decode(done.stdout, type=list[DirectoryAnswer]), "a").keys() == {"one"}
