"""The relay: bytes pass untouched, failures are replaced before the first byte and said after it."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chat_answers import ChatShaper
from serving.gateway.answers.chunk_answers import without_private_keys
from serving.gateway.nouns import Usage
from serving.gateway.relay.held import ANSWER_BYTES_MAX
from tests.clock import Clock
from tests.exposition import value
from tests.gateway.answers import recorded_answers
from tests.gateway.world import CHAT, QUICK, running_gateway, until
from tests.scripted_engine import (
    DONE,
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
    chat_answer,
    chat_chunk,
    chat_stream,
    completion_stream,
    error_body,
    event,
    failing,
    messages_stream,
    responses_stream,
)

STREAMED = {"stream": True}
#: The end of a stream of Messages.
LAST = messages_stream(["Hi"])[-1:]
ROUTES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": MODEL, "prompt": "Hello"},
    "/v1/responses": {"model": MODEL, "input": "Hello"},
    "/v1/messages": CHAT | {"max_tokens": 5},
}


def data_of(body: bytes) -> list[dict[str, object]]:
    """The JSON of every event."""
    lines = (line for line in body.decode().split("\n") if line.startswith("data: {"))
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_whole_answer_passes_byte_for_byte(tmp_path: Path) -> None:
    """What the engine said is what the client gets, usage included, and the bill is exact."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.chat()
        row = await world.row()
    assert answer.status == 200 and answer.json["usage"]["completion_tokens"] == 2  # type: ignore[index]
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated_by"]) == (7, 2, None)
    assert (row["outcome"], row["status"], row["model"], row["route"]) == ("ok", 200, MODEL, "/v1/chat/completions")


async def test_unasked_usage_is_taken_out_of_a_stream(tmp_path: Path) -> None:
    """No chunk has usage, no chunk is without a choice, everything else is untouched, and the bill is exact."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.chat(**STREAMED)
        row = await world.row()
    chunks = data_of(answer.body)
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks) and answer.body.endswith(DONE)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "Hi", "!"]  # type: ignore[index]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 2)
    assert (row["cached_prompt_tokens"], row["reasoning_tokens"], row["estimated_by"]) == (3, 1, None)
    assert engine.received[0].body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert answer.headers["x-accel-buffering"] == "no" and answer.headers["cache-control"] == "no-cache"


async def test_asked_usage_comes_in_the_last_chunk_only(tmp_path: Path) -> None:
    """`include_usage` gives one chunk without choices that holds all of it, as at OpenAI."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.chat(stream=True, stream_options={"include_usage": True})
    *chunks, last = data_of(answer.body)
    assert all("usage" not in chunk for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 2  # type: ignore[index]


async def test_continuous_usage_is_left_where_it_was_asked_for(tmp_path: Path) -> None:
    """With `continuous_usage_stats` the stream is the engine's, but for keys that the API lacks."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.chat(stream=True, stream_options=options)
    assert answer.body == without_private_keys(b"".join(chat_stream(["Hi", "!"])))


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("path", "tokens"),
    [
        ("/v1/chat/completions", (7, 2)),
        ("/v1/completions", (7, 2)),
        ("/v1/responses", (11, 2)),
        ("/v1/messages", (9, 2)),
    ],
)
async def test_every_generating_route_is_billed_exactly(
    tmp_path: Path, path: str, tokens: tuple[int, int], is_streamed: bool
) -> None:
    """Each route's own form of usage is read, whole and streamed."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.post(path, ROUTES[path] | {"stream": is_streamed})
        row = await world.row()
    assert answer.status == 200, answer.body
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated_by"]) == (*tokens, None)


async def test_typed_events_pass_byte_for_byte(tmp_path: Path) -> None:
    """Messages carry their usage by design: nothing is taken out."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.post("/v1/messages", ROUTES["/v1/messages"] | STREAMED)
    assert answer.body == b"".join(messages_stream(["Hi", "!"]))


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("path", "name", "field", "rule"),
    [
        ("/v1/chat/completions", "tiny-chat-reasoned", "stop", None),
        ("/v1/responses", "tiny-responses-reasoned", "stop", "events_seen"),
        ("/v1/messages", "tiny-messages-reasoned", "stop_sequences", "events_seen"),
    ],
)
async def test_a_stop_string_stops_the_engine(
    tmp_path: Path, path: str, name: str, field: str, rule: str | None, is_streamed: bool
) -> None:
    """The gateway searches the text that the client sees; at a match it closes the engine's connection."""
    writes = [event for event in recorded_answers.stream(name) if b"[DONE]" not in event][:-3]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(writes, ending=Ending.HANG))
        answer = await world.post(path, ROUTES[path] | {field: ["forty"], "stream": is_streamed})
        await until(lambda: engine.aborted == 1)
        row = await world.row()
    assert answer.status == 200 and b"sum" in answer.body and b"forty" not in answer.body.replace(b'"forty"', b"")
    assert answer.headers["content-type"].startswith("text/event-stream" if is_streamed else "application/json")
    assert engine.received[0].body["stream"] is True and field not in engine.received[0].body
    assert (row["outcome"], row["estimated_by"]) == ("ok", rule)


