"""How long one request body holds everyone else up: the longest time in which a gateway's event loop does not turn.

    python -m loadtest.body_bench [SHAPE ...]

Bodies of 8 MiB, each in one of the shapes that cost most, alone and three at once, to a gateway before an engine that answers
nothing. For each shape the answer, and the longest gap between two turns of the loop: in CPU time of the whole process, which other
processes' load does not lengthen, and in wall time.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import aiohttp
import uvicorn
import uvloop

from loadtest.relay_bench import MODEL, engine, free_port, wait_for
from serving.config import GatewaySettings, Settings
from serving.gateway.assembly import assemble
from serving.gateway.audit.audit import Audit
from serving.gateway.cli import opening
from serving.gateway.http.protocol import BoundedHeaders
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.server import freeze

BODY_BYTES = 8 * 1024 * 1024
#: Seconds between two turns of a loop that has nothing else to do.
TICK_S = 0.001
#: Bodies sent at once, the second time.
AT_ONCE = 3

CHAT, EMBEDDINGS, COMPLETIONS = "/v1/chat/completions", "/v1/embeddings", "/v1/completions"
_CHAT = b'{"model":"%s","messages":[{"role":"user","content":"x"}],' % MODEL.encode()
_MESSAGES = b'{"model":"%s","messages":[' % MODEL.encode()
_INPUT = b'{"model":"%s","input":[' % MODEL.encode()
_TEXT = _MESSAGES + b'{"role":"user","content":"'
_TOOL = b'{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}'
_SCHEMA = _CHAT + b'"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":'


def _filled(start: bytes, item: bytes, end: bytes, most: int = sys.maxsize) -> bytes:
    """Items with commas between them, as many as `most` or the body's size allow."""
    count = (BODY_BYTES - len(start) - len(end)) // (len(item) + 1)
    return start + b",".join([item] * min(count, most)) + end


def _named(start: bytes, end: bytes, count: int) -> bytes:
    """So many fields of different names."""
    return start + b",".join(b'"%d":1' % number for number in range(count)) + end


def _text(piece: bytes) -> bytes:
    return _TEXT + piece * ((BODY_BYTES - 200) // len(piece)) + b'"}]}'


#: Shape → path and body. "most" are those that just pass the bounds of `dialects.structure`.
SHAPES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lists of one id": (EMBEDDINGS, lambda: _filled(_INPUT, b"[1]", b"]}")),
    "lists of one id, most": (EMBEDDINGS, lambda: _filled(_INPUT, b"[1]", b"]}", 32_766)),
    "empty lists": (CHAT, lambda: _filled(_MESSAGES, b"[]", b"]}")),
    "empty messages": (CHAT, lambda: _filled(_MESSAGES, b'{"role":"user","content":""}', b"]}")),
    "4,096 messages": (
        CHAT,
        lambda: _filled(_MESSAGES, b'{"role":"user","content":"%s"}' % (b"x" * 2000), b"]}", 4096),
    ),
    "parts, most": (CHAT, lambda: _filled(_TEXT[:-1] + b"[", b'{"type":"text","text":""}', b"]}]}", 32_760)),
    "objects, ignored": (CHAT, lambda: _filled(_CHAT + b'"prediction":{"a":[', b"{}", b"]}}")),
    "objects, ignored, most": (CHAT, lambda: _filled(_CHAT + b'"prediction":{"a":[', b"{}", b"]}}", 32_760)),
    "names, ignored": (CHAT, lambda: _named(_CHAT + b'"prediction":{', b"}}", 700_000)),
    "names, ignored, most": (CHAT, lambda: _named(_CHAT + b'"prediction":{', b"}}", 65_500)),
    "unknown fields, most": (CHAT, lambda: _named(_CHAT, b"}", 65_500)),
    "nested": (CHAT, lambda: _CHAT + b'"prediction":' + b"[" * 4_000_000 + b"]" * 4_000_000 + b"}"),
    "nested, most": (CHAT, lambda: _CHAT + b'"prediction":{"a":' + b"[" * 1000 + b"]" * 1000 + b"}}"),
    "tools": (CHAT, lambda: _filled(_CHAT + b'"tools":[', _TOOL, b"]}")),
    "tools, most": (CHAT, lambda: _filled(_CHAT + b'"tools":[', _TOOL, b"]}", 8000)),
    "schema": (CHAT, lambda: _filled(_SCHEMA + b'{"enum":[', b"1", b"]}}}}")),
    "schema, most": (CHAT, lambda: _filled(_SCHEMA + b'{"anyOf":[', b"{}", b"]}}}}", 32_760)),
    "token ids": (EMBEDDINGS, lambda: _filled(_INPUT, b"12345", b"]}")),
    "token ids, most": (EMBEDDINGS, lambda: _filled(_INPUT, b"12345", b"]}", 524_280)),
    "texts, most": (EMBEDDINGS, lambda: _filled(_INPUT, b'"a"', b"]}", 131_000)),
    "prompts, most": (COMPLETIONS, lambda: _filled(b'{"model":"bench","prompt":[', b"[1]", b"]}", 32_766)),
    "long numbers": (EMBEDDINGS, lambda: _filled(_INPUT, b"9" * 1280, b"]}")),
    "long numbers, most": (EMBEDDINGS, lambda: _filled(_INPUT, b"9" * 400, b"]}")),
    "fractions": (EMBEDDINGS, lambda: _filled(_INPUT, b"0.12345678901234567e300", b"]}")),
    "spaces": (CHAT, lambda: _CHAT + b" " * (BODY_BYTES - 200) + b'"n":1}'),
    "text": (CHAT, lambda: _text(b"all work and no play, ")),
    "text, newlines": (CHAT, lambda: _text(b"\\n")),
    "text, quotes": (CHAT, lambda: _text(b'\\"')),
    "text, escapes": (CHAT, lambda: _text(b"\\u00e9")),
    "text, two bytes": (CHAT, lambda: _text("é".encode())),
}


