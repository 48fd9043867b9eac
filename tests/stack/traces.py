"""Traces: where a stack writes, and which of those files hold a text."""

import re
from pathlib import Path

from tests.stack.running import Stack
from tests.waiting import until


def places(stack: Stack) -> list[Path]:
    """Every file this stack writes: its home, and Ray's logs."""
    lines = [" ".join(process.cmdline()) for process in stack.members()]
    sessions = {
        found[1] for line in lines if (found := re.search(r"(/[^\s=]*/serving-ray-\w+/r/session_[^/\s]+)/", line))
    }
    assert sessions, "Ray's processes no longer name the folder of their session"
    ray = (path for session in sessions for path in Path(session, "logs").rglob("*"))
    home = (path for path in stack.home.rglob("*") if "models" not in path.relative_to(stack.home).parts)
    return [path for path in (*home, *ray) if path.is_file()]


def holding(stack: Stack, text: str) -> list[Path]:
    """The files that hold `text` once every call so far is settled."""
    until(lambda: all(row.outcome != "open" for row in stack.ledger()), 20, 0.2)
    return sorted(path for path in places(stack) if text.encode() in path.read_bytes())
