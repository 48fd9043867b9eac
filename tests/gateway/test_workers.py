"""Workers: together one gateway; each may die, hang or be told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from serving.config import GatewaySettings, StoredSettings
from serving.gateway import workers
from serving.lifetime import start_of
from tests.gateway.http.test_certificates import der, issued, put, seen
from tests.gateway.places import PostgresPlace, SqlitePlace
from tests.gateway.test_server import free_port, served, start
from tests.gateway.world import CHAT, until
from tests.scripted_engine import Ending, Script, ScriptedEngine, chat_stream

TWO = {"SERVING_GATEWAY__WORKERS": "2", "SERVING_GATEWAY__DRAIN_TIMEOUT_S": "1"}
HUNG = Script(chat_stream(["Hi"])[:2], ending=Ending.HANG)


def test_workers_divide_what_a_gateway_may_hold() -> None:
    """Rounded up where it is requests, because a worker that may hold none serves none; bytes are never more than the whole."""
    shared = workers.share_of(
        GatewaySettings(
            workers=3,
            max_open_requests=10,
            max_waiting_requests=1,
            max_held_bytes=2**22,
            stored=StoredSettings(background_calls_max=7),
        )
    )
    assert (shared.max_open_requests, shared.max_waiting_requests) == (4, 1)
    assert shared.stored.background_calls_max == 3
    assert 3 * shared.max_held_bytes <= 2**22 < 3 * (shared.max_held_bytes + 1)


def test_a_worker_without_room_for_a_call_is_refused() -> None:
    """Before anything starts."""
    with pytest.raises(ValueError, match="for each of the workers"):
        GatewaySettings(workers=3, max_held_bytes=2**20)


def test_deaths_that_follow_one_another_are_answered_more_slowly() -> None:
    """From a tenth of a second to ten: a worker that dies at once must not keep a core busy."""
    delays = [workers.delay_s(deaths) for deaths in range(1, 40)]
    assert delays[:3] == [0.1, 0.2, 0.4] and delays == sorted(delays) and delays[-1] == workers.DELAY_MAX_S


def below(pid: int) -> list[int]:
    """The processes that a gateway's parent has."""
    return [int(it) for it in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def all_there(process: asyncio.subprocess.Process, but: Sequence[int] = ()) -> None:
    """Two workers and the page, none of them one of those."""

    def are_there() -> bool:
        return len(children := below(process.pid)) == 3 and not set(but) & set(children)

    await until(are_there, timeout_s=60)


def key_of(home: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}


async def call(url: str, headers: dict[str, str]) -> None:
    """One call on a connection of its own."""
    async with aiohttp.ClientSession(headers=headers) as client, client.post(url, json=CHAT) as answer:
        assert answer.status == 200, await answer.text()


async def counted(url: str, name: str = 'serving_gateway_tenant_requests_total{outcome="ok"') -> float:
    """What the page has of it, by default calls."""
    async with aiohttp.ClientSession() as client, client.get(f"{url}/metrics") as shown:
        lines = (await shown.text()).splitlines()
    return sum(float(it.split()[-1]) for it in lines if it.startswith(name))


async def test_two_workers_are_one_gateway(tmp_path: Path) -> None:
    """One port, one key, one page of metrics that adds up, one ledger; SIGTERM ends all of them, a running stream in order."""
    port, metrics_port = free_port(), free_port()
    page = f"http://127.0.0.1:{metrics_port}"
    settings = TWO | {"SERVING_GATEWAY__METRICS_PORT": str(metrics_port)}
    async with ScriptedEngine() as engine, served(tmp_path, port, engine.url, **settings) as process:
        url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", key_of(tmp_path)
        rows = "select count(*), count(distinct gateway_id) from ledger where outcome = 'ok'"

        async def enough() -> int:
            """Until each of them has had one: connections are dealt out by chance."""
            for made in range(1, 200):
                await call(url, headers)
                await asyncio.sleep(0.06)
                if SqlitePlace(tmp_path).execute("select count(distinct gateway_id) from ledger") == [(2,)]:
                    return made
            raise AssertionError("one worker had 199 calls")

        made = await enough()
        await until(lambda: SqlitePlace(tmp_path).execute(rows) == [(made, 2)], timeout_s=60)
        assert await counted(page) == made
        async with aiohttp.ClientSession() as client, client.get(f"{page}/health/models") as states:
            assert states.status == 200
        engine.say(HUNG)
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.post(url, json=CHAT | {"stream": True}) as stream,
        ):
            await stream.content.readany()
            children = below(process.pid)
            process.send_signal(signal.SIGTERM)
            rest = await stream.read()
        _, errors = await process.communicate()
    assert rest.endswith(b"data: [DONE]\n\n") and b'"error"' in rest and process.returncode == 0, errors
    assert len(children) == 3 and [start_of(child) for child in children] == [None] * 3
    assert b"Traceback" not in errors


