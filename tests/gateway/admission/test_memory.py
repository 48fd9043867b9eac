"""Memory: what all open requests hold stays within one bound, and comes back however they end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from serving.errors import GatewayFull
from serving.gateway.admission.memory import ANSWER_BYTES, Memory
from tests.gateway.world import CHAT, Answer, World, running_gateway, until
from tests.scripted_engine import ScriptedEngine


def test_a_share_counts_its_answer_from_the_start() -> None:
    """And each piece of its body; what does not fit is not taken."""
    memory = Memory(3 * ANSWER_BYTES)
    with memory.share() as share:
        share.take(ANSWER_BYTES)
        assert memory.held_bytes == share.held_bytes == 2 * ANSWER_BYTES
        with pytest.raises(GatewayFull) as refused:
            share.take(ANSWER_BYTES + 1)
        assert refused.value.retry_after_s == 1
        assert memory.held_bytes == share.held_bytes == 2 * ANSWER_BYTES
        share.take(ANSWER_BYTES)
    assert memory.held_bytes == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, GatewayFull("")])
def test_a_share_comes_back_however_its_request_ends(error: BaseException) -> None:
    """By an error, a cancellation, or a refusal."""
    memory = Memory(2 * ANSWER_BYTES)
    for _ in range(3):
        with pytest.raises(BaseException), memory.share():  # noqa: B017, PT011 Whatever it is.
            raise error
    with pytest.raises(GatewayFull), memory.share() as share:
        share.take(2 * ANSWER_BYTES)
    assert memory.held_bytes == 0


async def begun(world: World, length: int, sent: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A call of which only so much of the body was sent."""
    host, _, port = world.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\n"
    writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode() + b"x" * sent)
    await writer.drain()
    return reader, writer


async def test_unfinished_bodies_share_one_bound_and_give_it_back(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Past it new ones are 503 with Retry-After while they still arrive; when the others have left, calls are served."""
    held = 4 * ANSWER_BYTES
    async with running_gateway(tmp_path, (engine.url,), max_held_bytes=held) as world:
        clients = [await begun(world, 60_000, 50_000) for _ in range(2)]

        async def refused() -> Answer | None:
            answer = await world.chat(user="x" * 60_000)
            return answer if answer.status == 503 else None

        while (answer := await refused()) is None:
            clients.append(await begun(world, 60_000, 50_000))
        assert answer.error["code"] == "overloaded" and answer.headers["retry-after"] == "1"
        for _, writer in clients:
            writer.close()
        await until(lambda: any(line["status"] == 499 for line in world.lines))
        # Each of them gives its share back in its own time.
        while (await refused()) is not None:
            pass
        large = json.dumps(CHAT | {"user": "x" * 60_000}).encode()
        for _ in range(5):
            assert (await world.post("/v1/chat/completions", large)).status == 200
