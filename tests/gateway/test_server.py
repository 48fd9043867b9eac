"""The gateway as a process: it starts before its engines, says what is wrong in a sentence, and ends without a mess."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import aiohttp
import pytest

from serving.config import Settings, StoreSettings
from serving.gateway.cli import opening
from serving.gateway.identity import changes
from serving.gateway.identity.keys import mint
from serving.gateway.identity.registry import Registry
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.server import COLLECTED_AFTER, freeze
from tests.gateway import valkey
from tests.gateway.places import Place, PostgresPlace, SqlitePlace
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
        await until(lambda: process.returncode is not None or _listens(port), timeout_s=120)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_it_serves_with_the_first_key_and_ends_cleanly(tmp_path: Path) -> None:
    """`serving gateway --engine URL` makes a key, answers with it, shows metrics and console apart, and stops at SIGTERM with code 0.

    A stream that is still running then ends in an error event, and everything is in the ledger.
    """
    port, metrics_port, console_port = free_port(), free_port(), free_port()
    settings = {"SERVING_GATEWAY__METRICS_PORT": str(metrics_port), "SERVING_GATEWAY__DRAIN_TIMEOUT_S": "1"}
    settings["SERVING_GATEWAY__CONSOLE__PORT"] = str(console_port)
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
            console = f"http://127.0.0.1:{console_port}"
            async with (
                client.get(f"{url}/console/session") as closed,
                client.get(f"{console}/console/session") as shown,
                client.get(f"{console}/v1/models") as called,
                client.get(f"{console}/admin/v1/whoami") as administered,
            ):
                assert (closed.status, shown.status, called.status, administered.status) == (404, 200, 200, 200)
            engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.HANG))
            async with client.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
                assert b"Hi" in await _read_until(stream.content, b"Hi")
                process.send_signal(signal.SIGTERM)
                rest = await stream.read()
        _, errors = await process.communicate()
    assert b'"error"' in rest and rest.endswith(b"data: [DONE]\n\n") and process.returncode == 0, errors
    assert b"Exception" not in errors
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


#: No answer about a key ends by itself in a test.
REMEMBERED = {"SERVING_GATEWAY__KEY_CACHE_S": "3600"}


async def _code(url: str, key: str) -> str:
    """How a call ends on a connection of its own: `ok`, or the refusal's code."""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as client,
        client.get(f"{url}/v1/models") as answer,
    ):
        return "ok" if answer.status == 200 else str((await answer.json())["error"]["code"])


async def _signed_in(url: str, key: str) -> str:
    """The cookie of a session that this gateway began."""
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/console/session", json={"key": key}, headers={"X-Console": "1"}) as answer,
    ):
        return answer.headers["Set-Cookie"].partition(";")[0]


async def _code_of_session(url: str, cookie: str) -> str:
    """As `_code`, for a page that shows a session."""
    headers = {"X-Console": "1", "Cookie": cookie}
    async with aiohttp.ClientSession(headers=headers) as client, client.get(f"{url}/v1/models") as answer:
        return "ok" if answer.status == 200 else str((await answer.json())["error"]["code"])


async def _all_refuse(
    urls: Sequence[str], key: str, code: str, asked: Callable[[str, str], Awaitable[str]] = _code
) -> None:
    """Wait until every one of them does so, for far longer than it takes: a busy machine must not fail this.

    More and more seldom: their log is read at the end alone, and holds some hundred lines.
    """
    for attempt in range(20):
        if {await asked(url, key) for url in urls} == {code}:
            return
        await asyncio.sleep(min(0.25 * 1.5**attempt, 5.0))
    raise AssertionError("the key still opens a gateway")


