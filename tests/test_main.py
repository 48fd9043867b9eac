"""Entry: Ctrl-C ends a command with 130 and without a traceback, however early it comes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

#: Interrupts itself when it comes to import a module, as a Ctrl-C at that moment would.
INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {at!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["serving", "keys", "list"]
from serving.__main__ import main
main()
"""


@pytest.mark.parametrize("at", ["serving.cli", "typer", "serving.gateway.cli.opening", "sqlalchemy"])
def test_ctrl_c_shows_no_traceback(at: str, tmp_path: object) -> None:
    """While the command line is imported, and while a command is at work."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(at=at)],
        env={"SERVING_HOME": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, b"", b"")


def test_where_ctrl_c_is_ignored_it_stays_so(tmp_path: object) -> None:
    """A background job of a script has its own ends."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(at="serving.cli")],
        env={"SERVING_HOME": str(tmp_path)},
        capture_output=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0 and b"TENANT" in done.stdout