async def test_a_chat_that_a_stop_string_ended_is_billed_exactly(tmp_path: Path) -> None:
    """Its last chunk says what the answer cost; a client that asked for usage gets the same."""
    options = {"include_usage": True}
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(recorded_answers.stream("tiny-chat-reasoned")[:-1], ending=Ending.HANG))
        answer = await world.chat(stop="forty", stream=True, stream_options=options)
        row = await world.row()
    assert data_of(answer.body)[-1]["usage"]["completion_tokens"] == row["completion_tokens"] == 19  # type: ignore[index]
    assert row["estimated_by"] is None and answer.body.endswith(DONE)


TOOLS: dict[str, object] = {
    "/v1/chat/completions": [{"type": "function", "function": {"name": "get_weather"}}],
    "/v1/responses": [{"type": "function", "name": "get_weather"}],
    "/v1/messages": [{"name": "get_weather", "input_schema": {"type": "object"}}],
}


@pytest.mark.parametrize(
    ("path", "name", "says"),
    [
        ("/v1/chat/completions", "tiny-chat-toolcut26", b'"finish_reason":"length"'),
        ("/v1/responses", "tiny-responses-toolcut26", b'"status":"incomplete"'),
        ("/v1/messages", "tiny-messages-toolcut26", b'"stop_reason":"max_tokens"'),
    ],
)
async def test_a_call_that_the_limit_cut_is_a_whole_answer_that_says_so(
    tmp_path: Path, path: str, name: str, says: bytes
) -> None:
    """It is put together from the engine's stream, and its tokens are billed."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(recorded_answers.stream(name)))
        answer = await world.post(path, ROUTES[path] | {"tools": TOOLS[path]})
        row = await world.row()
    assert answer.status == 200 and answer.json and says in answer.body
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated_by"]) == (122, 26, None)


async def test_an_engine_that_dies_in_an_answer_that_is_put_together_is_replaced(tmp_path: Path) -> None:
    """The client has seen nothing of it, and gets no comments in JSON."""
    events = recorded_answers.stream("tiny-chat-tool")
    tools = TOOLS["/v1/chat/completions"]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(events[:6], ending=Ending.DIE), Script(events, pace_s=QUICK.keep_alive_s / 4))
        answer = await world.chat(tools=tools)
    assert answer.json["choices"][0]["finish_reason"] == "tool_calls"  # type: ignore[index]
    assert len(engine.received) == 2


async def test_embeddings_and_counting(tmp_path: Path) -> None:
    """Embeddings are billed for their prompt; counting tokens is recorded and free."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        await world.post("/v1/embeddings", {"model": MODEL, "input": ["Hello"]})
        await world.post("/tokenize", {"model": MODEL, "prompt": "Hello"})
        await world.post("/v1/messages/count_tokens", CHAT)
        await until(lambda: [row["outcome"] for row in world.rows()] == ["ok"] * 3)
        rows = world.rows()
    assert [(row["prompt_tokens"], row["completion_tokens"]) for row in rows] == [(3, 0), (0, 0), (0, 0)]


async def test_events_split_at_odd_bytes_come_out_whole(tmp_path: Path) -> None:
    """Where an engine's writes are cut makes no difference to what the client gets."""
    whole = b"".join(chat_stream(["é", "\u2028", '","usage":{"a":1}']))
    pieces = [whole[at : at + 3] for at in range(0, len(whole), 3)]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(pieces), Script([whole]))
        cut, uncut = await world.chat(**STREAMED), await world.chat(**STREAMED)
    assert cut.body == uncut.body
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in data_of(cut.body)]  # type: ignore[index]
    assert texts == ["", "é", "\u2028", '","usage":{"a":1}']


