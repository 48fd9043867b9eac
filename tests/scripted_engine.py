"""A scripted engine: a real HTTP server that speaks vLLM's HTTP and fails on cue.

Its bytes follow vLLM 0.32's serving code: key order, what is null and what is absent, a first chunk whose usage is not its
last key, compact JSON in chunks and spaced JSON in error events.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

from aiohttp import web

MODEL = "scripted-model"
STREAM = "text/event-stream; charset=utf-8"


class Ending(StrEnum):
    """What happens after the last write."""

    #: A complete HTTP answer.
    END = "end"
    #: The connection is cut.
    DIE = "die"
    #: Nothing more is sent; the connection stays.
    HANG = "hang"


@dataclass
class Script:
    """One answer: a status, writes that go out one by one, and an ending."""

    writes: Sequence[bytes] = ()
    status: int = 200
    ending: Ending = Ending.END
    content_type: str = STREAM
    #: More headers; with a Content-Length the answer is not sent in chunks.
    headers: dict[str, str] = field(default_factory=dict)
    #: Cut the connection instead of answering at all.
    dies_first: bool = False
    #: Take the call and never answer, not even with headers.
    is_mute: bool = False
    #: Wait for this before the first write, headers sent.
    gate: asyncio.Event | None = None
    #: Seconds between two writes.
    pace_s: float = 0.0


@dataclass
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]
    #: Portions of tokens that its client has, of a call that goes on here.
    sent: list[list[int]] = field(default_factory=list)


@dataclass
class ScriptedEngine:
    """`async with ScriptedEngine() as engine: engine.say(Script(…))`; unscripted calls get a short answer."""

    model: str = MODEL
    port: int = 0
    is_healthy: bool = True
    received: list[Received] = field(default_factory=list)
    #: Requests whose client went away before the end.
    aborted: int = 0
    #: Answers under way now.
    running: int = 0
    #: What it says to a route and a body when nothing was scripted; a short answer by default.
    improvise: Callable[[str, dict[str, object]], Script] | None = None

    def __post_init__(self) -> None:
        self._scripts: deque[Script] = deque()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def say(self, *scripts: Script) -> None:
        """The next answers, in order."""
        self._scripts.extend(scripts)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; again on the same port after a stop."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and cut what runs: connections are refused from now on."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.is_healthy else 503)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model, "max_model_len": 4096}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        whole, sent_bytes = await request.read(), int(request.headers.get("x-serving-sent-bytes", "0"))
        sent, body = json.loads(whole[:sent_bytes] or b"[]"), json.loads(whole[sent_bytes:])
        self.received.append(Received(request.path, dict(request.headers), body, sent))
        script = self._scripts.popleft() if self._scripts else (self.improvise or unscripted)(request.path, body)
        self.running += 1
        try:
            return await self._perform(script, request)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def _perform(self, script: Script, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if script.dies_first:
            request.transport.abort()
            return web.Response()
        if script.is_mute:
            await asyncio.Event().wait()
        response = web.StreamResponse(
            status=script.status, headers={"Content-Type": script.content_type, **script.headers}
        )
        await response.prepare(request)
        if script.gate:
            await script.gate.wait()
        for data in script.writes:
            await response.write(data)
            await asyncio.sleep(script.pace_s)
        if script.ending is Ending.DIE:
            request.transport.abort()
        elif script.ending is Ending.HANG:
            await asyncio.Event().wait()
        return response


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def usage(prompt: int, completion: int) -> dict[str, object]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def chat_chunk(
    delta: dict[str, object], prompt: int, completion: int, *, index: int = 0, is_first: bool = False
) -> bytes:
    """One chunk as `chat_completion_stream_generator` makes it with continuous usage."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    if not is_first:
        choice["token_ids"] = None
    chunk: dict[str, object] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": usage(prompt, completion) | {"completion_tokens_details": None},
    }
    if is_first:
        chunk |= {"prompt_token_ids": None, "prompt_text": None}
    return f"data: {compact(chunk)}\n\n".encode()


def chat_final(prompt: int, completion: int, *, cached: int = 0) -> bytes:
    """The last chunk: no choices, all usage."""
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [],
        "usage": usage(prompt, completion)
        | {"prompt_tokens_details": {"cached_tokens": cached}, "completion_tokens_details": {"reasoning_tokens": 1}},
        "system_fingerprint": "vllm-0.32",
    }
    return f"data: {compact(chunk)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def chat_stream(words: Sequence[str], prompt: int = 7) -> list[bytes]:
    """A whole streamed chat answer, one write an event."""
    first = chat_chunk({"role": "assistant", "content": ""}, prompt, 0, is_first=True)
    chunks = [chat_chunk({"content": word}, prompt, count) for count, word in enumerate(words, 1)]
    return [first, *chunks, chat_final(prompt, len(words), cached=3), DONE]


def chat_answer(text: str, prompt: int = 7, completion: int = 2) -> bytes:
    """A whole unstreamed chat answer."""
    message = {"role": "assistant", "content": text, "refusal": None, "reasoning": None}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}],
        "service_tier": None,
        "usage": usage(prompt, completion) | {"prompt_tokens_details": None, "completion_tokens_details": None},
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    }
    return compact(answer).encode()


