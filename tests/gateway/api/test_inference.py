"""Inference: which keys open, what is refused before an engine is asked, and what an engine is sent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.gateway.nouns import Right
from serving.gateway.policies import NO_POLICY, Policy
from tests.gateway.answers.recorded_answers import stream
from tests.gateway.world import CHAT, QUICK, World, running_gateway, until
from tests.scripted_engine import (
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
)

JSON = {"Content-Type": "application/json"}


async def test_the_engine_gets_what_the_gateway_owns(world: World, engine: ScriptedEngine) -> None:
    """Aliases are resolved, the salt is the tenant's, nothing is stored, ignored fields stay here."""
    await world.chat(model="gpt-4o", user="alice@example.org", store=True, temperature=0.5)
    await world.post("/v1/responses", {"model": MODEL, "input": "Hi", "store": True})
    chat, responses = (received.body for received in engine.received)
    tenant_id = world.rows()[0]["tenant_id"]
    assert chat["model"] == MODEL and chat["temperature"] == 0.5 and not {"user", "store"} & chat.keys()
    assert chat["cache_salt"] == responses["cache_salt"] and re.fullmatch(r"[0-9a-f]{64}", str(chat["cache_salt"]))
    assert str(tenant_id) not in str(chat["cache_salt"]) and responses["store"] is False


async def test_what_was_left_out_is_said_with_every_answer(world: World, engine: ScriptedEngine) -> None:
    """Whole, streamed or an error: the client knows which tools it went without."""
    asked = {"model": MODEL, "input": "Hi", "tools": [{"type": "web_search"}, {"type": "function", "name": "f"}]}
    for more in ({}, {"stream": True}, {"model": "unknown"}):
        answer = await world.post("/v1/responses", asked | more)
        assert answer.headers["x-left-out"] == "web_search", more
    assert "x-left-out" not in (await world.post("/v1/responses", {"model": MODEL, "input": "Hi"})).headers
    tools = [{"type": "function", "name": "f", "parameters": None, "strict": None}]
    assert [it.body["tools"] for it in engine.received if "tools" in it.body] == [tools] * 2


ANSWERED = {"role": "tool", "tool_call_id": "chatcmpl-tool-94cafb3ed4d2c101", "content": "18 degrees"}
CALLED = {"name": "get_weather", "arguments": "{}"}
FUNCTION = {"name": "get_weather", "parameters": {"type": "object"}}
CHAT_TURN: dict[str, object] = {
    "messages": [
        {"role": "assistant", "tool_calls": [{"id": ANSWERED["tool_call_id"], "type": "function", "function": CALLED}]},
        ANSWERED,
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
}
MESSAGES_TURN: dict[str, object] = {
    "max_tokens": 100,
    "messages": [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "chatcmpl-tool-bbe1f45d421d643d", "name": "get_weather", "input": {}}
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "chatcmpl-tool-bbe1f45d421d643d", "content": "18"}],
        },
    ],
    "tools": [{"name": "get_weather", "input_schema": {"type": "object"}}],
}
RESPONSES_TURN: dict[str, object] = {
    "input": [
        {"type": "function_call", "call_id": "call_90e5e75efd185b70", **CALLED},
        {"type": "function_call_output", "call_id": "call_90e5e75efd185b70", "output": "18 degrees"},
    ],
    "tools": [{"type": "function", **FUNCTION}],
}


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(
    ("path", "name", "turn"),
    [
        ("/v1/chat/completions", "tiny-chat-tool", CHAT_TURN),
        ("/v1/messages", "tiny-messages-tool", MESSAGES_TURN),
        ("/v1/responses", "tiny-responses-tool", RESPONSES_TURN),
    ],
)
async def test_the_reasoning_before_a_call_comes_back_with_its_result(
    world: World, engine: ScriptedEngine, path: str, name: str, turn: dict[str, object], is_streamed: bool
) -> None:
    """For a client that dropped it, and for no other tenant that names the same call."""
    asked = {"model": MODEL, "stream": is_streamed} | turn
    engine.say(Script(stream(name)))
    assert (await world.post(path, asked)).status == 200
    assert "I should look it up." not in str(engine.received[-1].body)
    another = {"Authorization": f"Bearer {world.key_of_another('other')}"} | JSON
    for headers, is_there in ((None, True), (another, False)):
        await world.ask("POST", path, asked, headers)
        assert ("I should look it up." in str(engine.received[-1].body)) is is_there


