"""The relay: bytes pass untouched, failures are replaced before the first byte and said after it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.clock import Clock
from tests.gateway.world import CHAT, QUICK, running_gateway, until
from tests.scripted_engine import (
    DONE,
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
    chat_chunk,
    chat_stream,
    completion_stream,
    error_body,
    failing,
    messages_stream,
    responses_stream,
)

STREAMED = {"stream": True}
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
    """With `continuous_usage_stats` the stream is the engine's, byte for byte."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.chat(stream=True, stream_options=options)
    assert answer.body == b"".join(chat_stream(["Hi", "!"]))


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


@pytest.mark.parametrize(
    ("path", "stream"),
    [("/v1/responses", responses_stream(["Hi", "!"])), ("/v1/messages", messages_stream(["Hi", "!"]))],
)
async def test_typed_events_pass_byte_for_byte(tmp_path: Path, path: str, stream: list[bytes]) -> None:
    """Responses and Messages carry their usage by design: nothing is taken out."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        answer = await world.post(path, ROUTES[path] | STREAMED)
    assert answer.body == b"".join(stream)


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


async def test_a_whole_answer_that_breaks_off_is_cut(tmp_path: Path) -> None:
    """Half a JSON document must look broken to the client, not complete."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([b'{"id":"chatcmpl-1",'], content_type="application/json", ending=Ending.DIE))
        with pytest.raises(Exception, match=r"payload|disconnect|transfer"):
            await world.chat()
        row = await world.row()
    assert row["outcome"] == "error"


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
        ("/v1/messages", messages_stream(["Hi", "there"])[:3], (9, 2), "events_seen"),
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