@pytest.mark.parametrize(
    "failure",
    [Script(dies_first=True), failing(500, "EngineCore died", "InternalServerError"), failing(503, "draining")],
    ids=["cut", "500", "503"],
)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_a_failure_before_the_first_byte_is_not_seen(tmp_path: Path, failure: Script, is_streamed: bool) -> None:
    """A replica that dies, errs or is busy before it said anything is replaced silently."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(failure)
        answer = await world.chat(stream=is_streamed)
        row = await world.row()
    assert answer.status == 200 and b"Hi" in answer.body and len(engine.received) == 2
    assert row["estimated_by"] is None and row["completion_tokens"] == 2
    assert world.lines[-1]["retries"] == 1


async def test_an_engine_that_is_gone_is_replaced_by_another(tmp_path: Path) -> None:
    """A refused connection costs the client nothing while another replica is ready."""
    async with (
        ScriptedEngine() as stays,
        ScriptedEngine() as goes,
        running_gateway(tmp_path, (goes.url, stays.url)) as world,
    ):
        await goes.stop()
        answers = [await world.chat() for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4 and len(stays.received) == 4


async def test_a_call_waits_for_a_replica_that_comes_back(tmp_path: Path) -> None:
    """With no replica at all a call waits, and is served when one reports ready again."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        await engine.stop()
        waiting = asyncio.create_task(world.chat())
        await until(lambda: any(row["outcome"] == "open" for row in world.rows()))
        await engine.start()
        answer = await waiting
    assert answer.status == 200


async def test_no_replica_in_time_is_a_503_with_a_time_to_retry(tmp_path: Path) -> None:
    """After `replica_wait_s` the client gets a 503 with the retry headers that its SDK reads."""
    brief = QUICK.model_copy(update={"replica_wait_s": 0.1})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=brief) as world:
        await engine.stop()
        answer = await world.chat(**STREAMED)
        row = await world.row()
    assert answer.status == 503 and answer.error["code"] == "no_replica_ready"
    assert answer.headers["retry-after"] == "5" and answer.headers["x-should-retry"] == "true"
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated_by"]) == (0, 0, None)


async def test_a_call_that_kills_engines_is_given_up(tmp_path: Path) -> None:
    """A request under which three attempts died is not tried on a fourth."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(*[failing(500, "EngineDeadError", "InternalServerError")] * 5)
        answer = await world.chat()
    assert answer.status == 502 and answer.error["code"] == "engine_failed" and len(engine.received) == 3
    assert b"EngineDeadError" not in answer.body


@pytest.mark.parametrize("status", [500, 503])
async def test_a_fleet_that_fails_everywhere_is_not_asked_much_more_often(tmp_path: Path, status: int) -> None:
    """1.2 times the calls, and ten more; every call still has its answer in time."""
    calls = 60
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), refused_per_key=calls) as world:
        engine.improvise = lambda path, body: failing(status, "no", "InternalServerError")
        answers = [await world.chat() for _ in range(calls)]
        page = (await world.ask("GET", "/metrics")).body
    assert {answer.status for answer in answers} == {502 if status == 500 else 503}
    assert len(engine.received) <= 1.2 * calls + 10
    granted = value(page, "serving_gateway_retry_budget_total", model=MODEL, decision="granted")
    assert granted == len(engine.received) - calls
    assert value(page, "serving_gateway_retry_budget_total", model=MODEL, decision="refused") > 0


def answer_by_length(path: str, body: dict[str, object]) -> Script:
    """A stream begins and hangs, a long answer does not come, a short one does."""
    if body.get("stream"):
        return Script(chat_stream(["Hi"])[:2], ending=Ending.HANG)
    return (
        Script(is_mute=True)
        if body["max_tokens"] == 4_000
        else Script([chat_answer("Hi")], content_type="application/json")
    )


async def test_a_long_prompt_weighs_on_its_replica_until_the_first_token(tmp_path: Path) -> None:
    """Then only its output does: a third call goes there, and not where a longer answer is being made."""
    async with (
        ScriptedEngine() as one,
        ScriptedEngine() as other,
        running_gateway(tmp_path, (one.url, other.url)) as world,
    ):
        for engine in (one, other):
            engine.improvise = answer_by_length
        prompt = [{"role": "user", "content": "x" * 40_000}]
        url, body = world.url + "/v1/chat/completions", CHAT | STREAMED | {"messages": prompt, "max_tokens": 16}
        async with world.client.post(url, json=body, headers=world.headers()) as response:
            assert response.status == 200
            (reader,) = [engine for engine in (one, other) if engine.received]
            long_answer = asyncio.create_task(world.chat(max_tokens=4_000))
            await until(lambda: one.received and other.received)
            assert (await world.chat(max_tokens=16)).status == 200
            long_answer.cancel()
        assert len(reader.received) == 2


async def test_a_replica_that_fails_its_calls_is_left_out(tmp_path: Path) -> None:
    """Five failures, none of which a client sees; then all calls go to the other."""
    async with (
        ScriptedEngine() as bad,
        ScriptedEngine() as good,
        running_gateway(tmp_path, (bad.url, good.url)) as world,
    ):
        bad.improvise = lambda path, body: failing(500, "no", "InternalServerError")
        answers = [await world.chat() for _ in range(20)]
        page = (await world.ask("GET", "/metrics")).body
    assert {answer.status for answer in answers} == {200} and len(good.received) == 20
    assert len(bad.received) == 5
    assert value(page, "serving_gateway_outlier_ejections_total", model=MODEL) == 1
    assert value(page, "serving_gateway_outlier_replicas", model=MODEL, state="ejected") == 1


async def test_a_key_that_tries_again_at_once_is_refused_unread(tmp_path: Path) -> None:
    """Its refusals cost the gateway and the ledger no more than a few calls'; another key is served on."""
    brief = QUICK.model_copy(update={"replica_wait_s": 0.01})
    async with (
        ScriptedEngine() as engine,
        running_gateway(tmp_path, (engine.url,), timeouts=brief, refused_per_key=3) as world,
    ):
        await engine.stop()
        answers = [await world.chat() for _ in range(20)]
        rows, page = world.rows(), (await world.ask("GET", "/metrics")).body
        other = {"Authorization": f"Bearer {world.key_of_another('b')}", "Content-Type": "application/json"}
        another = await world.ask("POST", "/v1/chat/completions", CHAT, other)
    assert {answer.status for answer in answers} == {503} and len(rows) < 10
    assert answers[-1].error["code"] == "overloaded" and int(answers[-1].headers["retry-after"]) >= 2
    assert value(page, "serving_gateway_admissions_total", decision="refused_key") == 20 - len(rows)
    assert another.error["code"] == "no_replica_ready"


