"""Lifetime: when a process started, which distinguishes it from a later one with the same id, and with whom it ends.

Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process signal `number` when `parent`, which started it, is gone (prctl(2)).

    At once if it is gone already. The kernel means the thread that started this process, so that one must be the main one.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number.value, 0, 0, 0)
    if os.getppid() != parent:
        signal.raise_signal(number)


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
