"""Environments: each router installed from its lock, once, below `.cache/overhead`; their pins are no business of ours."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions
from pathlib import Path

from serving.errors import Refusal

LOCKS = Path(__file__).parent / "pip"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "overhead"
#: Seconds until an installation is given up: the larger is 120 MB.
INSTALL_TIMEOUT_S = 600


def command(name: str) -> Path:
    """The program `name` of the environment whose lock is `pip/NAME.txt`, installed on first use; raises Refusal."""
    return _folder(name) / "bin" / name


def version(name: str) -> str:
    """Which version of the package `name` its environment has."""
    (packages,) = _folder(name).glob("lib/*/site-packages")
    found = next(iter(distributions(name=name, path=[str(packages)])), None)
    if found is None:
        raise PackageNotFoundError(name)
    return found.version


def _folder(name: str) -> Path:
    lock = LOCKS / f"{name}.txt"
    folder = CACHE / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            print(f"Installing {name} into {folder} ...", file=sys.stderr)
            for old in CACHE.glob(f"{name}-{'?' * 12}"):
                shutil.rmtree(old)
            _install(lock, folder)
            (folder / "complete").touch()
    return folder


def _install(lock: Path, folder: Path) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    _run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps",
         "--require-hashes", "--only-binary", ":all:", "--requirement", lock)  # fmt: skip


def _run(*arguments: object) -> None:
    done = subprocess.run([str(it) for it in arguments], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    if done.returncode:
        raise Refusal(f"{arguments[-1]} cannot be installed: {done.stderr.strip()[-300:]}")