@pytest.mark.parametrize("ending", [Ending.DIE, Ending.END])
@pytest.mark.parametrize(
    ("path", "stream", "last"),
    [
        ("/v1/chat/completions", chat_stream(["Hi"])[:2], DONE),
        ("/v1/responses", responses_stream(["Hi"])[:3], b""),
        ("/v1/messages", messages_stream(["Hi"])[:2], b""),
    ],
)
async def test_a_stream_that_breaks_ends_in_an_error_event(
    tmp_path: Path, path: str, stream: list[bytes], last: bytes, ending: Ending
) -> None:
    """After the first byte a failure is an event the route's clients raise on, never an empty success."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(stream, ending=ending))
        answer = await world.post(path, ROUTES[path] | STREAMED)
        row = await world.row()
    assert answer.status == 200 and answer.body.endswith(last)
    assert data_of(answer.body)[-1]["error"]["message"] == "The engine failed while answering; please try again."  # type: ignore[index]
    assert (row["outcome"], row["status"]) == ("error", 200) and row["estimated_by"]
    if path != "/v1/chat/completions":
        assert b"\n\nevent: error\ndata: " in answer.body


async def test_an_error_event_of_the_engine_is_translated(tmp_path: Path) -> None:
    """vLLM's in-stream errors come out in our words, with what was said before them."""
    fault = b"data: " + error_body(500, "Internal server error at /opt/vllm/engine.py", "InternalServerError") + b"\n\n"
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([b"".join([*chat_stream(["Hi"])[:2], fault, DONE])]))
        answer = await world.chat(**STREAMED)
    assert b"Hi" in answer.body and answer.body.count(DONE) == 1 and b"/opt" not in answer.body
    assert data_of(answer.body)[-1]["error"]["code"] == "engine_failed"  # type: ignore[index]


async def test_a_client_error_as_first_event_is_a_plain_400(tmp_path: Path) -> None:
    """What vLLM can only say inside a stream is still a status to a client that has seen nothing yet."""
    fault = b"data: " + error_body(400, "Bad grammar") + b"\n\n" + DONE
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([fault]))
        answer = await world.chat(**STREAMED)
        row = await world.row()
    assert answer.status == 400 and answer.error["message"] == "Bad grammar"
    assert (row["outcome"], row["prompt_tokens"]) == ("rejected", 0)


#: What is no answer of any route, whatever status it comes with.
NO_ANSWERS = {
    "html": b"<html><body>502 at http://10.0.0.7:8001/opt/vllm</body></html>",
    "error": error_body(500, "died at /opt/vllm/engine.py", "InternalServerError"),
    "done": DONE,
    "garbage": b"\x00\xff\xfe",
    "list": b"[]",
    "other object": b'{"object":"list","models":[]}',
    "empty": b"",
    "no sequence": b'{"choices":[],"output":null,"content":{},"data":[]}',
}


