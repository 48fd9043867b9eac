"""The scripted upstream: answers chat calls as vLLM 0.32 does, with as many chunks as the prompt asks for.

    python -m loadtest.overhead.upstream PORT

A prompt `chunks=200 step_ms=10 phase=shared` makes a stream of 200 chunks: the first at once, another every 10 ms. With a shared
phase all streams get their chunks at the same moments, as from the steps of one engine; with `phase=own` each counts from its
own start. Usage is in every chunk where the call asks for it, as in vLLM: that is the gateway's cost, and is not taken from it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import defaultdict
from functools import cache

import uvloop

from serving.gateway.http.descriptors import raise_limit

MODEL = "bench"
#: Seconds between two looks at what is due.
TICK_S = 0.005
ASKED = re.compile(rb"chunks=(\d+) step_ms=(\d+) phase=(shared|own)")
IS_STREAMED = re.compile(rb'"stream": ?true')
USAGE_AT_END = re.compile(rb'"include_usage": ?true')
USAGE_IN_CHUNKS = re.compile(rb'"continuous_usage_stats": ?true')
LENGTH = re.compile(rb"content-length: ?(\d+)", re.IGNORECASE)
PROMPT_TOKENS = 7
#: Connections that wait to be accepted.
BACKLOG = 4096
HEAD = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: %s\r\n"
STREAM_HEAD = HEAD % b"text/event-stream; charset=utf-8" + b"transfer-encoding: chunked\r\n\r\n"


def _usage(completion: int) -> dict[str, object]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@cache
def chunk(number: int, is_last: bool, has_usage: bool) -> bytes:
    """Chunk `number` of a stream as it goes over the wire; number 0 opens it with the role."""
    delta = {"content": "token"} if number else {"role": "assistant", "content": ""}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": "stop" if is_last else None}
    event: dict[str, object] = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [choice | ({"token_ids": None} if number else {})],
    }
    if has_usage:
        event["usage"] = _usage(number)
    return _framed(b"data: %s\n\n" % _compact(event))


@cache
def ending(completion: int, has_usage: bool) -> bytes:
    """What follows the last chunk: usage if asked for, the mark, the end of the body."""
    event = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    usage = _framed(b"data: %s\n\n" % _compact(event | {"choices": [], "usage": _usage(completion)}))
    return (usage if has_usage else b"") + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _whole(body: object, kind: bytes = b"application/json") -> bytes:
    text = _compact(body)
    return HEAD % kind + b"content-length: %d\r\n\r\n%s" % (len(text), text)


ANSWER = _whole(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "token " * 40, "refusal": None, "reasoning": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "service_tier": None,
        "usage": _usage(40),
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    }
)
MODELS = _whole({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 131072}]})


class Stream:
    """One answer under way."""

    def __init__(self, transport: asyncio.WriteTransport, body: bytes) -> None:
        asked = ASKED.search(body)
        chunks, step_ms, phase = asked.groups() if asked else (b"1", b"10", b"shared")
        self._transport = transport
        self._chunks = int(chunks)
        self._sent = 0
        self._has_usage = bool(USAGE_IN_CHUNKS.search(body))
        self._ends_with_usage = bool(USAGE_AT_END.search(body))
        self._ticks = max(1, round(int(step_ms) / 1e3 / TICK_S))
        self._is_shared = phase == b"shared"
        transport.write(STREAM_HEAD + chunk(0, False, self._has_usage))

    def due_after(self, tick: int) -> int:
        """The tick of its next chunk."""
        return (tick // self._ticks + 1) * self._ticks if self._is_shared else tick + self._ticks

    def step(self) -> bool:
        """Write the next chunk; whether there are more."""
        if self._transport.is_closing():
            return False
        self._sent += 1
        is_last = self._sent == self._chunks
        data = chunk(self._sent, is_last, self._has_usage)
        self._transport.write(data + ending(self._sent, self._ends_with_usage) if is_last else data)
        return not is_last


class Steps:
    """The clock of all streams: which of them get a chunk at which tick."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due = defaultdict[int, list[Stream]](list)
        self._done = 0

    def add(self, stream: Stream) -> None:
        """Have a stream's chunks written from now on."""
        if not self._due:
            self._done = self._now()
            self._loop.call_at((self._done + 1) * TICK_S, self._tick)
        self._due[stream.due_after(self._now())].append(stream)

    def _now(self) -> int:
        return int(self._loop.time() / TICK_S)

    def _tick(self) -> None:
        now = self._now()
        while self._done < now:
            self._done += 1
            for stream in self._due.pop(self._done, ()):
                if stream.step():
                    self._due[stream.due_after(self._done)].append(stream)
        if self._due:
            self._loop.call_at((now + 1) * TICK_S, self._tick)


class Connection(asyncio.Protocol):
    """Just enough HTTP: GET answers the models, POST a chat call whose body has its length announced."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream socket
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            length = LENGTH.search(head)
            after = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < after:
                return
            body, self._received = self._received[end + 4 : after], self._received[after:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            self._transport.write(MODELS)
        elif IS_STREAMED.search(body):
            self._steps.add(Stream(self._transport, body))
        else:
            self._transport.write(ANSWER)


async def serve(port: int) -> None:
    """Answer until the process is stopped."""
    raise_limit()
    loop = asyncio.get_running_loop()
    steps = Steps(loop)
    async with await loop.create_server(lambda: Connection(steps), "127.0.0.1", port, backlog=BACKLOG) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
