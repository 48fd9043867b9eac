"""A checkpoint is compared with its manifest before its first load, and again only when a file changed."""

import hashlib
from pathlib import Path

import pytest

from serving.engine.checkpoints import manifest
from serving.errors import Refusal


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path) -> None:
    """What was verified is trusted while names, sizes and times stay; what differs is refused by name."""
    folder, stamps = tmp_path / "checkpoint", tmp_path / "stamps"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    manifest.write(folder, "m", "recipe")
    assert manifest.verify_once(folder, stamps)
    (stamp,) = stamps.iterdir()
    verified_at = stamp.stat().st_mtime_ns
    assert manifest.verify_once(folder, stamps) and stamp.stat().st_mtime_ns == verified_at
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(Refusal, match="safetensors"):
        manifest.verify_once(folder, stamps)


def test_without_a_manifest_there_is_nothing_to_compare(tmp_path: Path) -> None:
    """A mounted folder that nobody measured is served, and said to be unverified."""
    assert not manifest.verify_once(tmp_path, tmp_path / "stamps")


def test_checksums_are_compared_with_or_without_a_manifest(tmp_path: Path) -> None:
    """What the model says its files are is checked once before a load, and again when it says something else."""
    folder, stamps = tmp_path / "checkpoint", tmp_path / "stamps"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    right = {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    for _ in ("without a manifest", "with one"):
        assert manifest.verify_once(folder, stamps, right)
        with pytest.raises(Refusal, match="checksums"):
            manifest.verify_once(folder, stamps, {"model.safetensors": "0" * 64})
        manifest.write(folder, "m", "recipe")
