"""A pair of real engines of one model behind a gateway: engines that can be killed, drained and started again within seconds."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from serving import catalog
from serving.config import EngineSettings, ModelSettings, Settings
from serving.engine import command
from serving.engine.checkpoints import store as checkpoints
from serving.engine.specs import engine_spec
from serving.gateway.ledger.usage import CallRow, calls
from serving.gateway.store.store import Store
from serving.secret import create_if_absent
from serving.wire import DirectoryAnswer, Listed, ReplicaReport, ReplicaState
from tests.exposition import value
from tests.gateway.fleet.directory import Directory
from tests.long.cutting import Cutter
from tests.long.nursery import Born, Nursery
from tests.stack.http import bearer, call
from tests.stack.running import CACHE, free_port
from tests.waiting import until

START_TIMEOUT_S = 300.0

Events = list[dict[str, Any]]


class Engine:
    """One vLLM server with our middleware, that can be killed and started again at its address."""

    def __init__(
        self, home: Path, model: str, flags: Sequence[str] = (), variables: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`flags` and `variables` come on top of what the settings make of it."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        found = catalog.find(model)
        settings = Settings(home=home, engine=EngineSettings(memory_share=0.15))
        create_if_absent(home)
        checkpoint = checkpoints.ensure(found, CACHE, print)
        spec = engine_spec(found, ModelSettings(name=model), checkpoint, settings, settings.secret_file)
        self._spec = msgspec.structs.replace(spec, flags=(*spec.flags, *flags))
        self._variables = variables
        #: vLLM's sockets lie here, and their paths have a bound.
        self._scratch = Path(tempfile.mkdtemp(prefix="kills-", dir="/tmp"))
        self._born: Born | None = None

    def environment(self) -> dict[str, str]:
        return command.environment(self._spec, self._scratch.name, self._scratch, os.environ | self._variables)

    def start(self, nursery: Nursery) -> None:
        line = command.arguments(self._spec, self.port)
        self._born = nursery.bear(line, self.environment(), self._scratch / "log")

    def until_ready(self) -> None:
        def is_over() -> bool:
            assert self._born is not None and self._born.is_alive, (self._scratch / "log").read_text()[-4000:]
            return _answers(self.url, "/health")

        until(is_over, START_TIMEOUT_S)

    def running_requests(self, secret: str) -> float:
        """What it computes, or has yet to."""
        _, _, page = call(self.url, "GET", "/metrics", headers=bearer(secret))
        return value(page, "vllm:num_requests_running") + value(page, "vllm:num_requests_waiting")

    def kill(self) -> None:
        """-9 to every process of it; its port, which its forks share, is free once the last of their threads is gone."""
        if self._born is not None:
            self._born.kill()
            until(self._is_port_free)

    def _is_port_free(self) -> bool:
        with socket.socket() as probe:
            # As servers do: what clients have not closed yet is no matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", self.port))
                return True
        return False

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _tokens(row: CallRow) -> tuple[object, ...]:
    return row.prompt_tokens, row.completion_tokens, row.estimated_by


def _answers(url: str, path: str) -> bool:
    try:
        return call(url, "GET", path)[0] == 200
    except OSError:
        return False


class Pair:
    """A gateway before two engines of a model."""

    def __init__(self, home: Path, model: str) -> None:
        self.home, self.model = home, model
        self.engines = [Engine(home, model), Engine(home, model)]
        self.nursery = Nursery(self.engines[0].environment())
        #: A way to each engine that a test may cut.
        cut: set[bytes] = set()
        self.cutters = [Cutter(engine.url, cut) for engine in self.engines]
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = ""

    @contextmanager
    def running(self, settings: Mapping[str, str], directory: str | None = None) -> Iterator[None]:
        """The gateway finds the engines by itself, or in a directory."""
        environment = {
            "SERVING_HOME": str(self.home),
            "SERVING_PLANE_SECRET_FILE": str(self.home / "plane.secret"),
            **settings,
        }
        with ExitStack() as opened:
            opened.callback(self.nursery.close)
            for engine, cutter in zip(self.engines, self.cutters, strict=True):
                opened.callback(engine.close)
                opened.enter_context(cutter.running())
                engine.start(self.nursery)
            for engine in self.engines:
                engine.until_ready()
            line = [sys.executable, "-m", "serving", "gateway", "--port", self.url.rpartition(":")[2]]
            if directory is None:
                for cutter in self.cutters:
                    line += ["--engine", cutter.url]
            else:
                environment["SERVING_GATEWAY__DIRECTORIES"] = json.dumps([directory])
            with (self.home / "gateway.log").open("wb") as log:
                gateway = subprocess.Popen(line, env=os.environ | environment, stdout=log, stderr=log)
            try:
                until(lambda: (self.home / "admin.key").exists() and _answers(self.url, "/health/ready"), 60.0)
                self.key = (self.home / "admin.key").read_text().strip()
                self.until_both_ready()
                yield
            finally:
                gateway.terminate()
                gateway.wait()

    def until_both_ready(self) -> None:
        until(lambda: self.metric("serving_gateway_replicas", 'state="ready"') == 2, 60.0)

    def metric(self, name: str, label: str = "") -> float:
        _, _, page = call(self.url, "GET", "/metrics")
        lines = [line for line in page.decode().splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines if label in line)

    def billed(self, request_ids: Sequence[str]) -> dict[str, tuple[object, ...]]:
        """What calls that are over have cost, how they ended, and the rule if it is an estimate."""

        def closed() -> dict[str, CallRow]:
            with Store.open(self.home) as store:
                rows = {row.request_id: row for row in calls(store, limit=100) if row.outcome != "open"}
            return rows if all(it in rows for it in request_ids) else {}

        rows = until(closed)
        return {it: (rows[it].outcome, *_tokens(rows[it])) for it in request_ids}

    def ledger_check(self, engine: str) -> list[dict[str, Any]]:
        """What `serving ledger check` says of one engine, by its URL for gateways; raises CalledProcessError where a difference is unexplained."""
        line = [sys.executable, "-m", "serving", "ledger", "check", "--engine", engine, "--json"]
        done = subprocess.run(
            line, env=os.environ | {"SERVING_HOME": str(self.home)}, stdout=subprocess.PIPE, text=True, check=True
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def retried(self) -> set[str]:
        """Calls whose engine was lost, by the gateway's log."""
        lines = (line for line in (self.home / "gateway.log").read_text().splitlines() if '"retries":' in line)
        found = (json.loads(line[line.index("{") :]) for line in lines)
        logged = (line.get("message", line) for line in found)
        return {line["request_id"] for line in logged if line["retries"]}

    def stream(self, path: str, body: dict[str, Any], events: Events, seen: Callable[[], None]) -> str:
        """Request id of one streamed answer, whose events are put into `events`; `seen` is called at each."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
        try:
            payload = json.dumps(body | {"model": self.model, "stream": True})
            connection.request("POST", path, payload, {"Content-Type": "application/json"} | bearer(self.key))
            answer = connection.getresponse()
            for raw in answer:
                if raw.startswith(b"data: {"):
                    events.append(json.loads(raw[6:]))
                    seen()
            assert answer.status == 200, events
            return answer.headers["x-request-id"]
        finally:
            connection.close()


class Cell:
    """The directory of a pair: in what state each engine is, under an id that is new after each of its starts."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._directory = Directory()
        self._states = [ReplicaState.READY, ReplicaState.READY]
        self._starts = [0, 0]

    @property
    def url(self) -> str:
        return self._directory.url

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve in a thread with an event loop of its own."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(self._directory.__aenter__(), loop).result()
        self._say()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._directory.stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def put(self, number: int, state: ReplicaState) -> None:
        """What is said of an engine from now on; one that is gone is FAILED."""
        self._starts[number] += state is ReplicaState.STARTING
        self._states[number] = state
        self._say()

    def _say(self) -> None:
        model = self._pair.model
        reports = [
            ReplicaReport(f"engine-{number}-{self._starts[number]}", model, engine.url, self._states[number])
            for number, engine in enumerate(self._pair.engines)
        ]
        self._directory.says = DirectoryAnswer("a", "1", True, tuple(Listed(report, 0.0) for report in reports))
