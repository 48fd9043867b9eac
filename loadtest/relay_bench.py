"""What the gateway costs per streamed chunk: its CPU time, beside a bare client's on the same stream.

    python -m loadtest.relay_bench [STREAMS] [CHUNKS]

A raw engine sends prepared chunks at an even pace; a client reads them directly, then through the gateway. Only
the ratio within one run means anything: the machine's speed cancels out of it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import aiohttp

from serving.config import load, override
from serving.gateway import server

MODEL = "bench"
#: Seconds between two chunks of a stream: slow enough that no two share a read, which would flatter everyone.
PACE_S = 0.01
#: Bytes of text in one chunk: with vLLM's frame and usage about 260 bytes.
TEXT = "token"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def engine(port: int, chunks: int) -> None:
    """A server that speaks just enough HTTP: models, health, and one long stream a POST."""
    choice = {"index": 0, "delta": {"content": TEXT}, "logprobs": None, "finish_reason": None, "token_ids": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    usage = {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2, "completion_tokens_details": None}
    chunk = _event(head | {"usage": usage})
    last = _event(head | {"choices": [], "usage": usage}) + b"data: [DONE]\n\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                if request.startswith(b"GET"):
                    body = json.dumps({"data": [{"id": MODEL}]}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    continue
                length = int(request.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(chunks):
                    writer.write(_framed(chunk))
                    await writer.drain()
                    await asyncio.sleep(PACE_S)
                writer.write(_framed(last) + b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", port) as listening:
            await listening.serve_forever()

    asyncio.run(main())


def _event(chunk: dict[str, object]) -> bytes:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def gateway(home: str, port: int, engine_port: int) -> None:
    """The gateway as `serving gateway` starts it."""
    os.environ["SERVING_HOME"] = home
    server.run(override(load(), gateway={"port": port, "engines": [f"http://127.0.0.1:{engine_port}"]}))


def cpu_s(pid: int) -> float:
    """Seconds that the threads of a process have run, to the nanosecond (the kernel's scheduler statistics)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


async def read_streams(url: str, key: str, streams: int) -> None:
    """Read that many streams at once."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as client:

        async def read_one() -> None:
            async with client.post(f"{url}/v1/chat/completions", json=BODY) as response:
                response.raise_for_status()
                async for _ in response.content.iter_any():
                    pass

        await asyncio.gather(*(read_one() for _ in range(streams)))


def wait_for(url: str) -> None:
    """Return when `url` answers 200; ends the process after 30 s without."""

    async def ask() -> bool:
        try:
            async with aiohttp.ClientSession() as client, client.get(url) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    deadline = time.monotonic() + 30
    while not asyncio.run(ask()):
        if time.monotonic() > deadline:
            sys.exit("The gateway did not start.")
        time.sleep(0.1)


def main() -> None:
    streams, chunks = (int(argument) for argument in (sys.argv[1:] or ["32", "300"]))
    ports = [free_port(), free_port()]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as home:
        processes: list[BaseProcess] = [
            spawn.Process(target=engine, args=(ports[0], chunks), daemon=True),
            spawn.Process(target=gateway, args=(home, ports[1], ports[0]), daemon=True),
        ]
        for process in processes:
            process.start()
        wait_for(f"http://127.0.0.1:{ports[1]}/health/models")
        key = (Path(home) / "admin.key").read_text().strip()
        _report(ports, key, processes[1].pid or 0, streams, chunks)
        for process in processes:
            process.terminate()
            process.join()


def _report(ports: list[int], key: str, gateway_pid: int, streams: int, chunks: int) -> None:
    own_before = time.process_time()
    asyncio.run(read_streams(f"http://127.0.0.1:{ports[0]}", key, streams))
    direct_us = (time.process_time() - own_before) / (streams * chunks) * 1e6
    before = cpu_s(gateway_pid)
    asyncio.run(read_streams(f"http://127.0.0.1:{ports[1]}", key, streams))
    gateway_us = (cpu_s(gateway_pid) - before) / (streams * chunks) * 1e6
    print(f"bare aiohttp client  {direct_us:6.1f} us CPU a chunk")
    print(f"gateway              {gateway_us:6.1f} us CPU a chunk")
    print(f"ratio                {gateway_us / direct_us:6.2f}")


def free_port() -> int:
    """A TCP port on which no process listens now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
