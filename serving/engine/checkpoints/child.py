"""Child: a recipe runs in its own process, so that torch, vLLM and their memory are released when the checkpoint is ready.

The child writes one line a time to its standard output; the first letter says whether it is progress or a refusal.
Everything libraries print goes to standard error.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from serving.engine.checkpoints.recipe import Report
from serving.errors import Refusal

_PROGRESS, _REFUSAL = "+", "!"
_DISK_FULL_EXIT = 28
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Threads that spin while they wait doubled training's CPU time on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def run(module: str, arguments: list[str], report: Report) -> None:
    """Run `python -m module arguments…` to its end.

    Raises what the child's recipe raised: Refusal, or OSError with ENOSPC. A child that ends otherwise is a Refusal.
    """
    refusals: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=_ENVIRONMENT | os.environ,
        text=True,
    ) as child:
        try:
            for line in child.stdout or ():
                (report if line.startswith(_PROGRESS) else refusals.append)(line[1:].rstrip("\n"))
        except BaseException:
            child.kill()
            raise
    if child.returncode == _DISK_FULL_EXIT:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if child.returncode != 0:
        raise Refusal(refusals[-1] if refusals else f"Building ended with exit code {child.returncode}: see above.")


def main(build: Callable[[Path, Report], None], folder: Path) -> int:
    """The child's side: build into `folder` and return the exit code. A full disk has a code of its own."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as parent:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            build(folder, lambda line: print(_PROGRESS + line, file=parent, flush=True))
        except Refusal as refusal:
            print(_REFUSAL + str(refusal), file=parent, flush=True)
            return 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return _DISK_FULL_EXIT
    return 0
