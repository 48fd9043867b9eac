"""A running stack: `serving up` as a user starts it, and what a test may ask of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import psutil
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving import config
from serving.engine import processes
from serving.engine.app import RAY_TOKEN_FILE
from serving.engine.parts import part_of
from serving.gateway.ledger.usage import CallRow, calls
from serving.gateway.store.store import Store
from serving.wire import DirectoryAnswer, Listed, ReplicaState
from tests.waiting import until

CACHE = Path(__file__).parents[2] / ".cache"
#: Folders of a home that every home of a test run shares. Checkpoints are built once; and what vLLM found out of a model's
#: class, which takes a process of its own and seconds of every first start, it finds out once.
SHARED = {"models": CACHE / "models", "cache/vllm/modelinfos": CACHE / "modelinfos"}
#: A laptop has no compiler: an engine that needs one dies in every test, and not only there.
NO_COMPILER = {"CC": "/nonexistent/gcc", "CXX": "/nonexistent/g++"}
#: Seconds a start may take, with a checkpoint still to be fetched or trained.
START_TIMEOUT_S = 600.0


class Stack:
    """One `serving up` and everything below it."""

    def __init__(self, home: Path, model: str, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.model = model
        self.port = free_port()
        for place, shared in SHARED.items():
            shared.mkdir(parents=True, exist_ok=True)
            (home / place).parent.mkdir(parents=True, exist_ok=True)
            if not (home / place).exists():
                (home / place).symlink_to(shared)
        self.started_at = time.monotonic()
        with (home / "up.out").open("wb") as output, (home / "up.err").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving", "up", "--model", model, "--port", str(self.port)],
                env=dict(os.environ) | NO_COMPILER | {"SERVING_HOME": str(home)} | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    @property
    def secret(self) -> str:
        return (self.home / "plane.secret").read_text().strip()

    def banner(self) -> str:
        return (self.home / "up.out").read_text()

    def until_ready(self) -> float:
        """Wait for the banner; returns the seconds it took."""

        def is_over() -> bool:
            return "Base URL" in self.banner() or self.process.poll() is not None

        until(is_over, START_TIMEOUT_S, 0.2)
        assert self.process.poll() is None, (self.home / "up.err").read_text()[-500:]
        return time.monotonic() - self.started_at

    def members(self) -> list[psutil.Process]:
        """Every living process of this stack but `serving up` itself."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in below if processes.is_alive(process)]

    def engine_members(self) -> dict[str, psutil.Process]:
        """The engine's named processes, its server as `server` and the Serve actor as `replica`."""
        named: dict[str, psutil.Process] = {}
        for process in self.members():
            try:
                line = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if role := processes.role(process):
                named[role] = process
            elif "serving.engine.supervisor" in line:
                named["supervisor"] = process
            elif "vllm.entrypoints.cli.main" in line:
                named["server"] = process
            elif line and line[0].startswith("ray::ServeReplica:model-"):
                named["replica"] = process
            elif line and line[0].startswith("ray::ServeReplica:directory"):
                named["directory"] = process
        return named

    def parts(self) -> dict[str, psutil.Process]:
        """The gateway, the keeper and the processes of Ray that serve no model, by their names."""
        named: dict[str, psutil.Process] = {}
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                line = process.cmdline()
                if "--parent" in line:
                    named["the gateway"] = process
                elif part := part_of(line):
                    named[part.name] = process
        return named

    def directory_url(self) -> str:
        """Base URL of the directory, from the settings the gateway was given."""
        (url,) = config.load(self.home / "logs" / "gateway-settings.yaml", {}).gateway.directories
        return url

    def listed(self) -> list[Listed]:
        """The replicas that the directory knows now."""
        return list(self.directory().replicas)

    def ready(self, model: str | None = None) -> set[str]:
        """The replicas of a model, or of all, that may take requests."""
        reports = [it.report for it in self.listed() if it.report.state is ReplicaState.READY]
        return {it.replica_id for it in reports if model in (None, it.model)}

    def directory(self) -> DirectoryAnswer:
        """What the directory says now."""
        request = urllib.request.Request(
            f"{self.directory_url()}/directory", headers={"Authorization": f"Bearer {self.secret}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return msgspec.json.decode(answer.read(), type=DirectoryAnswer)

    def ready_engine_url(self) -> str:
        """Base URL of the engine that is ready."""
        (url,) = [it.report.url for it in self.listed() if it.report.state is ReplicaState.READY]
        return url

    def metric_families(self, *names: str) -> list[Metric]:
        """vLLM's own figures, as Prometheus reads them; of these names alone if there are any."""
        query = f"?{urlencode([('name[]', name) for name in names])}" if names else ""
        request = urllib.request.Request(
            f"{self.ready_engine_url()}/metrics{query}", headers={"Authorization": f"Bearer {self.secret}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return list(text_string_to_metric_families(answer.read().decode()))

    def engine_metrics(self) -> dict[str, float]:
        """The same, summed over labels."""
        totals: dict[str, float] = {}
        for family in self.metric_families():
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals

    def command(self, *arguments: str) -> str:
        """Run a `serving` command against this home; returns what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "serving", *arguments],
            env=dict(os.environ) | {"SERVING_HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def ledger_check(self) -> dict[str, Any]:
        """What `serving ledger check` says of the one replica; raises CalledProcessError where a difference is unexplained."""
        settings = str(self.home / "logs" / "gateway-settings.yaml")
        (found,) = json.loads(self.command("--settings", settings, "ledger", "check", "--wait-s", "60", "--json"))
        return dict(found)

    def ledger(self) -> list[CallRow]:
        """Every ledger row, oldest first."""
        with Store.open(self.home) as store:
            return calls(store, limit=100_000)

    def row(self, request_id: str) -> CallRow:
        """The ledger's row of one request, once it is closed; a batch of rows is written now and then."""

        def closed() -> CallRow | None:
            found = [it for it in self.ledger() if it.request_id == request_id and it.outcome != "open"]
            return found[0] if found else None

        row = until(closed, 20, 0.2)
        assert row is not None
        return row

    def resettle(self, environment: dict[str, str]) -> None:
        """Give the running stack other settings, as whoever deploys a cell does."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.home / RAY_TOKEN_FILE)}
        loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # as `serving up` has it, so that Ray finds its node
        lines = [" ".join(process.cmdline()) for process in self.members()]
        (address,) = {found[1] for line in lines if (found := re.search(r"--gcs-address=([\d.:]+)", line))}
        subprocess.run(
            [sys.executable, "-m", "tests.long.resettle", address, self.directory().cell, self.directory_url()],
            env=dict(os.environ) | environment | {"SERVING_HOME": str(self.home)} | token | loopback,
            cwd=Path(__file__).parents[2],
            check=True,
            timeout=120,
        )

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stop as a terminal does, by a signal to the whole group; returns the exit code once every process is gone."""
        before = [psutil.Process(self.process.pid), *self.members()] if self.process.poll() is None else []
        os.killpg(self.process.pid, number)
        code = self.process.wait(60)
        alive = [process for process in before if processes.is_alive(process)]
        assert not alive, f"{len(alive)} processes outlived the stack: {[' '.join(p.cmdline())[:80] for p in alive]}"
        return code


@contextmanager
def running(home: Path, model: str, environment: dict[str, str] | None = None) -> Iterator[Stack]:
    """A stack that answers; stopped afterwards."""
    stack = Stack(home, model, environment)
    try:
        stack.until_ready()
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.stop()


def free_port() -> int:
    """A TCP port that no process listens on now.

    It is below Linux's range for outgoing connections (32768 to 60999), so that none of a neighbouring test takes it
    before the stack listens, and above the ports of Ray's workers (10002 to 19999): Ray refuses to start with one of those.
    """
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