async def test_a_revoked_key_is_refused_by_every_gateway(unmigrated: PostgresPlace, tmp_path: Path) -> None:
    """Two processes on one database, both of which remember the key for an hour: they ask what was changed every half second.

    So does a key that was rotated work on both, and the old one beside it until its grace is over; and so does a session of the console
    that one of them began, until its key is revoked.
    """
    (tmp_path / "pepper").write_bytes(os.urandom(32))
    given = unmigrated.environment() | {"SERVING_STORE__PEPPER_FILE": str(tmp_path / "pepper")} | REMEMBERED
    del given["SERVING_HOME"]
    store_settings = StoreSettings(url_file=unmigrated.settings.url_file, pepper_file=tmp_path / "pepper")
    opening.migrate(Settings(home=tmp_path, store=store_settings))
    assert changes.INTERVAL_S <= 0.5
    ports = free_port(), free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with (
        ScriptedEngine() as engine,
        served(tmp_path / "a", ports[0], engine.url, **given),
        served(tmp_path / "b", ports[1], engine.url, **given),
    ):
        with opening.opened(Settings(home=tmp_path, store=store_settings)) as (store, keyring):
            registry = Registry(store, keyring, time.time)
            registry.create_tenant("acme")
            old = registry.create_key("acme")
            assert [await _code(url, old) for url in urls] == ["ok", "ok"]
            new = registry.rotate_key(old[3:13], grace_s=3600)
            assert [await _code(url, key) for url in urls for key in (old, new)] == ["ok"] * 4
            cookie = await _signed_in(urls[0], old)
            assert [await _code_of_session(url, cookie) for url in urls] == ["ok"] * 2
            registry.revoke_key(old[3:13])
            await _all_refuse(urls, old, "key_revoked")
            await _all_refuse(urls, cookie, "key_revoked", _code_of_session)
            assert [await _code(url, new) for url in urls] == ["ok", "ok"]
            registry.update_tenant("acme", is_disabled=True)
            await _all_refuse(urls, new, "tenant_disabled")


