"""One client against one endpoint: its script is run, and what each feature came to is judged."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients import environments, reciter
from tests.clients.catalogue import Client
from tests.clients.environments import HERE
from tests.gateway.world import running_gateway
from tests.scripted_engine import ScriptedEngine

SCRIPTS = HERE / "scripts"
PASSES = "passes"
#: Seconds that a client has for one feature: an agent's start on a busy machine included.
FEATURE_TIMEOUT_S = 120
#: Seconds until the engine has seen that a client left.
ABORT_TIMEOUT_S = 10
#: The largest agent's first request is some 90 kB, the prompt that is too long 100 kB.
MAX_BODY_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Endpoint:
    """What a client is given."""

    url: str
    key: str
    model: str
    #: How many requests the engine has stopped because their clients left; None where that is not to be seen.
    aborted: Callable[[], int] | None = None


@dataclass(frozen=True)
class Line:
    """What a script printed of one feature."""

    value: Any = None
    error: str | None = None


def before_scripted_engine(client: Client) -> dict[str, str]:
    """Feature → verdict, with a gateway of the client's own before the reciting engine."""

    async def performed() -> dict[str, str]:
        with tempfile.TemporaryDirectory() as home:
            async with (
                ScriptedEngine(model=reciter.MODEL, improvise=reciter.recite) as engine,
                running_gateway(Path(home), (engine.url,), aliases={}, max_body_bytes=MAX_BODY_BYTES) as world,
            ):
                endpoint = Endpoint(world.url, world.key, reciter.MODEL, lambda: engine.aborted)
                return await perform(client, endpoint)

    return asyncio.run(performed())


async def perform(client: Client, endpoint: Endpoint) -> dict[str, str]:
    """Feature → `PASSES`, or what was seen instead."""
    command = _command(client)
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment(endpoint, Path(home)), cwd=home, stdin=PIPE, stdout=PIPE, stderr=PIPE,
            start_new_session=True,
        )  # fmt: skip
        errors = asyncio.create_task(_read_to_end(process))
        lines = await _lines(process, endpoint)
        await process.wait()
    said = (await errors)[-1000:]
    missing = Line(error=f"the script did not come to it: {said}")
    verdicts = {}
    for feature in client.tried:
        line = lines.get("tools" if feature == "kept_reasoning" else feature, missing)
        verdicts[feature] = line.error or _judged(client, feature, line.value)
    return verdicts


def _command(client: Client) -> list[str]:
    """A Node script runs beside its packages, where imports are looked for."""
    if not client.is_node:
        return [str(environments.python(client.group)), str(SCRIPTS / client.script), *client.arguments]
    folder = environments.packages(client.group)
    with environments.held(folder.name):
        for script in SCRIPTS.glob("*.mjs"):
            shutil.copy(script, folder)
    return [str(environments.node()), str(folder / client.script), *client.arguments]


def environment(endpoint: Endpoint, home: Path) -> dict[str, str]:
    """Base URL and key under the names that the SDKs read, a home of its own, and nothing of this machine's user."""
    return {
        "PATH": f"{environments.node().parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(home),
        "CLIENT_URL": endpoint.url,
        "CLIENT_KEY": endpoint.key,
        "CLIENT_MODEL": endpoint.model,
        "OPENAI_BASE_URL": f"{endpoint.url}/v1",
        "OPENAI_API_KEY": endpoint.key,
        "ANTHROPIC_BASE_URL": endpoint.url,
        "ANTHROPIC_API_KEY": endpoint.key,
    }


async def _lines(process: Process, endpoint: Endpoint) -> dict[str, Line]:
    """Every line, each answered when what it is about was seen at the engine too."""
    assert process.stdout and process.stdin
    lines = {}
    try:
        while printed := await asyncio.wait_for(process.stdout.readline(), FEATURE_TIMEOUT_S):
            if not printed.startswith(b'{"feature"'):
                continue  # a client that prints
            line = json.loads(printed)
            feature = line.pop("feature")
            lines[feature] = Line(**line)
            if feature == "abort" and endpoint.aborted and not await _has_aborted(endpoint.aborted):
                lines[feature] = Line(error="the engine went on after the client had left")
            process.stdin.write(b"\n")
    except TimeoutError:
        # Its children too: an agent's would hold its standard error open.
        os.killpg(process.pid, signal.SIGKILL)
    return lines


async def _has_aborted(aborted: Callable[[], int]) -> bool:
    for _ in range(ABORT_TIMEOUT_S * 20):
        if aborted():
            return True
        await asyncio.sleep(0.05)
    return False


async def _read_to_end(process: Process) -> str:
    assert process.stderr
    return (await process.stderr.read()).decode(errors="replace")


def _judged(client: Client, feature: str, value: Any) -> str:
    is_right = _RIGHT[feature](client, value)
    return PASSES if is_right else f"it saw {value!r}"


ANSWER = "The sum is forty-two."
RESULT = "18 degrees, sunny"
KEPT, DROPPED = "It is sunny in Paris.", f"Sunny;{reciter.GONE}"


def _is_called(client: Client, value: Any) -> bool:
    """Called once with the right arguments, and answered from the result; a command line's own shell shows that alone."""
    if client.is_agent:
        return RESULT in value["text"]
    is_right = value["called"] == "get_weather" and value["arguments"] == {"city": "Paris"}
    return is_right and value["text"] in (KEPT, DROPPED)


#: Feature → what its value must be.
_RIGHT: dict[str, Callable[[Client, Any], bool]] = {
    "whole": lambda client, value: value == ANSWER,
    "stream": lambda client, value: "".join(value) == ANSWER and sum(map(bool, value)) > 1,
    "tools": _is_called,
    "tools_streamed": _is_called,
    "kept_reasoning": lambda client, value: reciter.GONE not in value["text"],
    "reasoning": lambda client, value: value == "17+25=42.",
    "structured": lambda client, value: value == {"city": "Paris", "country": "France"},
    "usage": lambda client, value: all(isinstance(it, int) and it > 0 for it in value),
    "errors": lambda client, value: tuple(value) == client.raises,
    "overflow": lambda client, value: tuple(value) == client.too_long,
    "models": lambda client, value: reciter.MODEL in value,
    "request_id": lambda client, value: bool(value),
    "embeddings": lambda client, value: len(value) > 0 and all(isinstance(it, float) for it in value),
    "abort": lambda client, value: bool(value),
}
