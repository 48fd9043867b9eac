"""The application: who gets in, what is refused and how it is said, what the gateway answers itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import openai
import pytest

from tests.gateway.world import CHAT, QUICK, World, running_gateway, until
from tests.scripted_engine import (
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
    chat_stream,
    failing,
    messages_stream,
    responses_stream,
)

JSON = {"Content-Type": "application/json"}


def nested(depth: int) -> bytes:
    return b'{"model":"m","messages":' + b"[" * depth + b"]" * depth + b"}"


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"model": "m"',
    "a list": b"[]",
    "NaN": b'{"model":"m","temperature":NaN}',
    "infinite": b'{"model":"m","temperature":1e999}',
    "an endless integer": b'{"model":"m","seed":' + b"9" * 6000 + b"}",
    "invalid UTF-8": b'{"model":"\xff"}',
    "a lone surrogate": b'{"model":"a\\ud800b"}',
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "nested a little too deep": nested(70),
    "a nesting bomb": nested(30_000),
    "rest after the end": b'{"model":"m"}{',
}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as scripted:
        yield scripted


@pytest.fixture
async def world(engine: ScriptedEngine, tmp_path: Path) -> AsyncIterator[World]:
    async with running_gateway(tmp_path, (engine.url,)) as running:
        yield running


async def test_malformed_bodies_are_400(world: World, engine: ScriptedEngine) -> None:
    """Whatever is not one JSON object of sane depth and numbers is refused before any engine sees it."""
    for name, body in MALFORMED.items():
        answer = await world.post("/v1/chat/completions", body)
        assert answer.status == 400 and answer.error["type"] == "invalid_request_error", name
    assert engine.received == []


BAD_FIELDS: list[tuple[dict[str, object], str, str | None]] = [
    ({"no_such_field": 1}, "no_such_field", "unknown_parameter"),
    ({"priority": 1}, "priority", "unsupported_parameter"),
    ({"cache_salt": "x"}, "cache_salt", "unsupported_parameter"),
    ({"temperature": 3}, "temperature", None),
    ({"temperature": "hot"}, "temperature", None),
    ({"n": 100}, "n", None),
    ({"seed": 2**64}, "seed", None),
    ({"stop": ["a"] * 5}, "stop", None),
    ({"stream": "yes"}, "stream", None),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"top_logprobs": 2}, "top_logprobs", None),
    ({"reasoning_effort": "xhigh"}, "reasoning_effort", None),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name", None),
    ({"tool_choice": "required"}, "tool_choice", None),
    ({"messages": []}, "messages", None),
    ({"messages": [{"role": "user"}]}, "messages[0].content", None),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", None),
    ({"messages": None}, "messages", None),
    ({"model": None}, "model", None),
    ({"chat_template_kwargs": {"builtin_tools": ["python"]}}, "chat_template_kwargs", None),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", None),
]


async def test_bad_fields_are_named(world: World) -> None:
    """A 400 says which field it is about, so that the caller can fix it."""
    for fields, param, code in BAD_FIELDS:
        answer = await world.chat(**fields)
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code), answer.body


MEDIA: list[tuple[dict[str, object], str]] = [
    ({"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}, "Image input"),
    ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "Audio input"),
    ({"type": "file", "file": {"file_id": "f"}}, "File input"),
    ({"type": "video_url", "video_url": {"url": "x"}}, "Video input"),
]


async def test_media_is_refused_by_name(world: World, engine: ScriptedEngine) -> None:
    """A text model says what it cannot read; no engine fetches a URL for a client."""
    for part, word in MEDIA:
        answer = await world.chat(messages=[{"role": "user", "content": [part]}])
        assert answer.status == 400 and str(answer.error["message"]).startswith(word)
    assert engine.received == []


STATEFUL: list[dict[str, object]] = [
    {"previous_response_id": "resp_1"},
    {"conversation": "c"},
    {"background": True},
    {"prompt": {"id": "p"}},
    {"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://10.0.0.1"}]},
    {"input": [{"type": "item_reference", "id": "i"}]},
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
]


async def test_responses_refuses_what_needs_a_memory_or_a_hosted_tool(world: World) -> None:
    """The stateless Responses API says in one sentence what it does not do."""
    for fields in STATEFUL:
        answer = await world.post("/v1/responses", {"model": MODEL, "input": "Hi"} | fields)
        assert answer.status == 400 and answer.error["code"] == "unsupported_parameter", fields
        assert str(answer.error["message"]).count("\n") == 0


async def test_the_engine_gets_what_the_gateway_owns(world: World, engine: ScriptedEngine) -> None:
    """Aliases are resolved, the salt is the tenant's, nothing is stored, ignored fields stay here."""
    await world.chat(model="gpt-4o", user="alice@example.org", store=True, temperature=0.5)
    await world.post("/v1/responses", {"model": MODEL, "input": "Hi", "store": True})
    chat, responses = (received.body for received in engine.received)
    tenant_id = world.rows()[0]["tenant_id"]
    assert chat["model"] == MODEL and chat["temperature"] == 0.5 and not {"user", "store"} & chat.keys()
    assert chat["cache_salt"] == responses["cache_salt"] and re.fullmatch(r"[0-9a-f]{64}", str(chat["cache_salt"]))
    assert str(tenant_id) not in str(chat["cache_salt"]) and responses["store"] is False


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
    """A model nobody serves is the client's mistake, said in OpenAI's words."""
    answer = await world.chat(model="gpt-99")
    row = await world.row()
    assert answer.status == 404 and answer.error["code"] == "model_not_found" and answer.error["param"] == "model"
    assert (row["status"], row["outcome"], row["model"]) == (404, "rejected", "")


