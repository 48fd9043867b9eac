"""kubectl and helm as commands, aimed at one namespace of one cluster. A command that fails says what it was and why."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.unpacked import unpacked

Object = dict[str, Any]

#: Seconds an ordinary command may take; what waits for pods is given more.
COMMAND_TIMEOUT_S = 120.0
#: Seconds the API server has to answer the first question; a cluster that is gone must not hold up a test run.
REACH_TIMEOUT_S = 10
FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


class CommandFailed(Exception):
    """A command's line, what it said, and what it had printed before."""

    def __init__(self, line: list[str], said: str, printed: str = "") -> None:
        super().__init__(f"`{' '.join(line)}` failed: {said.strip()}")
        self.said = said.strip()
        self.printed = printed


def run(line: list[str], *, given: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """What the command prints. Raises CommandFailed, also when it takes longer than that."""
    try:
        done = subprocess.run(line, input=given, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise CommandFailed(line, f"it took more than {timeout_s:.0f} s") from None
    if done.returncode:
        raise CommandFailed(line, done.stderr or done.stdout, done.stdout)
    return done.stdout


@dataclass(frozen=True)
class Kubectl:
    """kubectl on one namespace; an empty context is the kubeconfig's current one."""

    context: str
    namespace: str

    def line(self, *arguments: str) -> list[str]:
        context = ["--context", self.context] if self.context else []
        return [shutil.which("kubectl") or unpacked("kubectl"), *context, "--namespace", self.namespace, *arguments]

    def __call__(self, *arguments: str, given: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        return run(self.line(*arguments), given=given, timeout_s=timeout_s)

    def list(self, kind: str, *arguments: str) -> list[Object]:
        """Every object of a kind, in the namespace unless the arguments say otherwise."""
        found: list[Object] = json.loads(self("get", kind, "--output", "json", *arguments))["items"]
        return found

    def can(self, verb: str, resource: str) -> bool:
        """Whether whoever runs this may do that."""
        try:
            return self("auth", "can-i", verb, resource).strip() == "yes"
        except CommandFailed:
            return False

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[int]:
        """A port of this machine that leads to a port of that object, for as long as the block runs."""
        line = self.line("port-forward", target, f":{port}", "--address", "127.0.0.1")
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            try:
                first = process.stdout.readline()
                found = FORWARDING.search(first)
                if not found:
                    raise CommandFailed(line, first)
                # It says a line for each connection: unread, its pipe would fill and it would stand still.
                reader = threading.Thread(target=process.stdout.read, daemon=True)
                reader.start()
                yield int(found[1])
            finally:
                process.terminate()
                process.wait()


@dataclass(frozen=True)
class Helm:
    """helm on the same namespace."""

    context: str
    namespace: str

    def line(self, *arguments: str) -> list[str]:
        context = ["--kube-context", self.context] if self.context else []
        return [shutil.which("helm") or unpacked("helm"), *arguments, "--namespace", self.namespace, *context]

    def __call__(self, *arguments: str, given: Object | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """One run, with these values, on its standard input, over those of files."""
        if given is None:
            return run(self.line(*arguments), timeout_s=timeout_s)
        return run(self.line(*arguments, "--values", "-"), given=json.dumps(given), timeout_s=timeout_s)