@pytest.mark.parametrize("said", NO_ANSWERS.values(), ids=NO_ANSWERS)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ROUTES)
async def test_a_status_of_200_alone_is_no_answer(tmp_path: Path, path: str, is_streamed: bool, said: bytes) -> None:
    """What has not the route's shape is a failed attempt: another follows unseen, and nothing of it gets out."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([said] if said else []))
        answer = await world.post(path, ROUTES[path] | {"stream": is_streamed})
        row = await world.row()
    assert answer.status == 200 and len(engine.received) == 2
    assert b"Hi" in answer.body or json.loads(answer.body)["usage"]
    assert b"/opt" not in answer.body and not answer.body.startswith(DONE)
    assert (row["outcome"], row["completion_tokens"], row["estimated_by"]) == ("ok", 2, None)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_an_engine_that_never_answers_in_the_routes_shape_is_a_502(tmp_path: Path, is_streamed: bool) -> None:
    """After three attempts the client gets our words and pays nothing; what the engine said stays inside."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(*[Script([NO_ANSWERS["html"] + b"\n\n"])] * 3)
        answer = await world.chat(stream=is_streamed)
        row = await world.row()
    assert answer.status == 502 and answer.error["code"] == "engine_failed" and b"html" not in answer.body
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("error", 0, 0)
    assert world.lines[-1]["retries"] == 3