async def test_unknown_paths_and_methods(world: World) -> None:
    """404 and 405 with Allow; vLLM's other routes are not there; HEAD and OPTIONS are refused cleanly."""
    for path in (
        "/sleep",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/invocations",
        "/",
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
    head = await world.ask("HEAD", "/v1/models")
    assert head.status == 405 and head.body == b""


async def test_every_answer_has_a_request_id(world: World) -> None:
    """A safe id of the client's is kept, anything else is replaced: it goes to logs and the ledger."""
    given = {"my-request-0001": True, "short": False, "x" * 65: False, "a b c d e f g": False, "<script>alert": False}
    for request_id, is_kept in given.items():
        answer = await world.ask("GET", "/health/live", headers={"x-request-id": request_id})
        assert (answer.headers["x-request-id"] == request_id) is is_kept
    assert (await world.post("/nothing", {})).headers["x-request-id"].startswith("req_")


async def test_models_are_listed_with_their_aliases(world: World) -> None:
    """The list holds every name that works, and each can be looked up."""
    listed = json.loads((await world.ask("GET", "/v1/models")).body)
    assert [model["id"] for model in listed["data"]] == [MODEL, "gpt-4o"] and listed["object"] == "list"
    one = (await world.ask("GET", f"/v1/models/{MODEL}")).json
    assert one["object"] == "model" and one["max_model_len"] == 4096
    assert (await world.ask("GET", "/v1/models/none")).error["code"] == "model_not_found"


async def test_health_says_what_can_be_asked(world: World, engine: ScriptedEngine) -> None:
    """Live and ready while the process runs, engines or not; models only while one answers; no address in it."""
    assert (await world.ask("GET", "/health/models", headers={})).json == {"models": {MODEL: "ready"}}
    await engine.stop()
    deadline = asyncio.get_running_loop().time() + 5
    while (answer := await world.ask("GET", "/health/models", headers={})).status != 503:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert answer.json == {"models": {MODEL: "failed"}}
    assert (await world.ask("GET", "/health/ready", headers={})).status == 200
    assert (await world.ask("GET", "/health/live", headers={})).status == 200


async def test_a_model_of_an_engine_not_heard_yet_is_not_unknown(tmp_path: Path) -> None:
    """Before every source has answered, a missing model means "not yet": 503 with Retry-After, not 404."""
    engine = ScriptedEngine()
    async with engine:
        url = engine.url
    async with running_gateway(tmp_path, (url,), is_awaited=False) as world:
        answer = await world.chat()
    assert answer.status == 503 and "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("failure", "status", "code", "said"),
    [
        (failing(400, "This model's maximum context length is 4096 tokens."), 400, "context_length_exceeded", "4096"),
        (failing(400, "Bad value in /usr/lib/x/y.py at http://10.1.2.3:8000/v1"), 400, None, "Bad value"),
        (failing(404, "Not Found", "Not Found"), 400, None, "does not support"),
        (failing(404, f"The model `{MODEL}` does not exist.", "NotFoundError"), 404, "model_not_found", MODEL),
        (failing(501, "The model does not support Chat Completions API", "NotImplementedError"), 400, None, "support"),
        (failing(401, "Unauthorized"), 502, "engine_failed", "engine failed"),
        (
            failing(422, "1 validation error:\n {'loc': ('body',), 'msg': 'Input should be 1', 'input': 2}"),
            400,
            None,
            "be 1",
        ),
    ],
)
async def test_refusals_of_the_engine_are_said_in_our_words(
    world: World, engine: ScriptedEngine, failure: Script, status: int, code: str | None, said: str
) -> None:
    """What an engine says about the request is passed on, scrubbed; its own trouble never looks like the client's."""
    engine.say(*[failure] * 3)
    answer = await world.chat()
    row = await world.row()
    assert (answer.status, answer.error["code"]) == (status, code) and said in str(answer.error["message"])
    assert not re.search(rb"/usr/|10\.1\.2\.3|http://|Unauthorized|'loc'", answer.body)
    assert isinstance(answer.error["type"], str) and row["prompt_tokens"] == 0


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


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/chat/completions", {"messages": CHAT["messages"]}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/embeddings", {"input": "Hi"}),
    ],
)
async def test_a_prompt_that_is_too_long_is_named(
    world: World, engine: ScriptedEngine, path: str, prompt: dict[str, object]
) -> None:
    """The 400 names the field that holds the prompt on that route."""
    engine.say(failing(400, "This model's maximum context length is 4096 tokens."))
    answer = await world.post(path, {"model": MODEL} | prompt)
    assert (answer.error["code"], answer.error["param"]) == ("context_length_exceeded", *prompt)


