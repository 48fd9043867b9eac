"""The console in a browser: what people do there, against a gateway before a scripted engine. `tasks.mjs` has the steps."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from serving.gateway.nouns import Role
from serving.gateway.policies import Policy
from serving.wire import DirectoryAnswer, Listed, ListedModel, ReplicaReport, ReplicaState
from tests.clients.environments import node
from tests.console import browser
from tests.gateway import issuer
from tests.gateway.fleet.directory import Directory
from tests.gateway.world import World, running_gateway, until
from tests.scripted_engine import (
    DONE,
    MODEL,
    Script,
    ScriptedEngine,
    answering,
    chat_answer,
    chat_chunk,
    chat_final,
    unscripted,
)

#: Seconds for all tasks together, on a machine that does other things too.
TIMEOUT_S = 600
TASKS = (
    "sign_in", "sign_in_by_single_sign_on", "stream_with_reasoning", "stop_a_stream", "answer_a_tool_call",
    "answer_by_a_schema", "show_as_code", "read_what_went_wrong", "see_own_key_and_use", "cancel_a_batch",
    "create_rotate_and_revoke_a_key", "watch_models", "look_at_tenants", "search_the_audit", "sign_out",
    "session_that_ends", "keyboard_alone", "reduced_motion", "accessible_in_light", "accessible_in_dark_at_360_px",
)  # fmt: skip


def improvise(path: str, body: dict[str, object]) -> Script:
    """A model that reasons, calls the tool it is given, keeps to a schema, and counts for ever."""
    if path != "/v1/chat/completions":
        return unscripted(path, body)
    messages: Any = body["messages"]
    last = messages[-1]
    if last["content"] == "Wait.":
        return Script(is_mute=True)
    if "Count" in last["content"]:
        return _stream([{"content": word} for word in ("one ", "two ", *["more "] * 5000)], pace_s=0.02)
    if body.get("stream") is not True:
        return answering(chat_answer("Paris"))
    thought = {"reasoning": "The user asks something simple. "}
    if last["role"] == "tool":
        return _stream([thought, {"content": f"It is {last['content']}."}])
    if body.get("tools"):
        function = {"name": "get_weather", "arguments": '{"city": '}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        rest = {"index": 0, "function": {"arguments": '"Paris"}'}}
        return _stream([thought, {"tool_calls": [call]}, {"tool_calls": [rest]}], "tool_calls")
    if body.get("response_format"):
        return _stream([{"content": '{"title": "Plan", "priority"'}, {"content": ': "low", "steps": []}'}])
    return _stream([thought, {"reasoning": "It is Paris."}, {"content": "The capital "}, {"content": "is Paris."}])


def _stream(deltas: Sequence[Mapping[str, object]], reason: str = "stop", pace_s: float = 0.0) -> Script:
    first = chat_chunk({"role": "assistant", "content": ""}, 7, 0, is_first=True)
    chunks = [chat_chunk(dict(delta), 7, count) for count, delta in enumerate(deltas, 1)]
    last = chat_chunk({}, 7, len(deltas)).replace(b'"finish_reason":null', f'"finish_reason":"{reason}"'.encode())
    return Script([first, *chunks, last, chat_final(7, len(deltas)), DONE], pace_s=pace_s)


def fleet(url: str, *, has_failed: bool = False) -> DirectoryAnswer:
    """A cell with an engine that answers, and one that loads or has failed."""
    ready = ReplicaReport("one", MODEL, url, ReplicaState.READY, node="gpu-node-1", devices=("0",), context_tokens=4096)
    loading = ReplicaReport("two", MODEL, "http://127.0.0.1:9", ReplicaState.LOADING, node="gpu-node-2", progress="45%")
    failed = ReplicaReport(
        "two", MODEL, loading.url, ReplicaState.FAILED, node="gpu-node-2", reason="It does not fit its GPUs."
    )
    model = ListedModel(
        MODEL, context_tokens=4096, wanted=3, reason="the load", shortage="No node has room." if has_failed else None
    )
    return DirectoryAnswer(
        "a", "first", True, (Listed(ready, 0.1), Listed(failed if has_failed else loading, 0.1)), models=(model,)
    )


class Played:
    """The gateway's side of the tasks: what they ask to be done, and what came of it."""

    def __init__(self, world: World, engine: ScriptedEngine, directory: Directory) -> None:
        self._world = world
        self._engine = engine
        self._directory = directory
        self.keys = {
            "member": world.registry.create_key("acme", name="notebook"),
            "admin": world.registry.create_key("acme", name="operator", role=Role.PLATFORM_ADMIN),
            "brief": world.registry.create_key("acme", name="brief"),
        }
        self._cues: dict[str, Callable[..., Awaitable[object]]] = {
            "aborted": self._aborted,
            "programs": self._programs,
            "batch": self._batch,
            "refused": self._refused,
            "engine fails": self._engine_fails,
            "revoke brief": self._revoke_brief,
        }

    async def answer(self, cue: str, **details: str) -> object:
        return await self._cues[cue](**details)

    async def _aborted(self) -> object:
        await until(lambda: self._engine.aborted, 30)
        return self._engine.aborted

    async def _programs(self, curl: str, python: str) -> object:
        environment = {"SERVING_API_KEY": self.keys["member"], "PATH": "/usr/bin:/bin"}
        said = []
        for command in (
            ["bash", "-c", curl.replace("curl", "curl --silent --show-error", 1)],
            [sys.executable, "-c", python],
        ):
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=PIPE, stderr=PIPE)
            out, err = await process.communicate()
            said.append((out + err).decode())
        return {"curl": said[0], "python": said[1], "sent": [it.body for it in self._engine.received[-2:]]}

    async def _batch(self) -> object:
        """The id of a batch that will not end by itself."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Wait."}]}
        line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
        async with AsyncOpenAI(base_url=f"{self._world.url}/v1", api_key=self.keys["member"]) as client:
            file = await client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        return batch.id

    async def _refused(self, key: str) -> object:
        deadline_s = 30.0
        while True:
            answer = await self._world.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            if answer.status == 401 or (deadline_s := deadline_s - 0.1) < 0:
                return answer.status
            await asyncio.sleep(0.1)

    async def _engine_fails(self) -> object:
        self._directory.says = fleet(self._engine.url, has_failed=True)
        return None

    async def _revoke_brief(self) -> object:
        registry = self._world.registry
        (key,) = (it for it in registry.keys("acme") if it.name == "brief")
        registry.revoke_key(key.id)
        return await self._refused(self.keys["brief"])


@asynccontextmanager
async def staged(home: Path) -> AsyncIterator[tuple[World, Played]]:
    """A gateway with a fleet, tenants and keys, and something in its ledger and audit."""
    async with ScriptedEngine(improvise=improvise) as engine, Directory() as directory, issuer.running() as sso:
        directory.says = fleet(engine.url)
        oidc = (sso.settings(client_id="console"),)
        async with running_gateway(home, directories=(directory.url,), oidc=oidc) as world:
            played = Played(world, engine, directory)
            world.registry.update_tenant("acme", policy=Policy(requests_per_minute=1000, store_responses=True))
            world.registry.create_tenant("research")
            yield world, played


async def performed(home: Path) -> dict[str, dict[str, Any]]:
    """Task → what its line says."""
    folder = browser.scripts()
    lines = {}
    async with staged(home) as (world, played), asyncio.timeout(TIMEOUT_S):
        given = {"CONSOLE": json.dumps({"url": world.url, "keys": played.keys})}
        process = await asyncio.create_subprocess_exec(
            node(), folder / "tasks.mjs", env=browser.environment(folder) | given, stdin=PIPE, stdout=PIPE, limit=2**20
        )
        assert process.stdin
        assert process.stdout
        async for printed in process.stdout:
            line = json.loads(printed)
            if cue := line.pop("cue", None):
                answer = await played.answer(cue, **line)
                process.stdin.write(json.dumps(answer).encode() + b"\n")
            else:
                lines[line["task"]] = line
        await process.wait()
    return lines


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return asyncio.run(performed(tmp_path_factory.mktemp("console")))


def value(lines: dict[str, dict[str, Any]], task: str) -> Any:
    """What a task has seen; fails with its reason where it did not come to its end."""
    line = lines.get(task, {"error": "the script did not come to it"})
    assert "error" not in line, f"{task}: {line['error']}"
    return line["value"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_can_be_done(lines: dict[str, dict[str, Any]], task: str) -> None:
    """It comes to its end; the page neither throws, nor breaks its security policy, nor asks another host for anything."""
    value(lines, task)


def test_every_task_is_tried(lines: dict[str, dict[str, Any]]) -> None:
    """The list of tasks here is the script's."""
    assert tuple(lines) == TASKS


