"""A company's installation, small: two gateways on one PostgreSQL, a directory, two real engines. Any part of it can be killed and
started again at its address.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aiohttp import web

from serving.config import StoreSettings
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.ledger.usage import CallRow, calls
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from serving.wire import DirectoryAnswer, Listed, ReplicaReport, ReplicaState
from tests.gateway.fleet.directory import Directory
from tests.gateway.postgres import Server
from tests.long.nursery import Nursery
from tests.long.pair import Engine
from tests.stack.http import call
from tests.stack.running import free_port
from tests.waiting import until

#: Rows of a test.
ROWS_MAX = 100_000


class Gateway:
    """`serving gateway` in a process of its own."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = os.environ | environment | {"SERVING_HOME": str(home)}
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir()

    def start(self) -> None:
        line = [sys.executable, "-m", "serving", "gateway", "--port", str(self.port)]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(line, env=self._environment, stdout=log, stderr=log)

    def until_ready(self) -> None:
        until(lambda: _answers(self.url, "/health/models"), 60.0)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def stop(self) -> None:
        """As Kubernetes does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)


class Register:
    """The directory of both engines, in a thread with an event loop of its own."""

    def __init__(self, model: str, engines: list[Engine]) -> None:
        self._model = model
        self._engines = engines
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._directory = Directory()
        self._starts = [0] * len(engines)
        self._is_up = [True] * len(engines)
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self.start()
        try:
            yield
        finally:
            self.kill()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self._say()

    def kill(self) -> None:
        """It takes no more connections, and those it has are closed."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._close(self._runner), self._loop).result()
            self._runner = None

    def put(self, number: int, *, is_up: bool) -> None:
        """What is said of an engine from now on; it has a new id after each of its starts."""
        self._starts[number] += is_up and not self._is_up[number]
        self._is_up[number] = is_up
        self._say()

    def id_of(self, number: int) -> str:
        return f"engine-{number}-{self._starts[number]}"

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_post("/directory", self._directory.answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()

    async def _close(self, runner: web.AppRunner) -> None:
        await runner.cleanup()
        # Transports end in the turns after the one that closes them.
        for _ in range(3):
            await asyncio.sleep(0)

    def _say(self) -> None:
        reports = [
            ReplicaReport(
                self.id_of(number),
                self._model,
                engine.url,
                ReplicaState.READY if self._is_up[number] else ReplicaState.FAILED,
            )
            for number, engine in enumerate(self._engines)
        ]
        self._directory.says = DirectoryAnswer("a", "1", True, tuple(Listed(report, 0.0) for report in reports))


class Company:
    """The whole of it. Its first tenant is `ward`."""

    def __init__(self, home: Path, model: str, postgres: Server, database: str, settings: dict[str, str]) -> None:
        self.home, self.model = home, model
        self.postgres = postgres
        self.engines = [Engine(home, model), Engine(home, model)]
        self.nursery = Nursery(self.engines[0].environment())
        self.register = Register(model, self.engines)
        (home / "url").write_text(postgres.url(database))
        (home / "pepper").write_bytes(secrets.token_bytes(32))
        environment = {
            "SERVING_STORE__URL_FILE": str(home / "url"),
            "SERVING_STORE__PEPPER_FILE": str(home / "pepper"),
            "SERVING_PLANE_SECRET_FILE": str(home / "plane.secret"),
            "SERVING_GATEWAY__DIRECTORIES": f'["{self.register.url}"]',
            **settings,
        }
        self.gateways = [Gateway(home / f"gateway-{number}", environment) for number in range(2)]
        self.store_settings = StoreSettings(url_file=home / "url", pepper_file=home / "pepper")
        self.key = ""

    @contextmanager
    def running(self, policy: Policy) -> Iterator[None]:
        """Everything is up at the beginning."""
        with Store.open(self.home, self.store_settings, may_migrate=True) as store:
            registry = Registry(store, Keyring.open(store, self.store_settings.pepper_file), time.time)
            registry.create_tenant("ward", policy)
            self.key = registry.create_key("ward")
        with ExitStack() as opened:
            opened.callback(self.nursery.close)
            for engine in self.engines:
                opened.callback(engine.close)
                engine.start(self.nursery)
            for engine in self.engines:
                engine.until_ready()
            opened.enter_context(self.register.running())
            for gateway in self.gateways:
                gateway.start()
                opened.callback(gateway.stop)
            for gateway in self.gateways:
                gateway.until_ready()
            yield

    def rows(self) -> dict[str, CallRow]:
        """Request id → what the ledger says of it."""
        with Store.open(self.home, self.store_settings) as store:
            return {row.request_id: row for row in calls(store, limit=ROWS_MAX)}

    def restart_engine(self, number: int) -> None:
        self.engines[number].kill()
        self.register.put(number, is_up=False)
        self.engines[number].start(self.nursery)
        self.engines[number].until_ready()
        self.register.put(number, is_up=True)

    def restart_gateway(self, number: int) -> None:
        self.gateways[number].kill()
        self.gateways[number].start()
        self.gateways[number].until_ready()


def _answers(url: str, path: str) -> bool:
    try:
        return call(url, "GET", path)[0] == 200
    except OSError:
        return False
