"""Pictures for the README: `python -m tests.console` plays a quarter of an hour of calls, and photographs the page.

Calls, tenants, keys and limits are real; the engines before the gateway are scripted, and are no GPUs.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from serving.gateway.nouns import Role
from serving.gateway.policies import Budget, Policy
from serving.wire import DirectoryAnswer, EngineLoad, Listed, ListedModel, ReplicaReport, ReplicaState
from tests.clients.environments import node
from tests.console import browser
from tests.gateway.fleet.directory import Directory
from tests.gateway.world import World, running_gateway
from tests.repository import ROOT
from tests.scripted_engine import DONE, Script, ScriptedEngine, chat_chunk, chat_final, unscripted

PICTURES = ROOT / "serving" / "console" / "pictures"
LARGE, SMALL = "gpt-oss-120b", "gpt-oss-20b"
#: Seconds of calls, and calls a second at the top of the wave.
LASTS_S, RATE = 930.0, 4.0

THOUGHT = (
    "They ask when prefix caching helps. Name the one condition first: calls that begin the same. Then two examples, one "
    "that gains and one that does not, and what to do about it. Short."
)
ANSWER = """Prefix caching pays off when many calls begin with the same tokens: that part is computed once and read again.

• A team's long system prompt in front of every question: nearly all of the prompt is cached.
• A different document first, the instructions behind it: nothing is.

So put what changes least at the beginning, and what changes with every call at the end."""


class Engines:
    """Scripted engines with a wave of load."""

    def __init__(self) -> None:
        self._random = random.Random(7)

    def improvise(self, path: str, body: dict[str, object]) -> Script:
        if path != "/v1/chat/completions" or body.get("stream") is not True:
            return unscripted(path, body)
        messages: Any = body["messages"]
        if "prefix" in messages[-1]["content"]:
            deltas = [*_words("reasoning", THOUGHT), *_words("content", ANSWER)]
            return self._stream(deltas, prompt=412, tokens=1, pace_s=0.01)
        deltas = [{"content": "word "}] * self._random.randint(4, 12)
        return self._stream(deltas, prompt=self._random.randint(200, 1800), tokens=24, pace_s=0.15)

    def _stream(self, deltas: list[dict[str, object]], prompt: int, tokens: int, pace_s: float) -> Script:
        gate = asyncio.Event()
        asyncio.get_running_loop().call_later(self._random.lognormvariate(-1.4, 0.4), gate.set)
        first = chat_chunk({"role": "assistant", "content": ""}, prompt, 0, is_first=True)
        chunks = [chat_chunk(delta, prompt, tokens * count) for count, delta in enumerate(deltas, 1)]
        last = chat_final(prompt, tokens * len(deltas), cached=prompt * 2 // 3)
        return Script([first, *chunks, last, DONE], pace_s=pace_s, gate=gate)


def _words(name: str, text: str) -> Iterator[dict[str, object]]:
    for word in text.split(" "):
        yield {name: f"{word} "}


def fleet(urls: list[str]) -> DirectoryAnswer:
    """Two models: one grows, and an engine of the other does not start."""
    replicas = (
        _replica("a1", LARGE, urls[0], ReplicaState.READY, "gpu-node-1", EngineLoad(21, 0, 0.46)),
        _replica("a2", LARGE, urls[1], ReplicaState.READY, "gpu-node-2", EngineLoad(19, 0, 0.41)),
        _replica("a3", LARGE, urls[1], ReplicaState.LOADING, "gpu-node-3", progress="64%"),
        _replica("b1", SMALL, urls[2], ReplicaState.READY, "gpu-node-4", EngineLoad(8, 0, 0.22)),
        _replica(
            "b2", SMALL, urls[2], ReplicaState.FAILED, "gpu-node-4",
            reason="Its KV cache has room for 41,000 tokens and the context is 131,072: lower max_model_len, or give it more GPUs.",
        ),
    )  # fmt: skip
    models = (
        ListedModel(LARGE, context_tokens=131_072, wanted=3, reason="scaled by waiting prompt tokens"),
        ListedModel(SMALL, context_tokens=131_072, wanted=2, adapters=("legal-tone",)),
    )
    return DirectoryAnswer("a", "first", True, tuple(Listed(it, 0.2) for it in replicas), models=models)


def _replica(
    name: str,
    model: str,
    url: str,
    state: ReplicaState,
    where: str,
    load: EngineLoad = EngineLoad(),  # noqa: B008 It is frozen.
    *,
    reason: str | None = None,
    progress: str | None = None,
) -> ReplicaReport:
    devices = ("0", "1") if model == LARGE else (("0",) if name == "b1" else ("1",))
    return ReplicaReport(
        name, model, url, state, context_tokens=131_072, load=load, reason=reason, progress=progress, node=where, devices=devices
    )  # fmt: skip


def peopled(world: World) -> dict[str, str]:
    """Tenants with limits, and their keys; returns those that are used."""
    registry = world.registry
    registry.update_tenant("acme", new_name="platform")
    registry.create_tenant("research", Policy(tokens_per_day=5_000_000, monthly_budget=Budget(hard=2000)))
    registry.create_tenant("support", Policy(tokens_per_minute=400_000, priority="interactive", weight=2.0))  # type: ignore[arg-type]
    return {
        "admin": registry.create_key("platform", name="Ada's laptop", role=Role.PLATFORM_ADMIN),
        "research": registry.create_key("research", name="notebooks"),
        "support": registry.create_key("support", name="assistant in production"),
    }


async def _call(client: aiohttp.ClientSession, url: str, key: str, model: str) -> None:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Authorization": f"Bearer {key}"}
    # A connection that the gateway has just closed for its idleness is one call less.
    with suppress(aiohttp.ClientOSError):
        async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.read()


async def _load(world: World, keys: dict[str, str], lasts_s: float) -> None:
    """Calls that come as they come, more and fewer of them."""
    chance, loop = random.Random(11), asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as calls:
        while (passed := loop.time() - began) < lasts_s:
            rate = RATE * (0.65 + 0.35 * math.sin(passed / 140) + 0.08 * math.sin(passed / 19))
            key = keys[chance.choice(("research", "support", "support"))]
            model = LARGE if chance.random() < 0.7 else SMALL
            calls.create_task(_call(world.client, world.url, key, model))
            await asyncio.sleep(chance.expovariate(rate))


async def photographed(home: Path, lasts_s: float) -> None:
    """Play, then photograph while calls go on."""
    folder = browser.scripts()
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(Directory())
        made = Engines()
        engines = [await stack.enter_async_context(ScriptedEngine(improvise=made.improvise)) for _ in range(3)]
        directory.says = fleet([it.url for it in engines])
        world = await stack.enter_async_context(
            running_gateway(home, directories=(directory.url,), aliases={"gpt-4o": LARGE})
        )
        keys = peopled(world)
        await _load(world, keys, lasts_s)
        given = {"CONSOLE": json.dumps({"url": world.url, "keys": keys}), "PICTURES": str(home)}
        going_on = asyncio.create_task(_load(world, keys, 60.0))
        process = await asyncio.create_subprocess_exec(
            node(), folder / "pictures.mjs", env=browser.environment(folder) | given
        )
        assert await process.wait() == 0
        going_on.cancel()


def main(lasts_s: float) -> None:
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(photographed(Path(home), lasts_s))
        PICTURES.mkdir(exist_ok=True)
        for path in Path(home).glob("*.png"):
            Image.open(path).convert("RGB").save(PICTURES / f"{path.stem}.webp", quality=82, method=6)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else LASTS_S)
