#!/bin/sh
# Ray 2.60.0: what a signal handler raises during ray.get comes late, and as a SystemError
#
# Expected: Python says that an exception raised by a signal's handler appears in the main thread where it is then, as it
#   does in time.sleep(6): after the second for which the alarm was set. Programs stop themselves that way.
# Seen: ray.get waits until the task has finished, 6 s, and then raises SystemError ("returned a result with an exception
#   set"). KeyboardInterrupt and SystemExit alone come through at once: the check
#   for signals in ray/_raylet.pyx (check_signals) handles these two.
# Version: ray 2.60.0, Python 3.11, Linux x86-64.
# Output seen:
#   time.sleep: Alarm, while it waited
#   ray.get: SystemError, after the whole wait
#   ray.get, with a KeyboardInterrupt: KeyboardInterrupt, while it waited
# Source: https://docs.python.org/3/library/signal.html#execution-of-python-signal-handlers
#   https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_raylet.pyx
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
"$folder/venv/bin/python" - <<'PYTHON'
import signal
import sys
import time

import ray


class Alarm(Exception):
    pass


class Stop(KeyboardInterrupt):
    pass


def tried(wait, error):
    """What `wait` raises when a signal's handler raises `error` one second after it began, and when."""

    def ring(number, frame):
        raise error

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(1)
    began = time.monotonic()
    try:
        wait()
        name = "nothing"
    except BaseException as raised:
        name = type(raised).__name__
    return f"{name}, {'while it waited' if time.monotonic() - began < 5 else 'after the whole wait'}"


@ray.remote
def work():
    time.sleep(6)


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.get(work.remote())  # from here on a worker is there
found = [
    ("time.sleep", tried(lambda: time.sleep(6), Alarm), "Alarm, while it waited"),
    ("ray.get", tried(lambda: ray.get(work.remote()), Alarm), "SystemError, after the whole wait"),
]
time.sleep(1)
found.append(("ray.get, with a KeyboardInterrupt", tried(lambda: ray.get(work.remote()), Stop), "KeyboardInterrupt, while it waited"))
for what, seen, _ in found:
    print(f"{what}: {seen}")
sys.exit(any(seen != expected for _, seen, expected in found))
PYTHON