async def test_a_revoked_key_is_refused_by_every_worker(tmp_path: Path) -> None:
    """On SQLite, whose files tell that something was written; a session of the console that was ended too."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = REMEMBERED | {"SERVING_GATEWAY__WORKERS": "2"}
    async with ScriptedEngine() as engine, served(tmp_path, port, engine.url, **settings):
        with opening.opened(Settings(home=tmp_path)) as (store, keyring):
            registry = Registry(store, keyring, time.time)
            registry.create_tenant("acme")
            key = registry.create_key("acme")
            # Connections are dealt out by chance: of a dozen, each worker has some.
            assert [await _code(url, key) for _ in range(12)] == ["ok"] * 12
            cookie = await _signed_in(url, key)
            assert [await _code_of_session(url, cookie) for _ in range(12)] == ["ok"] * 12
            async with (
                aiohttp.ClientSession(headers={"X-Console": "1", "Cookie": cookie}) as client,
                client.delete(f"{url}/console/session") as answer,
            ):
                assert answer.status == 204
            await _all_refuse([url] * 12, cookie, "session_ended", _code_of_session)
            registry.revoke_key(key[3:13])
            await _all_refuse([url] * 12, key, "key_revoked")


async def _kept_together(place: Place, home: Path, ports: list[int], settings: dict[str, str]) -> bool:
    """Do several gateways, or one's workers, admit no more of fourteen calls than seven, and one for each seventh of a minute?"""
    given = {**place.environment(), **settings}
    if "SERVING_STORE__URL_FILE" in given:
        (home / "pepper").write_bytes(os.urandom(32))
        given["SERVING_STORE__PEPPER_FILE"] = str(home / "pepper")
    (home / "admin.key").write_text(mint())
    given |= {"SERVING_HOME": str(home), "SERVING_STORE__FIRST_KEY_FILE": str(home / "admin.key")}
    async with AsyncExitStack() as opened:
        engine = await opened.enter_async_context(ScriptedEngine())
        await _run(given, "store", "migrate")
        await _run(given, "policies", "set", "default", "--requests-per-minute", "7")
        for port in ports:
            environment = {name: value for name, value in given.items() if name != "SERVING_HOME"}
            await opened.enter_async_context(served(home, port, engine.url, **environment))
        headers = {"Authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}
        client = await opened.enter_async_context(aiohttp.ClientSession(headers=headers))
        statuses, began_at = [], time.monotonic()
        for number in range(14):
            # Each on a connection of its own: the kernel deals them out among workers.
            url = f"http://127.0.0.1:{ports[number % len(ports)]}/v1/chat/completions"
            async with client.post(url, json=CHAT, headers={"Connection": "close"}) as answer:
                statuses.append(answer.status)
                await answer.read()
    refilled = (time.monotonic() - began_at) * 7 / 60
    assert set(statuses) <= {200, 429}
    return 7 <= statuses.count(200) <= 7 + refilled


async def _run(environment: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving", *arguments),
        env=dict(os.environ) | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said


async def test_gateways_on_postgresql_keep_one_limit(unmigrated: PostgresPlace, tmp_path: Path) -> None:
    """Not each for itself."""
    assert await _kept_together(unmigrated, tmp_path, [free_port(), free_port()], {})


async def test_workers_keep_one_limit(tmp_path: Path) -> None:
    """Those of one gateway, in the file of SQLite."""
    assert await _kept_together(SqlitePlace(tmp_path), tmp_path, [free_port()], {"SERVING_GATEWAY__WORKERS": "2"})


async def test_gateways_keep_one_limit_in_redis(unmigrated: PostgresPlace, tmp_path: Path) -> None:
    """By the address in a file; one that holds none is refused at the start."""
    with valkey.running() as server:
        settings = {"SERVING_GATEWAY__COUNTERS__URL_FILE": str(server.url_file())}
        assert await _kept_together(unmigrated, tmp_path, [free_port(), free_port()], settings)
        with server.client() as client:
            assert [str(it) for it in client.scan_iter("serving:*requests_per_minute*")]
    assert unmigrated.execute("select * from counters") == []
    (tmp_path / "no-url").write_text("nowhere")
    refused = await start(tmp_path / "b", free_port(), SERVING_GATEWAY__COUNTERS__URL_FILE=str(tmp_path / "no-url"))
    _, errors = await refused.communicate()
    assert refused.returncode == 1 and b"must hold one line like redis://" in errors and b"nowhere" not in errors


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


async def _first_bytes(client: aiohttp.ClientSession, url: str, call_id: str, seen: set[str]) -> None:
    """One call; its id is in `seen` once the client had any of its answer."""
    body = CHAT | {"stream": call_id.endswith("s")}
    with suppress(aiohttp.ClientError, ConnectionError):
        async with client.post(url, json=body, headers={"X-Request-Id": call_id}) as answer:
            seen.add(call_id)
            await answer.read()


async def _killed_under_calls(
    home: Path, engine: ScriptedEngine, round_name: str, settings: dict[str, str]
) -> set[str]:
    """Calls one after the other until the gateway is killed in the middle; returns those that had bytes."""
    port, seen = free_port(), set[str]()
    async with served(home, port, engine.url, **settings) as process:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        key = (home / "admin.key").read_text().strip()
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as client:

            async def call_on(worker: int) -> None:
                for number in count():
                    await _first_bytes(client, url, f"{round_name}-{worker}-{number:04}-{'ws'[number % 2]}", seen)
                    if process.returncode is not None:
                        return

            calling = [asyncio.create_task(call_on(worker)) for worker in range(8)]
            await until(lambda: len(seen) > 20 + secrets.randbelow(20))
            process.kill()
            await process.wait()
            await asyncio.gather(*calling)
    return seen


async def _lost_rows(place: Place, rounds: int, settings: dict[str, str]) -> list[str]:
    """Calls whose clients had bytes and that left no row, over several killed gateways."""
    async with ScriptedEngine() as engine:
        seen = [
            await _killed_under_calls(place.home, engine, f"round{number:02}", settings) for number in range(rounds)
        ]
    with place.open() as store, Ledger(store, clock=time.time):
        rows = {str(request_id) for (request_id,) in place.execute("select request_id from ledger")}
    assert all(seen)
    return sorted(set().union(*seen) - rows)


async def test_a_killed_gateway_loses_no_call_that_had_bytes(tmp_path: Path) -> None:
    """kill -9 at any moment: whatever reached a client has its row. `make test-long` tries it twenty times, in both databases."""
    assert await _lost_rows(SqlitePlace(tmp_path), 2, {}) == []


@pytest.mark.long
async def test_twenty_killed_gateways_lose_no_call_that_had_bytes(tmp_path: Path) -> None:
    """As above."""
    assert await _lost_rows(SqlitePlace(tmp_path), 20, {}) == []


@pytest.mark.long
async def test_twenty_killed_gateways_before_postgresql_lose_none_either(shared: PostgresPlace, tmp_path: Path) -> None:
    """As above, in a database that other gateways share."""
    key = tmp_path / "admin.key"
    key.write_text(mint())
    settings = shared.environment() | {"SERVING_STORE__FIRST_KEY_FILE": str(key)}
    opening.migrate(Settings(home=tmp_path, store=StoreSettings(url_file=shared.settings.url_file, first_key_file=key)))
    del settings["SERVING_HOME"]
    assert await _lost_rows(shared, 20, settings) == []


def test_the_collector_leaves_what_was_there_and_looks_rarely() -> None:
    """All that lives as long as the process is nothing to it, and streams that arrive are no reason to go through all of them."""
    before = gc.get_threshold()
    try:
        freeze()
        assert gc.get_freeze_count() > 1_000 and gc.get_threshold() == COLLECTED_AFTER
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