OFFERING = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}
MISSHAPEN: dict[str, tuple[str, dict[str, object], list[bytes]]] = {
    "choice without delta": (
        "/v1/chat/completions",
        CHAT | {"stream": True, "stop": ["."]},
        [b'data: {"choices":[{}]}\n\n'],
    ),
    "chunk without choices": ("/v1/chat/completions", CHAT | OFFERING, [b'data: {"choices":[]}\n\ndata: {"x":1}\n\n']),
    "no choice at all": ("/v1/chat/completions", CHAT | OFFERING, [b'data: {"choices":[]}\n\n', DONE]),
    "delta without index": (
        "/v1/messages",
        CHAT | {"max_tokens": 5, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
        [messages_stream([])[0], event("content_block_delta", {"type": "content_block_delta"}), *LAST],
    ),
    "calls without reason": ("/v1/chat/completions", CHAT, [b'{"choices":[{"message":{"tool_calls":[{}]}}]}']),
}


@pytest.mark.parametrize(("path", "asked", "said"), MISSHAPEN.values(), ids=MISSHAPEN)
async def test_an_answer_that_cannot_be_read_is_a_failed_attempt(
    tmp_path: Path, path: str, asked: dict[str, object], said: list[bytes]
) -> None:
    """It begins as its route's do, and further in a key is missing: another follows unseen, and it costs nothing."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(said))
        answer = await world.post(path, asked)
        row = await world.row()
    assert answer.status == 200 and len(engine.received) == 2 and b"Hi" in answer.body
    assert (row["outcome"], row["completion_tokens"], row["estimated_by"]) == ("ok", 2, None)


async def test_a_stream_that_cannot_be_read_any_more_ends_in_an_error_event(tmp_path: Path) -> None:
    """It is the engine's failure: an error event once bytes went out, another attempt if it was all read together."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([*chat_stream(["Hi"])[:2], b'data: {"choices":[{}]}\n\n', DONE], pace_s=0.2))
        answer = await world.chat(stream=True, stop=["."])
    has_failed = data_of(answer.body)[-1].get("error", {}).get("code") == "engine_failed"  # type: ignore[attr-defined]
    assert answer.status == 200 and has_failed != (b"internal_error" in answer.body or b'"content":"!"' in answer.body)


async def test_a_first_event_in_another_shape_behind_comments_is_no_answer(tmp_path: Path) -> None:
    """A proxy's comments before it make it no better, and are not passed on either."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([b": proxy at 10.0.0.7\n\n", b"data: <html>\n\n"]))
        answer = await world.chat(**STREAMED)
    assert b"Hi" in answer.body and b"html" not in answer.body and b"10.0.0.7" not in answer.body


@pytest.mark.parametrize("length", [1, 20, len(chat_answer("Hi")) - 1])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
async def test_a_whole_answer_cut_in_the_middle_is_asked_for_again(
    tmp_path: Path, length: int, is_chunked: bool
) -> None:
    """A whole answer is held until it is complete: wherever its engine dies, another can answer unseen."""
    whole = chat_answer("Hi")
    headers = {} if is_chunked else {"Content-Length": str(len(whole))}
    cut = Script([whole[:length]], content_type="application/json", ending=Ending.DIE, headers=headers)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(cut)
        answer = await world.chat()
        row = await world.row()
    assert answer.status == 200 and b"Hi!" in answer.body and (row["outcome"], row["completion_tokens"]) == ("ok", 2)


async def test_an_answer_past_the_bound_goes_on_as_it_comes(tmp_path: Path) -> None:
    """What is too large to be held passes whole, and looks broken, not complete, when its engine dies."""
    large = chat_answer("x" * 2 * ANSWER_BYTES_MAX)
    head = large[: ANSWER_BYTES_MAX + 1]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([large]), Script([head], ending=Ending.DIE), Script([b"<" * len(head)]))
        answer = await world.chat()
        with pytest.raises(Exception, match=r"payload|disconnect|transfer"):
            await world.chat()
        retried = await world.chat()
        await until(lambda: all(row["outcome"] != "open" for row in world.rows()))
        rows = world.rows()
    assert answer.body == large and b"Hi!" in retried.body
    assert [(row["outcome"], row["estimated_by"] is None) for row in rows] == [
        ("ok", True),
        ("error", False),
        ("ok", True),
    ]


async def test_an_engine_silent_within_a_large_answer_is_given_up(tmp_path: Path) -> None:
    """It goes on as it comes, so it breaks off there, within `engine_silence_s`."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    head = chat_answer("x" * 2 * ANSWER_BYTES_MAX)[: ANSWER_BYTES_MAX + 1]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script([head], ending=Ending.HANG))
        with pytest.raises(Exception, match=r"payload|disconnect|transfer"):
            await world.chat()
        await until(lambda: engine.aborted == 1)


async def test_a_compressed_answer_arrives_whole(tmp_path: Path) -> None:
    """An engine, or a proxy before it, that compresses unasked: the length is that of what the client gets."""
    small, large = chat_answer("Hi"), chat_answer("x" * 2 * ANSWER_BYTES_MAX)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        for said in (small, large):
            packed = gzip.compress(said)
            length = {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
            engine.say(Script([packed], content_type="application/json", headers=length))
        answers = [await world.chat(), await world.chat()]
    shaped = ChatShaper(Asked(), Usage).whole(small)
    assert [answer.body for answer in answers] == [shaped, large]
    assert "content-encoding" not in answers[0].headers and answers[0].headers["content-length"] == str(len(shaped))


async def test_what_follows_the_end_is_no_part_of_the_answer(tmp_path: Path) -> None:
    """An engine that goes on after the end is cut off; the answer is complete, its row ok and exact."""
    junk = b'data: {"junk":1}\n\n'
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        chat = chat_stream(["Hi"])
        engine.say(Script([*chat[:-1], DONE + junk, *[junk] * 10_000], pace_s=0.01))
        answer = await world.chat(**STREAMED)
        await until(lambda: engine.aborted == 1)
        row = await world.row()
    assert answer.body.endswith(DONE) and b"junk" not in answer.body and answer.body.count(DONE) == 1
    assert (row["outcome"], row["completion_tokens"], row["estimated_by"]) == ("ok", 1, None)


async def test_bytes_without_a_border_are_bridged_too(tmp_path: Path) -> None:
    """An event that comes in drops keeps no connection alive: the client gets comments until it is whole."""
    first, *rest = chat_stream(["Hi"])
    pieces = [first[at : at + 8] for at in range(0, len(first), 8)]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([*pieces, *rest], pace_s=0.02))
        answer = await world.chat(**STREAMED)
    assert answer.body.startswith(b": keep-alive\n\n") and b"Hi" in answer.body and answer.body.endswith(DONE)


REFUSED = "Something about the request. (parameter=tools)"
OPENINGS: dict[str, list[bytes]] = {
    "/v1/chat/completions": [b"data: " + error_body(400, REFUSED) + b"\n\n", DONE],
    "/v1/responses": recorded_answers.stream("tiny-responses-reasoned")[:2],
    "/v1/messages": [b"event: error\ndata: " + recorded_answers.wrapped(400) + b"\n\n"],
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", OPENINGS)
async def test_a_fault_of_the_request_is_the_same_400_everywhere(tmp_path: Path, path: str, is_streamed: bool) -> None:
    """An engine that finds it inside a stream says so, breaks off or wraps it: then the call is asked whole, once."""
    refused = failing(400, REFUSED)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(*[Script(OPENINGS[path], ending=Ending.DIE), refused] if is_streamed else [refused])
        answer = await world.post(path, ROUTES[path] | {"stream": is_streamed})
        row = await world.row()
    assert (answer.status, answer.error["message"]) == (400, "Something about the request.")
    assert answer.headers["x-should-retry"] == "false"
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("rejected", 0, 0)
    streamed = [received.body.get("stream") for received in engine.received]
    assert streamed in ([True], [True, False]) if is_streamed else streamed == [False]


async def test_a_stream_that_breaks_at_its_beginning_is_tried_again(tmp_path: Path) -> None:
    """Where the engine does not refuse the call, it was the engine that failed."""
    broken = Script(OPENINGS["/v1/responses"], ending=Ending.DIE)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(broken, Script(dies_first=True))
        answer = await world.post("/v1/responses", ROUTES["/v1/responses"] | STREAMED)
    assert answer.status == 200 and b"response.completed" in answer.body
    assert [received.body["stream"] for received in engine.received] == [True, False, True]


async def test_silence_is_bridged_by_comments(tmp_path: Path) -> None:
    """While an engine thinks, headers and comments keep proxies from cutting the stream; the answer follows."""
    gate = asyncio.Event()
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(chat_stream(["Hi"]), gate=gate))
        async with world.client.post(
            world.url + "/v1/chat/completions", json=CHAT | STREAMED, headers=world.headers()
        ) as response:
            assert await response.content.readline() == b": keep-alive\n"
            gate.set()
            rest = await response.read()
    assert response.headers["content-type"].startswith("text/event-stream") and b"Hi" in rest


async def test_an_engine_that_dies_behind_comments_is_still_replaced(tmp_path: Path) -> None:
    """Comments are no answer: until content flows another replica may take over."""
    gate = asyncio.Event()
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(gate=gate, ending=Ending.DIE))
        async with world.client.post(
            world.url + "/v1/chat/completions", json=CHAT | STREAMED, headers=world.headers()
        ) as response:
            assert await response.content.readline() == b": keep-alive\n"
            gate.set()
            rest = await response.read()
    assert b"Hi" in rest and b"error" not in rest