async def test_a_client_may_carry_its_reasoning_sealed(world: World, engine: ScriptedEngine) -> None:
    """Asked for, given back without its text, and opened; a reference to it is found; a forged one is no fault."""
    asked = {"model": MODEL, "stream": True, "include": ["reasoning.encrypted_content"]} | RESPONSES_TURN
    engine.say(Script(stream("tiny-responses-tool")))
    answer = await world.post("/v1/responses", asked)
    (last,) = (json.loads(it[6:]) for it in answer.body.decode().split("\n") if '"type":"response.completed"' in it)
    item = last["response"]["output"][0]
    carried = {"type": "reasoning", "summary": [], "encrypted_content": item["encrypted_content"]}
    now = {"role": "user", "content": "Go on."}
    for thought, is_there in (
        (carried, True),
        ({"type": "item_reference", "id": item["id"]}, True),
        (carried | {"encrypted_content": "Zm9yZ2Vk"}, False),
        ({"type": "item_reference", "id": "rs_0000000000000000"}, False),
    ):
        assert (await world.post("/v1/responses", {"model": MODEL, "input": [thought, now]})).status == 200
        sent = engine.received[-1].body
        assert ("I should look it up." in str(sent)) is is_there and "encrypted_content" not in str(sent), thought
        assert "item_reference" not in str(sent)


async def test_strangers_are_turned_away_before_their_body_is_read(world: World) -> None:
    """No key or a wrong one is 401 with WWW-Authenticate, in the dialect of the path, and leaves no ledger row."""
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"x-api-key": "wrong"}, {"Authorization": "Basic x"}):
        answer = await world.ask("POST", "/v1/chat/completions", b"{", headers | JSON)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.error["code"] == "invalid_api_key" and answer.headers["x-should-retry"] == "false"
    answer = await world.ask("POST", "/v1/messages", b"{", JSON)
    assert answer.json["type"] == "error" and answer.error["type"] == "authentication_error"
    assert world.rows() == []


async def test_both_key_headers_open(world: World) -> None:
    """OpenAI's and Anthropic's way to show a key both work on every route."""
    for headers in ({"Authorization": f"Bearer {world.key}"}, {"x-api-key": world.key}):
        assert (await world.ask("POST", "/v1/messages", CHAT | {"max_tokens": 1}, headers | JSON)).status == 200
        assert (await world.ask("GET", "/v1/models", headers=headers)).status == 200


async def test_a_body_over_the_limit_is_413(world: World, engine: ScriptedEngine) -> None:
    """Announced or chunked, a body that is too large is refused and never held."""
    announced = await world.post("/v1/chat/completions", b"x" * 1_000_000)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 16_384

    sent = world.headers() | JSON
    async with world.client.post(world.url + "/v1/chat/completions", data=endless(), headers=sent) as response:
        chunked = response.status
    assert announced.status == chunked == 413 and engine.received == []
    assert announced.error["code"] == "request_too_large"


