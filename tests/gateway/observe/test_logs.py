"""Logs: lines of JSON for collectors, text for eyes."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging, sys
from serving.gateway.observe import logs
logs.start(sys.argv[1])
logging.getLogger("a.b").debug("unsaid")
logging.getLogger("a.b").warning("said %s", "é\\n\\u2028")
"""


def logged(log_format: str) -> str:
    """What a process that logs in this format writes to standard error."""
    run = subprocess.run([sys.executable, "-c", PROGRAM, log_format], capture_output=True, check=True)
    assert run.stdout == b""
    return run.stderr.decode()


def test_a_json_line_is_one_object() -> None:
    """From INFO on; a line break in what was said breaks no line."""
    text = logged("json")
    line = json.loads(text)
    assert text.count("\n") == 1 and line.pop("time_s") > 1e9
    assert line == {"level": "warning", "logger": "a.b", "message": "said é\n\u2028"}


def test_text_is_for_eyes() -> None:
    """Level, logger and sentence, after the time."""
    text = logged("text")
    assert " WARNING a.b said é\n" in text and "unsaid" not in text
