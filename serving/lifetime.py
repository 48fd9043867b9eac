"""Lifetime: when a process started, which distinguishes it from a later process with the same id. Linux only."""

from __future__ import annotations

from pathlib import Path


def start_of(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when it is gone (or dead and not yet reaped).

    Ticks and not a time of day, which moves when the clock is set (ENG-4).
    """
    try:
        # proc(5): what follows the parenthesised name begins with field 3, the state; the start is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]
