"""Attack: requests that are wrong in every way a seed comes up with, and what is wrong with their answers.

    python -m tests.gateway.attack [REQUESTS] [SEED]

Fields of every API with values that they cannot have, bodies cut and torn, heads that are no HTTP, before a scripted engine. An answer is
wrong if it is a 5xx, if it is an error in another shape than its API's, or if there is none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from serving.gateway.dialects import DIALECTS
from tests.gateway.calls import LEAST
from tests.gateway.world import World, running_gateway
from tests.scripted_engine import MODEL, ScriptedEngine

#: Requests under way at one time.
AT_ONCE = 8
#: Seconds after which an answer counts as late.
LATE_S = 1.0

_WORDS = [
    "",
    "a",
    "\u00b2",
    "a{\u00b2}",
    "(a{40}){40}",
    "\\",
    "\x00",
    "\ud7ff",
    "<|end|>",
    "x" * 3000,
    "true",
    "-1",
    "$ref",
    "#/a",
    "1e999",
]
_NUMBERS = [0, -1, 1, 2**31, 2**53, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, 100.0]
_KEYS = [
    "type",
    "text",
    "role",
    "content",
    "name",
    "function",
    "parameters",
    "schema",
    "pattern",
    "$ref",
    "anyOf",
    "items",
    "enum",
]
_PATHS = [
    "/",
    "/v1",
    "/v1/models/%00",
    "/v1/files",
    "/health",
    "/v1/responses/x",
    "/tokenizer_info",
    "/v1/chat/completions/",
]
_GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /health HTTP/1.1\r\n: \r\n\r\n",
    b"\x00" * 100,
]


class Attacker:
    """Makes requests from one seed."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def value(self, depth: int = 3) -> object:
        """Any JSON value."""
        dice = self._dice
        kind = dice.randrange(7 if depth else 4)
        if kind == 0:
            return dice.choice(_WORDS)
        if kind == 1:
            return dice.choice(_NUMBERS)
        if kind < 4:
            return dice.choice([None, True, False, "", MODEL])
        below = [self.value(depth - 1) for _ in range(dice.randrange(4))]
        return below if kind == 4 else {dice.choice(_KEYS): it for it in below}

    def call(self) -> tuple[str, bytes]:
        """A path and a body with one to three fields that it cannot have, now and then torn."""
        dice = self._dice
        path = dice.choice(list(DIALECTS))
        body: dict[str, object] = {"model": MODEL} | LEAST[path]
        names = [*DIALECTS[path].fields, *_KEYS[:2]]
        for _ in range(dice.randrange(1, 4)):
            body[dice.choice(names)] = self.value()
        raw = json.dumps(body).encode("utf-8", "surrogatepass")
        tear = dice.randrange(8)
        if tear == 0:
            raw = raw[: dice.randrange(len(raw))]
        elif tear == 1:
            at = dice.randrange(len(raw))
            raw = raw[:at] + bytes(dice.choices(range(256), k=3)) + raw[at + 1 :]
        return (dice.choice(_PATHS) if dice.randrange(20) == 0 else path), raw

    def method(self) -> str:
        return self._dice.choice(["POST"] * 20 + ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])

    def headers(self, key: str) -> dict[str, str]:
        """With the key, mostly."""
        dice = self._dice
        sent = {} if dice.randrange(20) == 0 else {"Authorization": f"Bearer {key}"}
        kind = dice.choice(["application/json"] * 10 + ["text/plain", "application/json; charset=latin-1"])
        return sent | {"Content-Type": kind, "x-request-id": dice.choice(["", "fuzz-0000001", "\u00e9" * 70])}

    def garbage(self) -> bytes | None:
        """What is no HTTP, now and then."""
        return self._dice.choice(_GARBAGE) if self._dice.randrange(10) == 0 else None


def fault(path: str, status: int, body: bytes) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if status >= 500:
        return f"{status} at {path}: {body[:300]!r}"
    if status < 400:
        return None
    try:
        document = json.loads(body)
        error = document["error"]
    except (ValueError, KeyError, TypeError):
        return f"{status} at {path} without an error: {body[:300]!r}"
    if not isinstance(error, dict) or not all(isinstance(error.get(name), str) for name in ("message", "type")):
        return f"{status} at {path} in no API's shape: {body[:300]!r}"
    if path.startswith("/v1/messages") and document.get("type") != "error":
        return f"{status} at {path} not in Anthropic's shape: {body[:300]!r}"
    return None


async def attack(world: World, requests: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Send so many requests; how often each status came, and every answer that was wrong."""
    attacker, seen, faults = Attacker(seed), Counter[str](), list[str]()
    left = iter(range(requests))

    async def go_on() -> None:
        for _ in left:
            began = time.monotonic()
            if (garbage := attacker.garbage()) is not None:
                path, status, body = await _said(world, garbage)
            else:
                path, raw = attacker.call()
                answer = await world.ask(attacker.method(), path, raw, attacker.headers(world.key))
                status, body = answer.status, answer.body
            seen[str(status)] += 1
            seen["late"] += time.monotonic() - began > LATE_S
            if found := fault(path, status, body):
                faults.append(found)

    await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
    return seen, faults


async def _said(world: World, garbage: bytes) -> tuple[str, int, bytes]:
    host, _, port = world.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(garbage + b"\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    path = "/v1/messages" if b"/v1/messages" in garbage else "/"
    return path, int(head[9:12] or b"599"), body


async def _main(requests: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        async with ScriptedEngine() as engine, running_gateway(Path(home), (engine.url,)) as world:
            began = time.monotonic()
            seen, faults = await attack(world, requests, seed)
    print(f"{requests} requests, seed {seed}, {time.monotonic() - began:.0f} s: {dict(sorted(seen.items()))}")
    print(f"{len(faults)} wrong answers", *faults[:20], sep="\n")


if __name__ == "__main__":
    logging.disable()
    given = sys.argv[1:3]
    asyncio.run(_main(*(int(argument) for argument in [*given, *["100000", "1"][len(given) :]])))
