"""Manifest: the files of a finished checkpoint. Written last, so a folder that has one is complete."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from serving.errors import Refusal

NAME = "manifest.json"
_NO_CHECKSUMS: Mapping[str, str] = MappingProxyType({})


class File(msgspec.Struct, frozen=True):
    sha256: str
    size_bytes: int


class Manifest(msgspec.Struct, frozen=True):
    model: str
    recipe: str
    files: dict[str, File]


def write(folder: Path, model: str, recipe: str) -> None:
    """Hash every file of `folder` into its manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = Manifest(model, recipe, {str(path.relative_to(folder)): _measured(path) for path in paths})
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


def read(folder: Path) -> Manifest | None:
    """The folder's manifest, or None where there is no complete checkpoint."""
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError:
        raise Refusal(f"The manifest of {folder} is damaged: delete that folder and start again.") from None


def verify(folder: Path) -> Manifest:
    """Compare every file with the manifest; raises Refusal that names the first different one."""
    manifest = read(folder)
    if manifest is None:
        raise Refusal(f"There is no finished checkpoint in {folder}: fetch the model first.")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected.size_bytes or _measured(path) != expected:
            raise Refusal(
                f"The file {path} is not what was built (its sha256 differs): delete {folder} and start again."
            )
    return manifest


def compare(folder: Path, checksums: Mapping[str, str]) -> bool:
    """Compare files with the manifest, if there is one, and with the SHA-256 `checksums` by name; False without either.

    Raises Refusal that names the first file which differs.
    """
    built = verify(folder).files if read(folder) else {}
    for name, expected in checksums.items():
        path = folder / name
        known = built.get(name) or (_measured(path) if path.is_file() else None)
        if known is None or known.sha256 != expected:
            raise Refusal(f"The file {path} is not the one the model's checksums name: put the right one in its place.")
    return bool(built or checksums)


def verify_once(folder: Path, stamps: Path, checksums: Mapping[str, str] = _NO_CHECKSUMS) -> bool:
    """Verify a checkpoint, unless these very files were verified before; False when there is nothing to compare with.

    `stamps` is a folder that outlives restarts: reading 60 GiB again costs a minute at each of them. Raises Refusal that
    names the first file which differs, or the folder where there is none.
    """
    if not folder.is_dir():
        raise Refusal(f"There is no folder {folder} here: fetch its model first, or mount it.")
    if read(folder) is None and not checksums:
        return False
    stamp = stamps / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    state = "\n".join([_state(folder), *(f"{name} {sha256}" for name, sha256 in sorted(checksums.items()))])
    if not stamp.exists() or stamp.read_text() != state:
        compare(folder, checksums)
        stamps.mkdir(parents=True, exist_ok=True)
        stamp.write_text(state)
    return True


def _state(folder: Path) -> str:
    """What changes when any file does: names, sizes and times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "\n".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


def _measured(path: Path) -> File:
    with path.open("rb") as file:
        return File(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
