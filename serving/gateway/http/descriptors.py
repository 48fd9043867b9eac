"""Descriptors: the files and connections that the system lets this process have.

Without one left, the kernel's connections are accepted and reset unseen (libuv): only this says so.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import time
from collections.abc import Callable

#: Descriptors wanted: two for each of a thousand calls, idle clients, and many times that.
WANTED = 65_536
#: Seconds between two looks.
LOOK_S = 1.0
#: Seconds after which a lack that goes on is logged again.
REPEAT_S = 60.0

log = logging.getLogger(__name__)


def raise_limit() -> int:
    """Take as many as the system grants without asking (the hard limit), and return how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


async def follow(look_s: float = LOOK_S, clock: Callable[[], float] = time.monotonic) -> None:
    """Log when descriptors run out and when there are some again, until cancelled."""
    said_at: float | None = None
    while True:
        await asyncio.sleep(look_s)
        if is_any_left():
            if said_at is not None:
                log.warning("there are file descriptors again: connections are accepted")
            said_at = None
        elif said_at is None or clock() - said_at >= REPEAT_S:
            said_at = clock()
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            log.error(
                "all %d file descriptors are in use: new connections are reset; raise the limit (ulimit -n)", limit
            )


def is_any_left() -> bool:
    """Tries it."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True
