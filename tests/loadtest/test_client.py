"""What a client sees: pieces when they arrive, tool calls put together, and every way of failing told apart."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

import pytest

from loadtest.answers import Stream, embeddings, refusal
from loadtest.client import Api
from loadtest.conversations import Conversation, Request, Voice
from loadtest.failures import Broken, Cut, Failed, Malformed, Refused
from loadtest.workload import Kind, Session
from tests.loadtest.running import PROMPT_TOKENS
from tests.scripted_engine import DONE, MODEL, Script, ScriptedEngine, chat_chunk, chat_stream

SESSION = Session(1, 0.0, Kind.CHAT, 5, 5)


def request() -> Request:
    return Conversation(SESSION, Voice(MODEL)).request()


def api(url: str) -> Api:
    start = time.monotonic()
    return Api(url, "key", 20.0, lambda: time.monotonic() - start)


def read(writes: Sequence[bytes]) -> Stream:
    """A stream fed one write at a time, at 1, 2, 3 … seconds."""
    stream = Stream()
    for now, data in enumerate(writes, start=1):
        stream.feed(data, float(now))
    return stream


async def test_each_piece_is_seen_before_the_next_one_is_sent() -> None:
    """The server writes on only when the client has looked at its clock for the piece before: nothing waits for more."""
    pieces = chat_stream(["a", "b", "c", "d", "e", "f"])
    looked = threading.Semaphore(0)
    ticks = itertools.count()

    def clock() -> float:
        looked.release()
        return float(next(ticks))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.to_thread(looked.acquire)  # The look when the request began.
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.to_thread(looked.acquire)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        patient = Api(f"http://127.0.0.1:{port}", "key", 20.0, clock)
        outcome, told = await asyncio.to_thread(patient.ask, SESSION, 0, 0.0, request())
    assert outcome.is_ok, outcome.failure
    assert told is not None and told.text == "abcdef"
    assert list(outcome.gaps_s) == [1.0] * 5


async def test_time_counts_from_when_a_request_was_due() -> None:
    """A request that is sent late has waited: its lateness is in its time to the first token and in its latency."""
    async with ScriptedEngine() as engine:
        late = api(engine.url)
        outcome, _ = await asyncio.to_thread(late.ask, SESSION, 0, -100.0, request())
    assert outcome.lateness_s > 100
    assert outcome.ttft_s is not None and outcome.ttft_s > 100
    assert outcome.latency_s > outcome.ttft_s


async def test_tokens_are_those_of_the_usage() -> None:
    """A piece may hold several tokens, so they are counted by the API and not by pieces."""
    writes = [chat_chunk({"content": "five tokens in one piece"}, PROMPT_TOKENS, 5), *chat_stream(["x"] * 9)[-2:]]
    async with ScriptedEngine() as engine:
        engine.say(Script(writes))
        outcome, _ = await asyncio.to_thread(api(engine.url).ask, SESSION, 0, 0.0, request())
    assert (outcome.prompt_tokens, outcome.output_tokens) == (PROMPT_TOKENS, 9)


async def test_nobody_at_the_address_is_a_failure_too() -> None:
    async with ScriptedEngine() as engine:
        url = engine.url
    outcome, answer = await asyncio.to_thread(api(url).ask, SESSION, 0, 0.0, request())
    assert (outcome.failure_kind, outcome.failure, answer) == ("unreachable", "ConnectionRefusedError", None)


def test_events_may_be_cut_anywhere() -> None:
    """Byte by byte, with CRLF, or all at once: the same answer; comments and other fields say nothing."""
    whole = b": keep-alive\n\n" + b"event: chunk\n" + b"".join(chat_stream(["a", "b"]))
    for writes in ([whole], [bytes([byte]) for byte in whole], [whole.replace(b"\n", b"\r\n")]):
        assert read(writes).end().text == "ab"


def test_a_role_alone_is_no_first_token() -> None:
    """vLLM's first chunk says who speaks, and nothing yet."""
    assert read(chat_stream(["a", "b"])).end().instants_s == [2.0, 3.0]


@pytest.mark.parametrize("field", ["content", "reasoning"])
def test_thinking_is_a_token_like_any_other(field: str) -> None:
    assert read([chat_chunk({field: "a"}, 1, 1), DONE]).end().instants_s == [1.0]


def test_a_tool_call_is_put_together_from_its_pieces() -> None:
    pieces = [
        {"index": 0, "id": "call-1", "type": "function", "function": {"name": "search", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"query":'}},
        {"index": 1, "id": "call-2", "function": {"name": "read_file", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": ' "x"}'}},
    ]
    answer = read([*(chat_chunk({"tool_calls": [piece]}, 1, 1) for piece in pieces), DONE]).end()
    assert [(it.id, it.name, it.arguments) for it in answer.tool_calls] == [
        ("call-1", "search", '{"query": "x"}'),
        ("call-2", "read_file", "{}"),
    ]


BAD: dict[str, tuple[Sequence[bytes], type[Failed]]] = {
    "nothing": ([], Cut),
    "no end": (chat_stream(["a"])[:-1], Cut),
    "half an event": ([b'data: {"choices"'], Cut),
    "after the end": ([*chat_stream(["a"]), *chat_stream(["b"])], Malformed),
    "text after the end": ([*chat_stream(["a"]), b"more"], Malformed),
    "no event": ([b"<html>\n"], Malformed),
    "no JSON": ([b"data: {]\n\n"], Malformed),
    "no chunk": ([b'data: {"object": "x"}\n\n'], Malformed),
    "a list": ([b"data: []\n\n"], Malformed),
    "vLLM's error": ([b'data: {"error": {"message": "m", "type": "t", "code": 500}}\n\n'], Malformed),
    "an error": ([b'data: {"error": {"message": "m", "type": "t", "code": "c"}}\n\n'], Broken),
    "a tool's second piece": ([chat_chunk({"tool_calls": [{"index": 1}]}, 1, 1)], Malformed),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_stream_is_named(name: str) -> None:
    """Each with its own kind, though all began with 200."""
    writes, kind = BAD[name]
    with pytest.raises(kind):
        read(writes).end()


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [
        ("application/json", b'{"error": {"message": "m", "type": "t", "code": null}}', Refused),
        ("text/html", b'{"error": {"message": "m", "type": "t", "code": null}}', Malformed),
        ("application/json", b'{"error": {"message": "", "type": "t", "code": null}}', Malformed),
        ("application/json", b'{"error": "m"}', Malformed),
        ("text/html", b"<html>", Malformed),
        ("", b"", Malformed),
    ],
)
def test_a_refusal_has_openais_shape(content_type: str, body: bytes, kind: type[Failed]) -> None:
    """A proxy's page, or an engine's own error, is something no client can read."""
    assert type(refusal(503, content_type, body)) is kind


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": []}', b'{"data": [{"embedding": []}]}', b'{"data": [{}]}'])
def test_an_embedding_has_numbers(body: bytes) -> None:
    with pytest.raises(Malformed):
        embeddings(body)