async def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """In one line of the log. Calls go on, sums do not fall, and the calls that it had open are closed as such."""
    port = free_port()
    async with ScriptedEngine() as engine, served(tmp_path, port, engine.url, **TWO) as process:
        url, headers = f"http://127.0.0.1:{port}", key_of(tmp_path)
        await all_there(process)
        first, _, _ = below(process.pid)
        for _ in range(6):
            await call(f"{url}/v1/chat/completions", headers)
        assert await counted(url) == 6
        os.kill(first, signal.SIGKILL)
        await all_there(process, but=(first,))
        for _ in range(6):
            await call(f"{url}/v1/chat/completions", headers)
        assert await counted(url) == 12 and await counted(url, "serving_gateway_workers_replaced_total") == 1
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    said = [json.loads(line)["message"] for line in errors.splitlines() if b"serving.gateway.workers" in line]
    assert said == [f"worker 1 (pid {first}) ended by SIGKILL; another starts in 0.1 s"] and process.returncode == 0


async def test_every_worker_shows_the_renewed_certificate(tmp_path: Path) -> None:
    """One that takes another's place too: its parent has read the files that were there at the start."""
    files, other, port = issued(tmp_path / "tls"), issued(tmp_path / "other"), free_port()
    settings = TWO | {
        "SERVING_GATEWAY__TLS__CERTIFICATE_FILE": str(files.certificate_file),
        "SERVING_GATEWAY__TLS__KEY_FILE": str(files.key_file),
    }
    async with ScriptedEngine() as engine, served(tmp_path, port, engine.url, **settings) as process:
        await all_there(process)
        assert await seen(port) == der(files.certificate_file)
        put(other, files)
        first, second, _ = below(process.pid)
        for child in (first, second):
            os.kill(child, signal.SIGKILL)
        await all_there(process, but=(first, second))
        for _ in range(12):
            assert await seen(port) == der(other.certificate_file)


async def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Killed, it cannot tell them: the kernel does, and they shut down gracefully."""
    port = free_port()
    async with ScriptedEngine() as engine, served(tmp_path, port, engine.url, **TWO) as process:
        await all_there(process)
        children = below(process.pid)
        process.kill()
        await process.wait()
        await until(lambda: [start_of(child) for child in children] == [None] * 3, timeout_s=60)


async def test_a_port_in_use_is_refused_also_where_workers_share_it(tmp_path: Path) -> None:
    """Two gateways whose workers share a port would both seem to serve; the second is refused, as ever."""
    port = free_port()
    async with ScriptedEngine() as engine, served(tmp_path / "a", port, engine.url, **TWO):
        second = await start(tmp_path / "b", port, **TWO)
        _, errors = await second.communicate()
    assert second.returncode == 1 and f"Port {port} on 127.0.0.1".encode() in errors and errors.count(b"\n") == 1


async def test_workers_that_cannot_start_end_the_gateway(unmigrated: PostgresPlace, tmp_path: Path) -> None:
    """With the sentence that says why, and exit code 1: nothing is tried again that has never worked."""
    (tmp_path / "pepper").write_bytes(os.urandom(32))
    given = unmigrated.environment() | {"SERVING_STORE__PEPPER_FILE": str(tmp_path / "pepper")} | TWO
    given.pop("SERVING_HOME")
    process = await start(tmp_path / "a", free_port(), **given)
    _, errors = await process.communicate()
    assert process.returncode == 1 and b"run `serving store migrate` once" in errors and b"Traceback" not in errors


#: A parent with two children, of which one is sound and the other begins as one and does then what is put in.
PROGRAM = """
import os, sys, time
from serving.gateway.workers import Role, supervise