def test_stopping_a_stream_stops_the_engine(lines: dict[str, dict[str, Any]]) -> None:
    """What nobody reads any more is not computed."""
    assert value(lines, "stop_a_stream") == 1


def test_a_schema_reaches_the_model(lines: dict[str, dict[str, Any]]) -> None:
    """An answer by a schema is the JSON that it asks for."""
    assert value(lines, "answer_by_a_schema") == {"title": "Plan", "priority": "low", "steps": []}


def test_the_code_that_is_shown_runs(lines: dict[str, dict[str, Any]]) -> None:
    """curl and Python, pasted as they are, send what the playground would have sent."""
    said = value(lines, "show_as_code")
    assert "is Paris." in said["curl"], said["curl"]
    assert said["python"].strip() == "The capital is Paris."
    for body in said["sent"]:
        assert body["messages"] == [{"role": "user", "content": "It's 5 o'clock."}]
        assert (body["temperature"], body["reasoning_effort"]) == (0.5, "low")


def test_a_revoked_key_is_refused(lines: dict[str, dict[str, Any]]) -> None:
    """What the page revokes, the API refuses."""
    assert value(lines, "create_rotate_and_revoke_a_key") == 401


@pytest.mark.parametrize("task", ["accessible_in_light", "accessible_in_dark_at_360_px"])
def test_no_view_has_a_violation(lines: dict[str, dict[str, Any]], task: str) -> None:
    """axe-core finds nothing on any view, and none is wider than its window."""
    found = value(lines, task)
    assert len(found) >= 9 and "Batches" in found
    assert {view: wrong for view, wrong in found.items() if wrong} == {}