async def test_a_body_that_does_not_arrive_is_408(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A client that announces a body and never sends it gets its place taken back, and a row that says so."""
    timeouts = QUICK.model_copy(update={"request_body_s": 0.2})
    async with running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        over = asyncio.Event()

        async def trickle() -> AsyncIterator[bytes]:
            yield b"{"
            await over.wait()

        sent = world.headers() | JSON
        async with world.client.post(world.url + "/v1/chat/completions", data=trickle(), headers=sent) as response:
            status, body = response.status, await response.json()
        over.set()
        row = await world.row()
    assert (status, body["error"]["code"], row["status"], row["outcome"]) == (408, "request_timeout", 408, "rejected")
    assert engine.received == []


async def test_unknown_models_are_404(world: World) -> None:
    """A model that no engine serves is the client's mistake, said in OpenAI's words."""
    answer = await world.chat(model="gpt-99")
    row = await world.row()
    assert answer.status == 404 and answer.error["code"] == "model_not_found" and answer.error["param"] == "model"
    assert (row["status"], row["outcome"], row["model"]) == (404, "rejected", "")


async def test_a_model_of_an_engine_not_heard_yet_is_not_unknown(tmp_path: Path) -> None:
    """Before every source has answered, a missing model means "not yet": 503 with Retry-After, not 404."""
    engine = ScriptedEngine()
    async with engine:
        url = engine.url
    brief = QUICK.model_copy(update={"replica_wait_s": 0.1})
    async with running_gateway(tmp_path, (url,), is_awaited=False, timeouts=brief) as world:
        answer = await world.chat()
    assert answer.status == 503 and "retry-after" in answer.headers


async def test_a_full_gateway_says_so(engine: ScriptedEngine, tmp_path: Path) -> None:
    """Past `max_open_requests` a call is refused at once with a time to retry, and admitted when one ends."""
    async with running_gateway(tmp_path, (engine.url,), max_open_requests=1) as world:
        engine.say(Script(ending=Ending.HANG))
        hanging = asyncio.create_task(world.chat())
        await until(lambda: engine.running == 1)
        full = await world.chat()
        hanging.cancel()
        await until(lambda: engine.aborted == 1)
        after = await world.chat()
    assert full.status == 503 and full.error["code"] == "overloaded" and full.headers["retry-after-ms"] == "1000"
    assert after.status == 200


async def test_a_body_at_fault_reaches_no_engine(world: World, engine: ScriptedEngine) -> None:
    """A 400 that names the field, in the shape of the path's API, and a row that says so; no place is kept."""
    bad = CHAT | {"max_tokens": 5, "temperature": 3}
    answers = [await world.post(path, bad) for path in ("/v1/chat/completions", "/v1/messages")]
    answers.append(await world.post("/v1/chat/completions", b"{"))
    rows = world.rows()
    assert [answer.status for answer in answers] == [400] * 3 and engine.received == []
    assert answers[0].error["param"] == "temperature" and answers[1].json["type"] == "error"
    assert [(row["status"], row["outcome"], row["replica_id"]) for row in rows] == [(400, "rejected", None)] * 3


async def test_a_body_that_says_it_is_no_json_is_not_read(world: World) -> None:
    """The type that a browser's form sends is refused, whatever stands in it."""
    form = world.headers() | {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await world.ask("POST", "/v1/chat/completions", CHAT, form)
    assert answer.status == 400 and "must be JSON" in str(answer.error["message"])


async def test_a_client_that_leaves_while_it_waits_is_not_billed(tmp_path: Path, engine: ScriptedEngine) -> None:
    """No engine had its call: 499, no tokens, no replica; and its place is free."""
    async with running_gateway(tmp_path, (engine.url,), max_open_requests=1) as world:
        await engine.stop()
        waiting = asyncio.create_task(world.chat())
        await until(lambda: any(row["outcome"] == "open" for row in world.rows()))
        waiting.cancel()
        row = await world.row()
        await engine.start()
        await world.until_ready()
        assert (await world.chat()).status == 200
    assert (row["outcome"], row["status"], row["prompt_tokens"]) == ("client_disconnected", 499, 0)


async def test_a_load_tests_key_generates_past_the_end(world: World, engine: ScriptedEngine) -> None:
    """`ignore_eos` reaches the engine for a key that was made with the right, and is a 400 for the others."""
    refused = await world.chat(ignore_eos=True)
    assert refused.status == 400 and refused.error["code"] == "unsupported_parameter"
    world.key = world.registry.create_key("acme", allowed=[Right.IGNORE_EOS])
    assert (await world.chat(ignore_eos=True)).status == 200
    assert engine.received[-1].body["ignore_eos"] is True


async def test_a_limit_is_kept_to_the_call_and_its_answer_says_what_is_left(
    world: World, engine: ScriptedEngine
) -> None:
    """In headers that clients know; the one too many is 429 with the time to wait, asks no engine, and costs nothing."""
    await world.bound(Policy(requests_per_minute=2))
    first, second, third = [await world.chat() for _ in range(3)]
    assert [it.status for it in (first, second, third)] == [200, 200, 429]
    assert first.headers["x-ratelimit-remaining-requests"] == "1" and first.headers["x-ratelimit-limit-requests"] == "2"
    assert (third.error["code"], third.error["type"]) == ("rate_limit_exceeded", "requests")
    assert 0 < int(third.headers["retry-after-ms"]) <= 30_000 and third.headers["x-should-retry"] == "true"
    assert third.headers["x-ratelimit-remaining-requests"] == "0" and len(engine.received) == 2
    await until(lambda: all(row["outcome"] != "open" for row in world.rows()))
    assert [row["status"] for row in world.rows()] == [200, 200, 429]
    message = await world.post("/v1/messages", {"model": MODEL, "max_tokens": 5, "messages": CHAT["messages"]})
    assert message.status == 429 and message.error["type"] == "rate_limit_error"
    assert message.headers["anthropic-ratelimit-requests-remaining"] == "0"


async def test_tokens_are_settled_to_what_the_engine_said(world: World) -> None:
    """Of a generous limit of the client's only what was used stays used; a day's tokens are those of its calls."""
    await world.bound(Policy(tokens_per_minute=100_000, tokens_per_day=1_000))
    for _ in range(5):
        assert (await world.chat(max_tokens=700)).status == 200
    used = sum(int(str(row["prompt_tokens"])) + int(str(row["completion_tokens"])) for row in world.rows())
    answer = await world.chat(max_tokens=970)
    assert answer.status == 429 and answer.error["code"] == "insufficient_quota" and 0 < used < 1_000
    assert int(answer.headers["retry-after"]) <= 86_400


async def test_open_requests_are_counted_while_they_are_open(world: World, engine: ScriptedEngine) -> None:
    """Streams of clients that leave are not: their place is free again."""
    await world.bound(Policy(open_requests=1))
    engine.say(Script(is_mute=True))
    stream = asyncio.create_task(world.chat(stream=True))
    await until(lambda: engine.received)
    refused = await world.chat()
    assert refused.status == 429 and refused.error["code"] == "concurrency_limit_exceeded"
    stream.cancel()
    await until(lambda: all(row["outcome"] != "open" for row in world.rows()))
    assert (await world.chat()).status == 200


@pytest.mark.parametrize(
    ("policy", "path", "asked", "sent"),
    [
        (Policy(output_tokens=10), "/v1/completions", {"prompt": "Hi"}, {"max_tokens": 10}),
        (Policy(output_tokens=100), "/v1/completions", {"prompt": "Hi"}, {"max_tokens": 16}),
        (Policy(output_tokens=10), "/v1/responses", {"input": "Hi"}, {"max_output_tokens": 10}),
    ],
)
async def test_a_call_without_a_limit_gets_no_more_than_it_may_have(
    world: World,
    engine: ScriptedEngine,
    policy: Policy,
    path: str,
    asked: dict[str, object],
    sent: dict[str, object],
) -> None:
    """The default of its API or its model is cut to it."""
    await world.bound(policy)
    assert (await world.post(path, {"model": MODEL} | asked)).status == 200
    assert sent.items() <= engine.received[-1].body.items()


async def test_the_prompt_leaves_the_rest_of_the_context(world: World, engine: ScriptedEngine) -> None:
    """To a call that sets no limit: to say nothing is no way past the longest context, and none to be refused."""
    await world.bound(Policy(context_tokens=100))
    assert (await world.chat()).status == 200
    assert 0 < int(str(engine.received[-1].body["max_completion_tokens"])) < 100


async def test_what_was_used_while_there_was_no_limit_counts(world: World) -> None:
    """A limit that is taken away and given back starts no day anew: the ledger has what was used in between."""
    await world.bound(Policy(tokens_per_day=100))
    assert (await world.chat(max_tokens=2)).status == 200
    await world.bound(NO_POLICY)
    for _ in range(12):
        assert (await world.chat(max_tokens=2)).status == 200
    await world.bound(Policy(tokens_per_day=100))
    # The gateway knows of the policy by the same question by which it knows of the change.
    assert (await world.chat(max_tokens=2)).status == 429


async def test_a_model_or_a_length_that_is_not_allowed_is_refused(world: World, engine: ScriptedEngine) -> None:
    """As if it were not there, and with the field that asks for too much; a call without a limit is cut to what is allowed."""
    await world.bound(Policy(models=("gpt-4o",), output_tokens=100))
    assert (await world.chat()).error["code"] == "model_not_found"
    longer = await world.chat(model="gpt-4o", max_tokens=101)
    assert (longer.status, longer.error["param"]) == (400, "max_tokens")
    assert (await world.chat(model="gpt-4o")).status == 200
    assert [it.body["max_completion_tokens"] for it in engine.received] == [100]
