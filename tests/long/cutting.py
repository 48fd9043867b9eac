"""A way to an engine that is cut in the middle of streams: to a gateway it dies there, and costs no restart of an engine."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.stack.running import free_port

#: A cut comes at random between these bytes of an answer, headers included.
CUT_BYTES = (600, 9000)

_SEED = re.compile(rb"x-serving-seed: (\w+)", re.IGNORECASE)
_READ_BYTES = 64 * 1024


class Cutter:
    """Takes connections for an engine at `url`, and cuts streams while `is_cutting`.

    Cutters of one model share `seen`, the streams that were cut: each is cut once, at one engine, and goes on at another.
    """

    def __init__(self, engine_url: str, seen: set[bytes]) -> None:
        host, _, port = engine_url.removeprefix("http://").rpartition(":")
        self._engine = host, int(port)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.is_cutting = False
        self.cuts = 0
        self._drawn = random.Random(3)
        self._seen = seen

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve in a thread with an event loop of its own."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        serving = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._take, "127.0.0.1", self._port), loop
        ).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(_over(serving), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            engine = await asyncio.open_connection(*self._engine)
        except OSError:
            writer.transport.abort()
            return
        way = _Way(self, writer, engine[1])
        try:
            # Ended with the test, it has nothing to say.
            with suppress(asyncio.CancelledError):
                await asyncio.gather(way.pass_on(reader, engine[1]), way.pass_back(engine[0]), return_exceptions=True)
        finally:
            writer.close()
            engine[1].close()

    def draw(self, request: bytes) -> int | None:
        """Bytes after which the answer to a request is cut; None where it is not."""
        seed = _SEED.search(request)
        if not self.is_cutting or seed is None or seed[1] in self._seen:
            return None
        self._seen.add(seed[1])
        return self._drawn.randrange(*CUT_BYTES)


async def _over(serving: asyncio.Server) -> None:
    """Take no more connections, and end those that are open."""
    serving.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # A connection that was closed is gone in the loop's next turn.
    await asyncio.sleep(0)


class _Way:
    """One connection."""

    def __init__(self, cutter: Cutter, writer: asyncio.StreamWriter, engine: asyncio.StreamWriter) -> None:
        self._cutter = cutter
        self._writer = writer
        self._engine = engine
        self._left: int | None = None

    async def pass_on(self, reader: asyncio.StreamReader, engine: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                if b"POST " in data:
                    self._left = self._cutter.draw(data)
                engine.write(data)
        finally:
            engine.close()

    async def pass_back(self, engine: asyncio.StreamReader) -> None:
        # Also where the engine's kernel resets the connection: it was killed with a request that it had not read.
        try:
            while data := await engine.read(_READ_BYTES):
                if self._left is not None and len(data) > self._left:
                    self._writer.write(data[: self._left])
                    await self._writer.drain()
                    self._cutter.cuts += 1
                    self._writer.transport.abort()
                    self._engine.transport.abort()
                    return
                if self._left is not None:
                    self._left -= len(data)
                self._writer.write(data)
        finally:
            self._writer.close()
