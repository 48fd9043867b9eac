"""What clients can make a gateway hold: its memory under slow readers and unfinished bodies, and after both.

    python -m loadtest.memory_bench [READERS] [BODIES]

Clients that open a stream and read nothing of it, before an engine that never stops; then clients that send all of an 8-MiB body
but its last byte. For each the gateway's resident memory, what the kernel holds in TCP buffers on this whole machine, and whether
another client is answered meanwhile.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from loadtest.relay_bench import MODEL, free_port, gateway, wait_for
from serving.gateway.http.descriptors import raise_limit

BODY_BYTES = 8 * 1024 * 1024
#: One event of the endless stream.
EVENT = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (
    b"x" * 900
)
#: Seconds in which everything that can be held is held.
SETTLE_S = 20.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def endless_engine(port: int) -> None:
    """Models, and for each POST a stream without an end, as fast as it is taken."""
    piece = b"%x\r\n%s\r\n" % (len(EVENT) * 16, EVENT * 16)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while request := await reader.readuntil(b"\r\n\r\n"):
                if request.startswith(b"GET"):
                    body = b'{"data":[{"id":"%s"}]}' % MODEL.encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    continue
                length = int(request.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                while True:
                    writer.write(piece)
                    await writer.drain()
        writer.close()

    async def main() -> None:
        raise_limit()
        async with await asyncio.start_server(answer, "127.0.0.1", port, backlog=2048) as listening:
            await listening.serve_forever()

    asyncio.run(main())


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def tcp_mib() -> float:
    """Memory of all TCP buffers of this machine."""
    line = next(it for it in Path("/proc/net/sockstat").read_text().splitlines() if it.startswith("TCP:"))
    return int(line.split()[-1]) * PAGE_BYTES / 2**20


def _head(key: str, length: int) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def _connected(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
    return one


async def _read_nothing(port: int, key: str) -> socket.socket:
    """A client that has asked for a stream."""
    one, loop = await _connected(port), asyncio.get_running_loop()
    body = b'{"model":"%s","stream":true,"messages":[{"role":"user","content":"x"}]}' % MODEL.encode()
    await loop.sock_sendall(one, _head(key, len(body)) + body)
    return one


async def _never_end(port: int, key: str, statuses: Counter[str]) -> None:
    """A client that sends its body but for the last byte, and waits for whatever comes."""
    one, loop = await _connected(port), asyncio.get_running_loop()
    sending = asyncio.create_task(_send_nearly_all(one, _head(key, BODY_BYTES)))
    try:
        async with asyncio.timeout(SETTLE_S):
            answer = await loop.sock_recv(one, 1024)
        statuses[answer[9:12].decode() or "closed"] += 1
    except TimeoutError:
        statuses["held"] += 1
    except OSError:
        statuses["reset"] += 1
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        one.close()


async def _send_nearly_all(one: socket.socket, head: bytes) -> None:
    with suppress(OSError):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(one, head + b'{"model":"x","messages":"')
        piece = b"x" * 65536
        for _ in range(BODY_BYTES // len(piece) - 1):
            await loop.sock_sendall(one, piece)


def _live_ms(port: int) -> float:
    """How long another client waits for its answer."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while one.recv(1024):
            pass
    return (time.monotonic() - began) * 1e3


def slow_readers(port: int, key: str, count: int) -> None:
    """A process of clients that read nothing."""

    async def main() -> None:
        clients = [await _read_nothing(port, key) for _ in range(count)]
        await asyncio.sleep(SETTLE_S)
        for client in clients:
            client.close()

    raise_limit()
    asyncio.run(main())


def unfinished_bodies(port: int, key: str, count: int) -> None:
    """A process of clients whose bodies never end."""
    statuses = Counter[str]()

    async def main() -> None:
        await asyncio.gather(*(_never_end(port, key, statuses) for _ in range(count)))

    raise_limit()
    asyncio.run(main())
    print("    " + ", ".join(f"{number} {status}" for status, number in sorted(statuses.items())), flush=True)


def _watch(what: str, clients: BaseProcess, count: int, port: int, pid: int) -> None:
    """Run those clients to their end, and print what the gateway held meanwhile."""
    before, tcp = rss_mib(pid), tcp_mib()
    most = buffers = waited_ms = 0.0
    clients.start()
    while clients.is_alive():
        time.sleep(0.2)
        most, buffers = max(most, rss_mib(pid)), max(buffers, tcp_mib() - tcp)
        waited_ms = max(waited_ms, _live_ms(port))
    each = (most - before) * 1024 / count
    print(
        f"{count} {what}: {before:.0f} -> {most:.0f} MiB, {each:.0f} KiB each; {buffers:.0f} MiB in this machine's TCP buffers"
    )
    time.sleep(3)
    print(f"    another client waited {waited_ms:.0f} ms at most; {rss_mib(pid):.0f} MiB after they left", flush=True)


def main() -> None:
    readers, bodies = (int(argument) for argument in (sys.argv[1:] or ["1000", "1000"]))
    raise_limit()
    ports = [free_port(), free_port()]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as home:
        processes: list[BaseProcess] = [
            spawn.Process(target=endless_engine, args=(ports[0],), daemon=True),
            spawn.Process(target=gateway, args=(home, ports[1], ports[0]), daemon=True),
        ]
        for process in processes:
            process.start()
        wait_for(f"http://127.0.0.1:{ports[1]}/health/models")
        key, pid = (Path(home) / "admin.key").read_text().strip(), processes[1].pid or 0
        for what, clients, count in (
            ("slow readers", slow_readers, readers),
            ("unfinished bodies of 8 MiB", unfinished_bodies, bodies),
        ):
            if count:
                client = spawn.Process(target=clients, args=(ports[1], key, count), daemon=True)
                _watch(what, client, count, ports[1], pid)
        for process in processes:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