async def test_probes_leave_no_line_in_the_access_log(world: World) -> None:
    """Machines that ask every second must not bury the requests of people."""
    for path in ("/health/live", "/health/ready", "/health/models", "/metrics", "/v1/models"):
        await world.ask("GET", path)
    assert [line["route"] for line in world.lines] == ["/v1/models"]


async def test_metrics_count_what_happened_with_bounded_labels(world: World) -> None:
    """Requests, tokens and replicas are counted by route and served model; a client cannot invent labels."""
    await world.chat(stream=True)
    await world.chat(model="made-up-by-a-client")
    await world.post("/made/up/by/a/client", {})
    text = (await world.ask("GET", "/metrics", headers={})).body.decode()
    assert f'_requests_total{{model="{MODEL}",outcome="ok",reason="",route="/v1/chat/completions"}} 1.0' in text
    refused = '_requests_total{model="unknown",outcome="rejected",reason="unknown_url",route="other"} 1.0'
    assert refused in text
    assert f'serving_gateway_tokens_total{{kind="completion",model="{MODEL}"}} 2.0' in text
    assert f'serving_gateway_replicas{{model="{MODEL}",state="ready"}} 1.0' in text
    assert "made-up" not in text and "made/up" not in text


async def test_a_request_leaves_one_line_without_its_words(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The access line says who, what, how long and how many tokens; never a prompt, an answer or a key."""
    canary = "canary8b1f"
    await world.chat(messages=[{"role": "user", "content": canary}], stream=True)
    await world.chat(messages=[{"role": "user", "content": canary}], temperature=canary)
    await world.chat(**{canary: canary})
    lines = [line for line in world.lines if line["route"] == "/v1/chat/completions"]
    assert [line["outcome"] for line in lines] == ["ok", "rejected", "rejected"]
    first = lines[0]
    assert first["tenant"] == "acme" and first["model"] == MODEL and first["status"] == 200 and first["ttft_s"]
    assert first["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "cached_prompt_tokens": 3,
        "reasoning_tokens": 1,
        "estimated_by": None,
    }
    assert canary not in caplog.text and world.key not in caplog.text
    assert canary not in json.dumps(world.lines)


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
