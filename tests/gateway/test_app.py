"""The application: what is not there, request ids, and what the official clients read."""

from __future__ import annotations

import anthropic
import openai
import pytest

from tests.gateway.world import CHAT, World
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
        "/v1/batches",
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
