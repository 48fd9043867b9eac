"""The gateway as a process: it starts before its engines, says what is wrong in a sentence, and ends without a mess."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from serving.gateway.identity.keys import mint
from tests.gateway.places import PostgresPlace
from tests.gateway.world import CHAT, until
from tests.scripted_engine import Ending, Script, ScriptedEngine, chat_stream

JSON = {"Content-Type": "application/json"}


#: Below those that the kernel hands out by itself: tests that run beside this one get none of these by chance.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port that no server has now."""
    while True:
        port = secrets.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def start(home: Path, port: int, *arguments: str, **settings: str) -> asyncio.subprocess.Process:
    environment = dict(os.environ) | {"SERVING_HOME": str(home)} | settings
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving", "gateway", "--port", str(port), *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def served(home: Path, port: int, engine: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await start(home, port, "--engine", engine, **settings)
    try:
        await until(lambda: process.returncode is not None or _listens(port), timeout_s=30)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_it_serves_with_the_first_key_and_ends_cleanly(tmp_path: Path) -> None:
    """`serving gateway --engine URL` makes a key, answers with it, shows metrics apart, and stops at SIGTERM with code 0.

    A stream that is still running then ends in an error event, and everything is in the ledger.
    """
    port, metrics_port = free_port(), free_port()
    settings = {"SERVING_GATEWAY__METRICS_PORT": str(metrics_port), "SERVING_GATEWAY__DRAIN_TIMEOUT_S": "1"}
    async with ScriptedEngine() as engine, served(tmp_path, port, engine.url, **settings) as process:
        headers = {"Authorization": f"Bearer {(tmp_path / 'admin.key').read_text().strip()}"}
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(headers=headers) as client:
            async with client.post(f"{url}/v1/chat/completions", json=CHAT) as answer:
                assert answer.status == 200
            async with (
                client.get(f"{url}/metrics") as closed,
                client.get(f"http://127.0.0.1:{metrics_port}/metrics") as shown,
            ):
                assert (closed.status, shown.status) == (404, 200)
                assert b"serving_gateway_requests_total" in await shown.read()
            engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.HANG))
            async with client.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
                assert b"Hi" in await _read_until(stream.content, b"Hi")
                process.send_signal(signal.SIGTERM)
                rest = await stream.read()
        _, errors = await process.communicate()
    assert b'"error"' in rest and rest.endswith(b"data: [DONE]\n\n") and process.returncode == 0, errors
    access = [line["message"] for line in map(json.loads, errors.splitlines()) if line["logger"] == "serving.access"]
    assert [line["outcome"] for line in access if line["route"] == "/v1/chat/completions"] == ["ok", "cancelled"]


async def test_two_gateways_on_one_database_know_each_others_keys(unmigrated: PostgresPlace, tmp_path: Path) -> None:
    """As in a cluster: refused before `store migrate`, then any number of them, each in a home of its own."""
    (tmp_path / "pepper").write_bytes(os.urandom(32))
    key = mint()
    (tmp_path / "admin.key").write_text(key)
    given = unmigrated.environment() | {"SERVING_STORE__PEPPER_FILE": str(tmp_path / "pepper")}
    given["SERVING_STORE__FIRST_KEY_FILE"] = str(tmp_path / "admin.key")
    del given["SERVING_HOME"]
    first, second = free_port(), free_port()
    early = await start(tmp_path / "a", first, **given)
    _, errors = await early.communicate()
    assert early.returncode == 1 and b"run `serving store migrate` once" in errors and b"Traceback" not in errors

    migration = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving", "store", "migrate"),
        env=dict(os.environ) | given | {"SERVING_HOME": str(tmp_path)},
    )
    assert await migration.wait() == 0
    async with (
        ScriptedEngine() as engine,
        served(tmp_path / "a", first, engine.url, **given),
        served(tmp_path / "b", second, engine.url, **given),
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}", "X-Request-Id": "same"}) as client,
    ):
        for port in (first, second):
            async with client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT) as answer:
                assert answer.status == 200, await answer.text()
        ledger = "select outcome, count(distinct gateway_id) from ledger group by outcome"
        await until(lambda: unmigrated.execute(ledger) == [("ok", 2)])
    assert not (tmp_path / "a" / "admin.key").exists() and not (tmp_path / "a" / "pepper").exists()


async def _read_until(content: aiohttp.StreamReader, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        seen += await content.readany()
    return seen


async def test_a_taken_port_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Another process's port: one sentence that names it, exit code 1, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await start(tmp_path, port)
        _, errors = await process.communicate()
    assert process.returncode == 1 and f"Port {port} on 127.0.0.1".encode() in errors
    assert b"Traceback" not in errors and errors.count(b"\n") == 1
