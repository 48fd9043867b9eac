"""Entry: what the `serving` command and `python -m serving` run first, before anything that takes time to import.

Ctrl-C ends every command without a traceback, with 130 as shells have it: half a second of imports too.
"""

from __future__ import annotations

import os
import signal
import sys

#: 128 + SIGINT.
INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    # Left alone where it is ignored, as in a script's background job.
    is_listening = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_listening:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from serving import cli

    if is_listening:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cli.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
