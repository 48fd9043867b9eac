"""Ends what a long test has started, with everything below it."""

import contextlib
import subprocess

import psutil


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process and everything below it, as when its node goes, and collect it."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    for member in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
