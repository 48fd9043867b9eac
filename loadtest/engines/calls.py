"""Calls of a known length: what a number of streams get of one server, and how soon."""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loadtest.engines.stands import Stand
from loadtest.overhead.calls import Streamed, made, request
from serving.errors import Refusal

#: The first piece of text; the event with the role alone comes earlier from some.
TEXT = re.compile(rb'"content": ?"[^"]')
TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
#: Bytes at the end of what came, in which a cut event is found whole.
KEPT_BYTES = 2048
WORDS = ("rivers", "bridges", "clocks", "maps", "tides", "ships", "glass", "paper", "salt", "stars", "seeds", "roads")


class Load(NamedTuple):
    """So many streams at once, each so many calls one after another, of so many tokens."""

    streams: int
    calls: int
    tokens: int


LOADS = (Load(1, 6, 48), Load(8, 1, 96), Load(32, 1, 64))
#: Enough to see that everything runs.
SHORT = (Load(1, 1, 4), Load(8, 1, 4), Load(32, 1, 4))


class Generated(Streamed):
    """One stream: when its first text came, and how many tokens it says it has."""

    def __init__(self, sent: bytes) -> None:
        super().__init__(sent)
        self._last = b""
        self.text_at: float | None = None
        self.tokens = 0

    def data_received(self, data: bytes) -> None:
        self._last = (self._last + data)[-max(KEPT_BYTES, len(data)) :]
        if self.text_at is None and TEXT.search(self._last):
            self.text_at = time.perf_counter()
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        counted = TOKENS.findall(self._last)
        self.tokens = int(counted[-1]) if counted else 0
        super().connection_lost(error)

    @property
    def text_ms(self) -> float:
        """Milliseconds to the first text, from before the connection was opened; infinite if none came."""
        return float("inf") if self.text_at is None else (self.text_at - self.began_at) * 1e3


def body(model: str, tokens: int, seed: str) -> dict[str, object]:
    """A call for exactly that many tokens, with a prompt that no call before it had: nothing of it is cached."""
    drawn = random.Random(seed)  # noqa: S311 -- The same prompts for all.
    words = " and ".join(drawn.choices(WORDS, k=12))
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"{drawn.getrandbits(64):x}: tell a long story of {words}."}],
        "temperature": 0,
        "min_tokens": tokens,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def measured(stand: Stand, model: str, load: Load, seed: str) -> Mapping[str, float]:
    """Tokens a second of all streams together, the median time to the first text, and processor time of the server's processes
    for each token; raises Refusal if a call fails.
    """
    began, used_s = time.perf_counter(), _cpu_s(stand)
    streams = [_stream(stand, model, load, f"{seed}/{number}") for number in range(load.streams)]
    done = [call for calls in await asyncio.gather(*streams) for call in calls]
    seconds, used_s = time.perf_counter() - began, _cpu_s(stand) - used_s
    short = sum(not call.is_whole or call.tokens != load.tokens for call in done)
    if short:
        raise Refusal(f"{stand.name}: {short} of {len(done)} calls did not get their {load.tokens} tokens.")
    tokens = sum(call.tokens for call in done)
    return {
        "tokens_per_s": tokens / seconds,
        "cpu_ms": used_s / tokens * 1e3,
        "ttft_ms": statistics.median(call.text_ms for call in done),
    }


def _cpu_s(stand: Stand) -> float:
    return stand.tree.cpu_s() if stand.tree else 0.0


async def _stream(stand: Stand, model: str, load: Load, seed: str) -> Sequence[Generated]:
    done = []
    for number in range(load.calls):
        sent = request(stand.key, body(model, load.tokens, f"{seed}/{number}"))
        done.append(await made(stand.port, Generated(sent)))
    return done