async def test_a_silent_engine_is_given_up(tmp_path: Path) -> None:
    """A wedged engine ends in a time-out that is said, not in a stream that never ends."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.HANG))
        answer = await world.chat(**STREAMED)
        await until(lambda: engine.aborted == 1)
    assert data_of(answer.body)[-1]["error"]["code"] == "engine_timeout"  # type: ignore[index]


async def test_an_engine_that_never_answers_a_stream_is_given_up(tmp_path: Path) -> None:
    """An engine that takes a call and does not even send headers is as wedged as one that falls silent later."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(is_mute=True))
        answer = await world.chat(**STREAMED)
        await until(lambda: engine.aborted == 1)
    assert (answer.status, answer.error["code"], len(engine.received)) == (504, "engine_timeout", 1)
    assert answer.error["message"] == "The engine sent nothing for too long."


async def test_a_call_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """No request outlives `request_total_s`, and the engine stops working on it."""
    timeouts = QUICK.model_copy(update={"request_total_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(ending=Ending.HANG, content_type="application/json"))
        answer = await world.chat()
        await until(lambda: engine.aborted == 1)
    assert answer.status == 504 and answer.error["code"] == "engine_timeout"


@pytest.mark.parametrize(
    ("path", "stream", "expected", "rule"),
    [
        ("/v1/chat/completions", chat_stream(["Hi", "there"])[:3], (7, 2), "last_chunk"),
        ("/v1/responses", responses_stream(["Hi", "there"])[:4], None, "events_seen"),
        ("/v1/messages", messages_stream(["Hi", "there"])[:3], (9, 3 + 2), "events_seen"),
        ("/v1/chat/completions", [], None, "prompt_bytes"),
    ],
)
async def test_a_client_that_leaves_stops_the_engine_and_is_billed(
    tmp_path: Path, path: str, stream: list[bytes], expected: tuple[int, int] | None, rule: str
) -> None:
    """A disconnect aborts the engine's work at once; what was generated is on the bill, marked with its rule."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(stream, ending=Ending.HANG))
        body = ROUTES[path] | STREAMED
        response = await world.client.post(world.url + path, json=body, headers=world.headers())
        while stream and b"there" not in await response.content.readline():
            pass
        response.close()
        await until(lambda: engine.aborted == 1 and engine.running == 0)
        row = await world.row()
    assert (row["outcome"], row["estimated_by"]) == ("client_disconnected", rule)
    assert expected is None or (row["prompt_tokens"], row["completion_tokens"]) == expected
    assert int(str(row["prompt_tokens"])) > 0 and world.lines[-1]["status"] == 499


@pytest.mark.parametrize("ending", Ending)
async def test_a_client_that_closes_after_the_end_finished_normally(tmp_path: Path, ending: Ending) -> None:
    """Official clients close the connection after `[DONE]`: the call is ok and exact, whatever the engine does next."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(chat_stream(["Hi", " there"]), ending=ending))
        response = await world.client.post(
            world.url + "/v1/chat/completions", json=CHAT | STREAMED, headers=world.headers()
        )
        while b"[DONE]" not in await response.content.readline():
            pass
        response.close()
        row = await world.row()
    assert (row["outcome"], row["status"], row["estimated_by"]) == ("ok", 200, None)


async def test_a_client_that_leaves_a_whole_answer_is_billed_by_time(tmp_path: Path) -> None:
    """Without a stream nothing says how far the engine got: prompt by bytes, output by time, within the client's limit."""
    clock = Clock()
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), clock=clock) as world:
        engine.say(Script(ending=Ending.HANG, content_type="application/json"))
        asking = asyncio.create_task(world.chat(max_tokens=3))
        await until(lambda: engine.running == 1)
        # The engine's own time: the rule bills 20 tokens a second before anything was learned.
        clock.advance(60)
        asking.cancel()
        await until(lambda: engine.aborted == 1)
        row = await world.row()
    assert row["estimated_by"] == "bytes_sent_time_elapsed" and row["completion_tokens"] == 3


