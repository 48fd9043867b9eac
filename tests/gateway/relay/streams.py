"""Streams: the routes that generate, what is asked of them, and what is read of their events."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from tests.gateway.world import CHAT, World
from tests.scripted_engine import MODEL, messages_stream

STREAMED = {"stream": True}
#: The end of a stream of Messages.
LAST = messages_stream(["Hi"])[-1:]
ROUTES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": MODEL, "prompt": "Hello"},
    "/v1/responses": {"model": MODEL, "input": "Hello"},
    "/v1/messages": CHAT | {"max_tokens": 5},
}
#: Route → a tool in its shape.
TOOLS: dict[str, object] = {
    "/v1/chat/completions": [{"type": "function", "function": {"name": "get_weather"}}],
    "/v1/responses": [{"type": "function", "name": "get_weather"}],
    "/v1/messages": [{"name": "get_weather", "input_schema": {"type": "object"}}],
}


def data_of(body: bytes) -> list[dict[str, object]]:
    """The JSON of every event."""
    lines = (line for line in body.decode().split("\n") if line.startswith("data: {"))
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def behind_a_comment(world: World, gate: asyncio.Event) -> tuple[aiohttp.ClientResponse, bytes]:
    """A streamed chat whose engine waits at `gate` until the client has a comment, and what comes behind that."""
    url, body = world.url + "/v1/chat/completions", CHAT | STREAMED
    async with world.client.post(url, json=body, headers=world.headers()) as response:
        assert await response.content.readline() == b": keep-alive\n"
        gate.set()
        return response, await response.read()
