"""What a batch of a million lines takes of a gateway's memory: its file checked, lines answered, all of them written or named in its files.

    python -m loadtest.batch_bench [--lines 1000000] [--answered 20000]

Answers come from this process at once. Behind as many lines as are to be answered the batch expires, so that the others are named in its error
file. Memory is the process's own peak (VmHWM), above what it had before each part.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving.config import FileSettings
from serving.errors import ApiError
from serving.gateway.nouns import Caller, Usage
from serving.gateway.store.store import Store
from serving.gateway.stored.batches.batches import Batch, Batches, Said, Status
from serving.gateway.stored.batches.shift import Keep, Shift, Tools
from serving.gateway.stored.batches.spare import Spare
from serving.gateway.stored.desk import Desk
from serving.gateway.stored.files.files import TenantFiles, brought_by
from serving.gateway.stored.files.pieces import PIECE_BYTES, Pieces
from serving.gateway.stored.vault import Vault
from serving.wire import EngineLoad

ENDPOINT = "/v1/chat/completions"
CALLER = Caller("t1", "acme", "k1")
QUESTION = "What is the capital of the country in which the river of this number has its source?"
ANSWER = msgspec.json.encode({"object": "chat.completion", "choices": [{"message": {"content": "Lisbon. " * 20}}]})
REPLICAS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a batch's life."""

    name: str
    wall_s: float
    cpu_s: float
    #: Above what the process had before.
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    file_bytes: int
    parts: list[Part]
    batch: Batch


class Answer(msgspec.Struct):
    status: int = 200
    body: bytes = ANSWER
    usage: Usage = Usage(30, 60)
    error: ApiError | None = None
    is_kept: bool = False


class Answering:
    """Stands where the gateway's engines would be, until so many lines are answered."""

    def __init__(self, most: int, is_enough: Callable[[], None]) -> None:
        self._left = most
        self._is_enough = is_enough

    async def require(self, batch: Batch, model: str) -> None:
        return None

    async def call(self, batch: Batch, body: bytes, request_id: str, keep: Keep) -> Answer:
        await asyncio.sleep(0)
        self._left -= 1
        if self._left == 0:
            self._is_enough()
        answer = Answer()
        keep(answer)
        return answer

    def waits(self, error: ApiError) -> bool:
        return False

    def engines_of(self, model: str) -> str:
        return model


class _Watched(Shift):
    """Says when its file has been checked."""

    checked: Callable[[], None]

    async def _checked(self) -> bool:
        is_sound = await super()._checked()
        self.checked()
        return is_sound


def _line(number: int) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "seed": number}
    return msgspec.json.encode({"custom_id": f"c-{number}", "method": "POST", "url": ENDPOINT, "body": body}) + b"\n"


def _pieces(lines: int) -> Iterator[bytes]:
    held = bytearray()
    for number in range(lines):
        held += _line(number)
        if len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)


class Meter:
    """Parts one after the other."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._begin()

    def _begin(self) -> None:
        # The peak counts from now on.
        Path("/proc/self/clear_refs").write_text("5")
        self._had, self._began, self._cpu = _memory("VmRSS"), time.monotonic(), time.process_time()

    def end(self, name: str) -> None:
        """A part is over, and the next begins."""
        wall_s, cpu_s = time.monotonic() - self._began, time.process_time() - self._cpu
        self.parts.append(Part(name, wall_s, cpu_s, max(0, _memory("VmHWM") - self._had)))
        self._begin()


def _memory(name: str) -> int:
    (line,) = (it for it in Path("/proc/self/status").read_text().splitlines() if it.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


@asynccontextmanager
async def _tools(home: Path, lines: int, answering: Answering) -> AsyncIterator[Tools]:
    settings = FileSettings(lines_max=lines, tenant_bytes_max=2**40, file_bytes_max=2**40)
    with Store.open(home) as store:
        vault, desk = Vault.at(home, may_make=True), Desk()
        files = TenantFiles(settings, store, Pieces.open(settings, home), vault, desk, time.time)
        batches = Batches(settings, store, vault, files, time.time)
        spare = Spare(lambda model: ([EngineLoad()] * REPLICAS, 0), 1e12, time.monotonic)
        try:
            yield Tools(batches, files, desk, spare, answering, lines, 2**20, time.monotonic)
        finally:
            desk.close()


async def measured(home: Path, lines: int, answered: int) -> Measured:
    """The life of a batch of so many lines."""
    shift: _Watched
    meter = Meter()

    def is_enough() -> None:
        meter.end("answered")
        shift.stop(Status.EXPIRED)

    async with _tools(home, lines, Answering(answered, is_enough)) as tools:
        cipher = await tools.files.begin(brought_by(CALLER, "in.jsonl"), 1)
        count = size = 0
        for piece in _pieces(lines):
            await tools.files.shelf.put(cipher, count, piece)
            count, size = count + 1, size + len(piece)
        await tools.files.finish(cipher, size, count)
        batch = tools.batches.create(CALLER, ENDPOINT, cipher.file_id, Said())
        (sign,) = tools.batches.open_ones()
        taken = tools.batches.take(sign, "one")
        meter.end("kept")
        # No other gateway is here.
        shift = _Watched(taken or batch, tools)
        shift.checked = lambda: meter.end("checked")
        await shift.run()
        meter.end("written")
        return Measured(size, meter.parts, tools.batches.find(CALLER.tenant_id, batch.id))


def lines_of(found: Measured) -> Iterator[str]:
    batch = found.batch
    yield (
        f"{batch.total} lines, {found.file_bytes / 1e6:.0f} MB: {batch.status}, "
        f"{batch.done - batch.failed} answered, {batch.failed} named in the error file"
    )
    for part in found.parts:
        yield f"{part.name:10}{part.peak_bytes / 1e6:8.1f} MB   {part.wall_s:8.1f} s, {part.cpu_s:.1f} s of CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--answered", type=int, default=20_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in lines_of(asyncio.run(measured(Path(folder), asked.lines, asked.answered))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
