"""The application: what is not there, request ids, and what the official clients read."""

from __future__ import annotations

import asyncio
import json
import logging

import anthropic
import openai
import pytest

from tests.gateway.world import CHAT, World, until
from tests.scripted_engine import (
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
    chat_stream,
    messages_stream,
    responses_stream,
)


async def test_unknown_paths_and_methods(world: World) -> None:
    """404 and 405 with Allow; vLLM's other routes are not there; HEAD and OPTIONS are refused cleanly."""
    for path in (
        "/sleep",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/invocations",
        "/tokenizer_info",
        "/v1/chat/completions/",
    ):
        answer = await world.post(path, {})
        assert answer.status == 404 and answer.error["code"] == "unknown_url"
    for method, path, allowed in (
        ("GET", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/messages", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", f"/v1/models/{MODEL}", "GET"),
    ):
        answer = await world.ask(method, path)
        assert answer.status == 405 and answer.headers["allow"] == allowed
    head = await world.ask("HEAD", "/v1/messages")
    assert (head.status, head.headers["allow"], head.body) == (405, "POST", b"")


async def test_head_is_get_without_the_body(world: World) -> None:
    """Clients and load balancers ask so whether there is anything at all, also at the root."""
    for path in ("/", "/health", "/health/live", "/health/ready", "/health/models", "/v1/models"):
        head, whole = await world.ask("HEAD", path), await world.ask("GET", path)
        assert (head.status, head.body) == (whole.status, b"") == (200, b"")
        assert head.headers["content-length"] == str(len(whole.body))


async def test_every_answer_has_a_request_id(world: World) -> None:
    """A safe id of the client's is kept, anything else is replaced: it goes to logs and the ledger."""
    given = {"my-request-0001": True, "short": False, "x" * 65: False, "a b c d e f g": False, "<script>alert": False}
    for request_id, is_kept in given.items():
        answer = await world.ask("GET", "/health/live", headers={"x-request-id": request_id})
        assert (answer.headers["x-request-id"] == request_id) is is_kept
    assert (await world.post("/nothing", {})).headers["x-request-id"].startswith("req_")


async def test_the_openai_package_reads_our_streams_and_errors(world: World, engine: ScriptedEngine) -> None:
    """The official client streams, and raises on a stream that breaks instead of returning half an answer."""
    client = openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=world.key, max_retries=0)
    messages = CHAT["messages"]
    async with client:
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hi!"
        engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.DIE), Script(responses_stream(["Hi"])[:3]))
        with pytest.raises(openai.APIError, match="engine failed"):
            async for _ in await client.chat.completions.create(model=MODEL, messages=messages, stream=True):
                pass
        with pytest.raises(openai.APIError, match="engine failed"):
            async for _ in await client.responses.create(model=MODEL, input="Hi", stream=True):
                pass
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=messages, extra_body={"priority": 1})
    assert refused.value.code == "unsupported_parameter" and refused.value.param == "priority"


async def test_the_anthropic_package_reads_our_streams_and_errors(world: World, engine: ScriptedEngine) -> None:
    """The official client streams messages, and raises on errors in its own shape."""
    client = anthropic.AsyncAnthropic(base_url=world.url, api_key=world.key, max_retries=0)
    arguments = {"model": MODEL, "messages": CHAT["messages"], "max_tokens": 5}
    async with client:
        events = [event async for event in await client.messages.create(**arguments, stream=True)]
        engine.say(Script(messages_stream(["Hi"])[:2], ending=Ending.DIE))
        with pytest.raises(anthropic.APIStatusError, match="engine failed"):
            async for _ in await client.messages.create(**arguments, stream=True):
                pass
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**arguments | {"model": "none"})
    assert events[0].type == "message_start" and events[-1].type == "message_stop"


async def said_to(world: World, *pieces: bytes) -> bytes:
    """All that is answered to these bytes, to the end of the connection."""
    host, _, port = world.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_what_is_no_http_gets_an_error_of_the_api(world: World) -> None:
    """In the shape of the path it was for, with a request id; counted and logged as any request."""
    garbage = await said_to(world, b"hello\r\n\r\n")
    endless = await said_to(world, b"POST /v1/messages HTTP/1.1\r\nx-request-id: mine-0001\r\nX: " + b"x" * 100_000)
    for answer, request_id in ((garbage, b"req_"), (endless, b"mine-0001")):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ") and b"x-request-id: " + request_id in head
        assert b"content-type: application/json" in head and b"x-should-retry: false" in head
        document = json.loads(body)
        assert document["error"]["type"] == "invalid_request_error" and document["error"]["message"]
    assert b'"type":"error"' in endless
    await until(lambda: len(world.lines) == 2)
    assert [(line["status"], line["outcome"], line["route"]) for line in world.lines] == [
        (400, "rejected", "other")
    ] * 2
    page = (await world.ask("GET", "/metrics")).body.decode()
    assert (
        '_requests_total{model="unknown",outcome="rejected",reason="invalid_request_error",route="other"} 2.0' in page
    )


async def test_garbage_behind_a_call_does_not_take_its_answer(world: World) -> None:
    """The call ends well, in the ledger too; what follows is a request of its own."""
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\n"
    sent = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = await said_to(world, sent + b"\x00garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP/1.1 400 ") == 1
    assert (await world.row())["outcome"] == "ok"


async def test_a_client_that_is_cut_leaves_no_error_in_the_log(
    world: World, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one whose answer broke off, nor one that closed while it was written."""
    caplog.set_level(logging.INFO)
    engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.HANG))
    async with world.client.post(
        world.url + "/v1/chat/completions", json=CHAT | {"stream": True}, headers=world.headers()
    ) as stream:
        await stream.content.readany()
        stream.close()
    await until(lambda: world.lines)
    assert [line["outcome"] for line in world.lines] == ["client_disconnected"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