def gateway(home: str, port: int, engine_port: int, cpu_s: Synchronized[float], wall_s: Synchronized[float]) -> None:
    """The gateway's application in a loop that notes its longest gaps."""
    settings = Settings(
        home=Path(home), gateway=GatewaySettings(port=port, engines=(f"http://127.0.0.1:{engine_port}",))
    )
    opening.first_start(settings)
    with ExitStack() as opened:
        store, keyring = opened.enter_context(opening.opened(settings))
        tenants = opened.enter_context(
            Tenants(store, keyring, key_cache_s=settings.gateway.key_cache_s, lookup_timeout_s=10)
        )
        ledger = opened.enter_context(Ledger(store, clock=time.time))
        audit = opened.enter_context(Audit(store, opening.signer(keyring), clock=time.time))
        app = assemble(settings.gateway, store, tenants, ledger, audit).gateway
        bound = opened.enter_context(socket.create_server(("127.0.0.1", port)))
        config = uvicorn.Config(app, http=BoundedHeaders, ws="none", log_config=None, access_log=False)
        logging.disable()
        freeze()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_watched(uvicorn.Server(config), bound, cpu_s, wall_s))


async def _watched(
    server: uvicorn.Server, bound: socket.socket, cpu_s: Synchronized[float], wall_s: Synchronized[float]
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    while not serving.done():
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(TICK_S)
        cpu_s.value = max(cpu_s.value, time.process_time() - cpu)
        wall_s.value = max(wall_s.value, time.monotonic() - wall - TICK_S)


async def _send(url: str, key: str, body: bytes, count: int) -> tuple[int, str]:
    """The same body so many times at once; the status and the text of one answer."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as client:

        async def send_one() -> tuple[int, str]:
            async with client.post(url, data=_Pieces(body)) as answer:
                return answer.status, (await answer.text())[:80]

        return (await asyncio.gather(*(send_one() for _ in range(count))))[0]


class _Pieces(aiohttp.BytesPayload):
    """A body that this process sends without a warning about its length."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body[:1])
        self._value, self._size = body, len(body)


def main() -> None:
    wanted = sys.argv[1:]
    spawn = multiprocessing.get_context("spawn")
    cpu_s, wall_s = spawn.Value("d", 0.0), spawn.Value("d", 0.0)
    ports = [free_port(), free_port()]
    with tempfile.TemporaryDirectory() as home:
        processes = [
            spawn.Process(target=engine, args=(ports[0], 1), daemon=True),
            spawn.Process(target=gateway, args=(home, ports[1], ports[0], cpu_s, wall_s), daemon=True),
        ]
        for process in processes:
            process.start()
        url = f"http://127.0.0.1:{ports[1]}"
        wait_for(f"{url}/health/models")
        key = (Path(home) / "admin.key").read_text().strip()
        print(f"{'shape':24} {'MiB':>5} {'bodies':>6} {'CPU ms':>7} {'wall ms':>8}  answer")
        for shape, (path, make) in SHAPES.items():
            if wanted and not any(word in shape for word in wanted):
                continue
            body = make()
            for count in (1, AT_ONCE):
                time.sleep(0.2)
                cpu_s.value = wall_s.value = 0.0
                status, text = asyncio.run(_send(url + path, key, body, count))
                time.sleep(0.2)  # a gap is known at its end
                gaps = f"{cpu_s.value * 1e3:7.1f} {wall_s.value * 1e3:8.1f}"
                print(f"{shape:24} {len(body) / 2**20:5.1f} {count:6} {gaps}  {status} {text}", flush=True)
        for process in processes:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
