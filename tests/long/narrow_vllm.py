"""vLLM with few places in its batch, so that a small load fills it: a program for `engine.program`."""

import os
import sys

#: Sequences that it runs at a time.
PLACES = 4

if __name__ == "__main__":
    line = ["-m", "vllm.entrypoints.cli.main", *sys.argv[1:], "--max-num-seqs", str(PLACES)]
    os.execv(sys.executable, [sys.executable, *line])  # noqa: S606 Ourselves.
