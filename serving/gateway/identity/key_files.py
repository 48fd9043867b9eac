"""Key files: a key in a file, as a mounted Secret has it, or the home of a laptop."""

from __future__ import annotations

from pathlib import Path

from serving.errors import Refusal
from serving.gateway.identity.keys import id_of

#: Characters that are read of a file that holds a key: a device, or a wrong name, may have no end.
CHARS_MAX = 1024


def read_key(path: Path) -> str:
    """The key in a file; raises Refusal when it cannot be read or holds none."""
    try:
        key = key_in(path)
    except (OSError, UnicodeDecodeError) as error:
        raise unusable(path, error) from None
    if key is None:
        raise no_key(f"The file {path}")
    return key


def key_in(path: Path) -> str | None:
    """The key in the file; None when there is no key in it."""
    with path.open() as file:
        key = file.read(CHARS_MAX).strip()
    return key if id_of(key) else None


def no_key(what: str) -> Refusal:
    """`what` should hold a key."""
    return Refusal(
        f"{what} does not hold a key: 'sk-', 10 lower-case letters or digits, '-', and 43 letters, digits, dashes or "
        "underscores."
    )


def unusable(path: Path, error: OSError | UnicodeDecodeError) -> Refusal:
    """In the system's own words."""
    reason = error.strerror if isinstance(error, OSError) else "it is not text"
    return Refusal(f"The file {path} cannot be used: {(reason or 'unknown error').lower()}.")
