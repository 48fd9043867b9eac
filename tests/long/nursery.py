"""A nursery: vLLM is imported once, and each engine is a fork of that process, ready in 7 s instead of 35 on two cores.

`python -m tests.long.nursery` forks one server for each line of its input, with the arguments and variables that the line says, and
prints the server's pid. vLLM forks its core and its worker likewise, which it can do itself, but not on a CPU.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from serving.engine import processes

#: What an engine of the tests imports before it is ready.
_IMPORTED = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.model_executor.models.gpt_oss",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "xgrammar",
    "serving.engine.boundary",
    "serving.engine.continuation",
    "serving.engine.harmony",
)


class Born:
    """One server of a nursery, and the processes below it."""

    def __init__(self, pid: int) -> None:
        self._server = psutil.Process(pid)

    @property
    def is_alive(self) -> bool:
        return processes.is_alive(self._server)

    def kill(self) -> None:
        """-9 to every process of it."""
        members = [self._server]
        with suppress(psutil.NoSuchProcess):
            members += self._server.children(recursive=True)
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()


class Nursery:
    """The process that has imported vLLM; `environment` is that of its engines, which what each is born with comes over."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.long.nursery"],
            cwd=Path(__file__).parents[2],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def bear(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Born:
        """A server with the command line that would start it by itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = command[command.index("vllm.entrypoints.cli.main") :]
        born = {"line": list(line), "environment": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(born) + "\n")
        self._process.stdin.flush()
        return Born(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        # Closes its pipes too.
        self._process.communicate()


def main() -> None:
    system: Any = importlib.import_module("vllm.utils.system_utils")
    # A CPU's platform asks for "spawn" whatever the environment says.
    system.get_mp_context = lambda: multiprocessing.get_context("fork")
    for name in _IMPORTED:
        importlib.import_module(name)
    # Servers are killed, and leave nothing behind to be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        born = json.loads(line)
        pid = os.fork()
        if not pid:
            _serve(born)
        print(pid, flush=True)


def _serve(born: dict[str, Any]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(born["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(born["environment"])
    tempfile.tempdir = None
    sys.argv = born["line"]
    try:
        importlib.import_module("vllm.entrypoints.cli.main").main()
    except BaseException:  # noqa: BLE001 (the fork must not go on as the nursery)
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    main()
