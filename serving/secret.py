"""The plane secret: what a gateway sends to engines and directories. One file for both planes, two values during rotation.

The file holds one value a line; the first is sent, all of them are accepted.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from serving.errors import Refusal

FILE_NAME = "plane.secret"


class PlaneSecret:
    """The values in the file now; the file is read again when it changes, so a rotation needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._values: tuple[bytes, ...] = ()
        if not self._current():
            raise Refusal(f"The plane secret file {path} is missing or empty.")

    @property
    def sent(self) -> str:
        """The value to send."""
        return self._current()[0].decode()

    def accepts(self, authorization: bytes) -> bool:
        """Is this `Authorization` header one of ours? Takes the same time whichever value is wrong."""
        matches = [hmac.compare_digest(authorization, b"Bearer " + value) for value in self._current()]
        return any(matches)

    def _current(self) -> tuple[bytes, ...]:
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
            if seen != self._seen:
                # An unreadable or half-written file keeps the last good values.
                self._values = tuple(self._path.read_bytes().split()) or self._values
                self._seen = seen
        except OSError:
            pass
        return self._values


def fresh() -> str:
    """A new value, 256 bits from the operating system's randomness."""
    return secrets.token_urlsafe(32)


def create_if_absent(home: Path, name: str = FILE_NAME) -> Path:
    """A secret file in `home` (0600), made with a fresh value when there is none; safe when two do it at once."""
    path = home / name
    draft = home / f".{name}.{os.getpid()}"
    if not path.exists():
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(fresh() + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # Another process was first; its value counts.
        finally:
            draft.unlink()
    return path
