"""Leftovers: what a killed stack or engine leaves behind, found by the name of its owner: processes and folders.

Whatever belongs to an owner that is gone may be removed by anyone who comes later (ENG-3, ENG-51).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.engine import processes
from serving.errors import Refusal

#: vLLM's sockets and rendezvous files; the owner's name follows.
SCRATCH_PREFIX = "serving-engine-"
#: Ray's folder; random characters follow, because other users of the machine must not be able to make it first.
RAY_PREFIX = "serving-ray-"
#: Inside Ray's folder, the owner's name.
_OWNER_FILE = "owner"
#: What Ray adds to a folder's path for its longest socket: `/r/session_<time>_<pid>/sockets/plasma_store`.
_RAY_PATH_BYTES = 68
#: The kernel's limit on a socket's path, with the zero at its end.
_SOCKET_PATH_BYTES = 108
#: Where Ray's folder goes when the path of temporary files is too long.
_SHORT = Path("/tmp")  # noqa: S108 What is made there has a random name.


@contextlib.contextmanager
def ray_folder(owner: str) -> Iterator[Path]:
    """A folder for Ray's sockets, logs and sessions, removed at the end.

    Ray opens its own folders to everyone (mode 0777); the folder above them, which is this user's alone, closes them.
    """
    above = Path(tempfile.mkdtemp(prefix=RAY_PREFIX, dir=_short_folder()))
    (above / _OWNER_FILE).write_text(owner)
    try:
        yield above / "r"
    finally:
        shutil.rmtree(above, ignore_errors=True)


def keep_logs(folder: Path, target: Path) -> None:
    """Copy the logs of Ray's own processes out of its folder, before that is removed: one of them ended and only they say why."""
    shutil.rmtree(target, ignore_errors=True)
    for logs in folder.glob("session_2*/logs"):
        with contextlib.suppress(OSError, shutil.Error):
            # Workers' logs are left out: they are many, and replicas write theirs to the stack's own folder.
            shutil.copytree(
                logs, target, ignore=shutil.ignore_patterns("worker-*", "python-core-*", "serve", "events", "old")
            )


def _short_folder() -> Path:
    """Where temporary files go, unless sockets below it would have too long a path."""
    for folder in (Path(tempfile.gettempdir()), _SHORT):
        length = len(os.fsencode(folder)) + len(f"/{RAY_PREFIX}12345678") + _RAY_PATH_BYTES
        if length < _SOCKET_PATH_BYTES and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise Refusal("Ray's sockets need a folder with a short path: set TMPDIR to one.")


def sweep() -> None:
    """Remove what owners that are gone have left: their processes first, then their folders."""
    processes.kill_all(processes.orphans)
    temporary = Path(tempfile.gettempdir())
    for scratch in temporary.glob(f"{SCRATCH_PREFIX}*"):
        if processes.is_ownerless(scratch.name.removeprefix(SCRATCH_PREFIX)):
            shutil.rmtree(scratch, ignore_errors=True)
    for place in {temporary, _SHORT}:
        for above in place.glob(f"{RAY_PREFIX}*"):
            if processes.is_ownerless(_owner_of(above)):
                shutil.rmtree(above, ignore_errors=True)


def _owner_of(above: Path) -> str:
    """The owner written in a folder of Ray's; empty where the folder is not this user's alone, for it may be a trap."""
    try:
        found = above.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
        return (above / _OWNER_FILE).read_text() if is_ours else ""
    except OSError:
        return ""
