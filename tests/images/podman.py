"""podman as these tests use it: containers without a network, without privileges and with a root that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SETTINGS = Path(__file__).parent / "containers.conf"
#: A user that no image knows, as OpenShift picks one.
SOMEBODY = "1234560000:0"
#: Asks from inside, where the only network is; prints status and body.
_ASK = """
import sys, urllib.error, urllib.request
url, key, body = sys.argv[1:]
headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + key} if key else {})
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, headers), timeout=120)
except urllib.error.HTTPError as refused:
    answer = refused
except OSError:  # nobody listens yet
    sys.exit(print(0))
print(answer.status, answer.read().decode())
"""


class Podman:
    """The program, with one store of images."""

    def __init__(self, storage: Path | None = None) -> None:
        """`storage` is a storage.conf for a store of its own; else the machine's."""
        self.environment = os.environ | {"CONTAINERS_CONF": str(SETTINGS)}
        if storage is not None:
            self.environment["CONTAINERS_STORAGE_CONF"] = str(storage)

    def __call__(self, *arguments: str, timeout_s: float = 600) -> str:
        done = subprocess.run(
            ["podman", *arguments], env=self.environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr[-2000:]}"
        return done.stdout.strip()

    def inspect(self, image: str) -> dict[str, Any]:
        (found,) = json.loads(self("image", "inspect", image))
        return dict(found)

    def inside(self, image: str, *command: str) -> str:
        """Run a command in the image, as nobody in particular; what it printed."""
        return self("run", "--rm", *_confined("none"), "--entrypoint", command[0], image, *command[1:])

    @contextmanager
    def running(
        self, image: str, command: Sequence[str], options: Sequence[str] = (), network: str = "none"
    ) -> Iterator[Container]:
        """A container in the background, removed afterwards."""
        container = Container(self, self("run", "--detach", *_confined(network), *options, image, *command))
        try:
            yield container
        finally:
            self("rm", "--force", "--time", "20", container.id)


class Container:
    """One that runs."""

    def __init__(self, podman: Podman, id_: str) -> None:
        self._podman = podman
        self.id = id_

    def execute(self, *command: str) -> str:
        return self._podman("exec", self.id, *command)

    def ask(self, url: str, key: str = "", body: str = "") -> tuple[int, str]:
        """GET, or POST where there is a body, from inside the container: status and body."""
        status, _, text = self.execute("python", "-c", _ASK, url, key, body).partition(" ")
        return int(status), text

    def log(self) -> str:
        done = subprocess.run(
            ["podman", "logs", self.id], env=self._podman.environment, capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    def is_running(self) -> bool:
        return self._podman("inspect", "--format", "{{.State.Running}}", self.id) == "true"


def _confined(network: str) -> list[str]:
    """As Pod Security's "restricted" runs a pod, and with no way out."""
    return [
        f"--network={network}", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:rw,mode=1777", "--user", SOMEBODY,
        "--cap-drop=all", "--security-opt=no-new-privileges", "--pull=never",
    ]  # fmt: skip