async def test_several_choices_are_billed_together(tmp_path: Path) -> None:
    """Each chunk counts its own choice: a cut stream is billed for all of them, each prompt once."""
    texts = [(0, "a"), (1, "b"), (0, "c"), (2, "d"), (3, "e")]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(completion_stream(texts), ending=Ending.HANG))
        body = {"model": MODEL, "prompt": ["x", "y"], "n": 2, "stream": True}
        response = await world.client.post(world.url + "/v1/completions", json=body, headers=world.headers())
        while b'"e"' not in await response.content.readline():
            pass
        response.close()
        row = await world.row()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (10, 5)


async def test_memory_stays_bounded_before_a_slow_client(tmp_path: Path) -> None:
    """Backpressure: a client that does not read makes the engine wait, and nothing piles up in the gateway."""
    text = "x" * 60_000
    chunk = chat_chunk({"content": text}, 7, 1)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([chunk] * 400 + chat_stream(["Hi"])[-2:]))
        response = await world.client.post(
            world.url + "/v1/chat/completions", json=CHAT | STREAMED, headers=world.headers()
        )
        await until(lambda: world.write_waits % 2)
        is_held_back = engine.running == 1
        body = await response.read()
    assert is_held_back and body.count(text.encode()) == 400


async def test_a_whole_answer_that_never_comes_is_given_up(tmp_path: Path) -> None:
    """An engine that counts no token for so long is as wedged as one whose stream falls silent."""
    timeouts = QUICK.model_copy(update={"engine_silence_s": 0.3})
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), timeouts=timeouts) as world:
        engine.say(Script(is_mute=True), Script([chat_answer("Hi")[:20]], ending=Ending.HANG))
        answers = [await world.chat(), await world.chat()]
        await until(lambda: engine.aborted == 2)
    assert [(answer.status, answer.error["code"]) for answer in answers] == [(504, "engine_timeout")] * 2


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_a_call_on_an_ejected_replica_goes_to_another(tmp_path: Path, is_streamed: bool) -> None:
    """Its cell says that it failed while it still holds the connection: what had no byte yet is asked for again at once."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(is_mute=True))
        asking = asyncio.create_task(world.chat(stream=is_streamed))
        await until(lambda: engine.running == 1)
        engine.is_healthy = False
        await until(lambda: engine.aborted == 1)
        engine.is_healthy = True
        answer = await asking
    assert answer.status == 200 and b"Hi" in answer.body and len(engine.received) == 2


async def test_a_stream_on_an_ejected_replica_ends_in_an_error_event(tmp_path: Path) -> None:
    """What it has sent stands; the client hears that there is no more, and not after minutes of silence."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.HANG))
        response = await world.client.post(
            world.url + "/v1/chat/completions", json=CHAT | STREAMED, headers=world.headers()
        )
        while b"Hi" not in await response.content.readline():
            pass
        engine.is_healthy = False
        rest = await response.read()
        row = await world.row()
    assert data_of(rest)[-1]["error"]["code"] == "engine_failed"  # type: ignore[index]
    assert (row["outcome"], row["completion_tokens"]) == ("error", 1)