def completion_answer(text: str, prompt: int = 7, completion: int = 2) -> bytes:
    """A whole unstreamed completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice]}
    return compact(answer | {"usage": usage(prompt, completion) | {"prompt_tokens_details": None}}).encode()


def completion_stream(texts: Sequence[tuple[int, str]], prompt: int = 5) -> list[bytes]:
    """A streamed completion with several choices: (index, text) pairs."""
    counts: dict[int, int] = {}
    chunks = []
    for index, text in texts:
        counts[index] = counts.get(index, 0) + 1
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice]}
        chunks.append(f"data: {compact(head | {'usage': usage(prompt, counts[index])})}\n\n".encode())
    return chunks


def event(kind: str, data: dict[str, object]) -> bytes:
    return f"event: {kind}\ndata: {compact(data)}\n\n".encode()


RESPONSES_USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0, "input_tokens_per_turn": []},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1, "tool_output_tokens": 0},
    "total_tokens": 13,
}


def responses_stream(words: Sequence[str]) -> list[bytes]:
    """A streamed Responses answer."""
    shell: dict[str, object] = {"id": "resp_1", "model": MODEL, "output": [], "tools": [], "usage": None, "user": None}
    kinds = ["response.created", "response.in_progress"]
    events = [event(kind, {"response": shell, "sequence_number": at, "type": kind}) for at, kind in enumerate(kinds)]
    for at, word in enumerate(words, len(kinds)):
        kind = "response.output_text.delta"
        events.append(event(kind, {"delta": word, "sequence_number": at, "type": kind}))
    done = {
        "response": shell | {"usage": RESPONSES_USAGE},
        "sequence_number": len(events),
        "type": "response.completed",
    }
    return [*events, event("response.completed", done)]


def messages_stream(words: Sequence[str]) -> list[bytes]:
    """A streamed Messages answer: its beginning, one write a word, and its end in two."""
    message: dict[str, object] = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": MODEL}
    message["usage"] = {"input_tokens": 9, "output_tokens": 0}
    start = event("message_start", {"type": "message_start", "message": message})
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    texts = [{"type": "text_delta", "text": word} for word in words]
    deltas = [
        event("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": text}) for text in texts
    ]
    stop = event("content_block_stop", {"type": "content_block_stop", "index": 0})
    end: dict[str, object] = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    end["usage"] = {"input_tokens": 9, "output_tokens": len(words)}
    beginning = start + event("content_block_start", block)
    return [beginning, *deltas, stop + event("message_delta", end), event("message_stop", {"type": "message_stop"})]


def noted(events: Sequence[bytes]) -> list[bytes]:
    """The same events with the notes of our engines before them: each event has a token, the number of its place."""
    return [b": tokens [%d]\n\n%b" % (at, event) for at, event in enumerate(events)]


def error_body(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> bytes:
    """vLLM's error: an int code."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}).encode()


def failing(status: int, message: str, kind: str = "BadRequestError") -> Script:
    """An error instead of an answer."""
    return Script([error_body(status, message, kind)], status=status, content_type="application/json")


def answering(body: bytes) -> Script:
    """A whole JSON answer."""
    return Script([body], content_type="application/json")


def unscripted(path: str, body: dict[str, object]) -> Script:
    """What this engine says when nothing was scripted."""
    if path == "/v1/embeddings":
        data = [{"index": 0, "object": "embedding", "embedding": [0.5]}]
        answer = {"id": "embd-1", "object": "list", "created": 1, "model": MODEL, "data": data}
        return answering(compact(answer | {"usage": usage(3, 0) | {"prompt_tokens_details": None}}).encode())
    if path == "/tokenize":
        return answering(b'{"count":2,"max_model_len":4096,"tokens":[1,2],"token_strs":null}')
    if path == "/v1/responses/input_tokens":
        return answering(b'{"object":"response.input_tokens","input_tokens":2}')
    if path == "/v1/messages/count_tokens":
        return answering(b'{"input_tokens":2,"context_management":{"original_input_tokens":2}}')
    is_streamed = body.get("stream") is True
    if path == "/v1/responses":
        whole = compact({"id": "resp_1", "model": MODEL, "output": [], "usage": RESPONSES_USAGE, "user": None}).encode()
        return Script(responses_stream(["Hi", "!"])) if is_streamed else answering(whole)
    if path == "/v1/messages":
        content: list[dict[str, object]] = [{"type": "tool_use", "input": {"a": 1, "usage": {"input_tokens": 999}}}]
        message = {"id": "m", "content": content, "usage": {"input_tokens": 9, "output_tokens": 2}}
        return Script(messages_stream(["Hi", "!"])) if is_streamed else answering(compact(message).encode())
    if path == "/v1/completions":
        chunks = completion_stream([(0, "Hi"), (0, "!")], prompt=7)
        return Script([*chunks, chat_final(7, 2), DONE]) if is_streamed else answering(completion_answer("Hi!"))
    return Script(chat_stream(["Hi", "!"])) if is_streamed else answering(chat_answer("Hi!"))
