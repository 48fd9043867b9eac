"""Recipe: how one model's checkpoint is built, and a hash that changes when the way of building it does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

#: Called with one line at a time: the current step, its progress, the time it took.
Report = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """Builds a checkpoint into an empty folder."""

    build: Callable[[Path, Report], None]
    sources: tuple[Path, ...]
    """Files whose bytes decide what is built."""
    packages: tuple[str, ...] = ()
    """Distributions whose version decides what is built; one that is not installed counts as its absence."""
    scratch_bytes: int = 0
    """Bytes needed while building, beyond the checkpoint itself."""
    identity: str = ""
    """What else decides what is built: address and revision of a download."""
    resumes: bool = False
    """Whether an interrupted build resumes from its files."""

    def hash(self) -> str:
        """Twelve hex digits over the sources' bytes and the packages' versions."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(hashlib.sha256(source.read_bytes()).digest())
        for package in self.packages:
            digest.update(f"{package}={_version(package)}\n".encode())
        digest.update(self.identity.encode())
        return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