def sound(life):
    while True:
        life.beat()
        time.sleep(0.05)

def other(life):
    {begins}
    life.beat()
    with open(sys.argv[1], "a") as log:
        log.write("x")
    {does}

sys.exit(supervise([Role("sound", sound), Role("other", other)], lambda: print("released", flush=True), {stuck_s}))
"""


def supervised(does: str, log: Path, begins: str = "", stuck_s: float = 60.0) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-c", PROGRAM.format(begins=begins, does=does, stuck_s=stuck_s), str(log)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    process.terminate()
    said, complained = await asyncio.to_thread(process.communicate)
    return process.returncode, said, complained


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("time.sleep(60)", b"has hung for 0 s and is killed"),
        ("os._exit(3)", b"ended with code 3"),
        ("return", b"ended with code 0"),
        ("raise SystemError('x')", b"ended with code 1"),
        ("os.kill(os.getpid(), 9)", b"ended by SIGKILL"),
    ],
    ids=["hangs", "ends", "returns", "raises", "is killed"],
)
async def test_a_child_that_served_once_is_replaced(does: str, reason: bytes, tmp_path: Path) -> None:
    """Whatever became of it, and again and again; the parent goes on until it is told to stop."""
    log = tmp_path / "log"
    process = supervised(does, log, stuck_s=0.5 if "sleep" in does else 60.0)
    await until(lambda: log.exists() and len(log.read_text()) >= 3, timeout_s=60)
    # Its exit code may be that of the child that was just ending.
    _, said, complained = await ended(process)
    assert said == b"released\n" and reason in complained and b"other" in complained


async def test_a_child_that_is_killed_before_it_served_is_replaced_too(tmp_path: Path) -> None:
    """It was not what it lacks that ended it: only a child that gives up by itself has said that it cannot start."""
    log = tmp_path / "log"
    process = supervised(
        "", log, begins="if not os.path.exists(sys.argv[1]): open(sys.argv[1], 'w').close(); os.kill(os.getpid(), 9)"
    )
    await until(lambda: log.exists() and log.read_text() == "x", timeout_s=60)
    code, _, complained = await ended(process)
    assert code == 0 and b"other" in complained and b"ended by SIGKILL" in complained


TWICE = """
    import signal
    got = []
    def note(*_):
        got.append(1)
        with open(sys.argv[1], "a") as log:
            log.write("x")
    signal.signal(signal.SIGTERM, note)
    note()
    while len(got) < 3:
        life.beat()
        time.sleep(0.01)
"""


async def test_a_second_signal_reaches_the_children_too(tmp_path: Path) -> None:
    """They cut what still runs; what the children need is released once."""
    log = tmp_path / "log"
    process = supervised(TWICE, log)
    await until(lambda: log.exists() and len(log.read_text()) == 2, timeout_s=60)
    process.terminate()
    assert process.stdout is not None and await asyncio.to_thread(process.stdout.readline) == b"released\n"
    # Two that come at once are one.
    await until(lambda: len(log.read_text()) == 3, timeout_s=60)
    assert process.poll() is None
    code, said, _ = await ended(process)
    assert (code, said) == (0, b"")
