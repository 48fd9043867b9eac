"""Answers that vLLM 0.32 gave for tiny-gpt-oss and smollm2-135m-instruct, byte for byte, and what clients make of streams.

A file is named after its model, API and question: those of `serving/engine/checkpoints/conversations`, cut at the token that is named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.gateway.answers.shaper import Assembly, Shaper

RECORDED = Path(__file__).parent / "recorded"


def body(name: str) -> bytes:
    """A whole answer."""
    return (RECORDED / f"{name}.json").read_bytes()


def stream(name: str) -> list[bytes]:
    """A stream, event by event."""
    return [event + b"\n\n" for event in (RECORDED / f"{name}.sse").read_bytes().split(b"\n\n")[:-1]]


def shaped(shaper: Shaper, blocks: list[bytes]) -> bytes:
    """What a client gets of a stream, as far as its shaper wants it."""
    out = b""
    for block in blocks:
        out += shaper.events(block)
        if shaper.is_over:
            break
    return out


def data(out: bytes) -> list[dict[str, Any]]:
    """The JSON of every event."""
    return [json.loads(line[6:]) for line in out.decode().split("\n") if line.startswith("data: {")]


def names(out: bytes) -> list[str]:
    """The names of all events."""
    return [line[7:] for line in out.decode().split("\n") if line.startswith("event: ")]


def whole(assembly: Assembly, out: bytes) -> dict[str, Any]:
    """A whole answer put together from what a client would get."""
    assembly.add(out)
    document: dict[str, Any] = json.loads(assembly.body())
    return document


def wrapped(code: int) -> bytes:
    """The data of the error event that vLLM's Messages stream makes of an error of its own."""
    quoted = f"input_value={{'error': {{'message': 'In...am': None, 'code': {code}}}}}, input_type=dict]"
    lines = [f"{field}\n  Field required [type=missing, {quoted}" for field in ("model", "choices")]
    message = "\n".join(["2 validation errors for ChatCompletionStreamResponse", *lines])
    return json.dumps({"type": "error", "error": {"type": "internal_error", "message": message}}).encode()
