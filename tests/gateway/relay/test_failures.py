"""Failures: what goes wrong before the first byte is mended at another replica, and after it said; what is no answer is a failure."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.exposition import value
from tests.gateway.answers import recorded_answers
from tests.gateway.relay.streams import LAST, ROUTES, STREAMED, TOOLS, behind_a_comment, data_of
from tests.gateway.world import CHAT, QUICK, running_gateway, until
from tests.scripted_engine import (
    DONE,
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
    chat_answer,
    chat_stream,
    error_body,
    event,
    failing,
    messages_stream,
    responses_stream,
)


async def test_an_engine_that_dies_in_an_answer_that_is_put_together_is_replaced(tmp_path: Path) -> None:
    """The client has seen nothing of it, and gets no comments in JSON."""
    events = recorded_answers.stream("tiny-chat-tool")
    tools = TOOLS["/v1/chat/completions"]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(events[:6], ending=Ending.DIE), Script(events, pace_s=QUICK.keep_alive_s / 4))
        answer = await world.chat(tools=tools)
    assert answer.json["choices"][0]["finish_reason"] == "tool_calls"  # type: ignore[index]
    assert len(engine.received) == 2


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
    # On a slow machine a call or two of them have been earned meanwhile.
    unread = [answer for answer in answers if answer.error["code"] == "overloaded"]
    assert {answer.status for answer in answers} == {503} and len(unread) == 20 - len(rows) > 10
    assert all(int(answer.headers["retry-after"]) >= 2 for answer in unread)
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
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, asked: dict[str, object], said: list[bytes]
) -> None:
    """It begins as its route's do, and further in a key is missing: another follows unseen, and it costs nothing. The log says so
    under the id that the client has.
    """
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(said))
        answer = await world.post(path, asked)
        row = await world.row()
    assert answer.status == 200 and len(engine.received) == 2 and b"Hi" in answer.body
    assert (row["outcome"], row["completion_tokens"], row["estimated_by"]) == ("ok", 2, None)
    logged = [line for line in caplog.messages if "in no shape" in line or "attempt at" in line]
    assert len(logged) == 2
    assert all(line.startswith(f"request {answer.headers['x-request-id']}: ") for line in logged)


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


async def test_an_engine_that_dies_behind_comments_is_still_replaced(tmp_path: Path) -> None:
    """Comments are no answer: until content flows another replica may take over."""
    gate = asyncio.Event()
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(gate=gate, ending=Ending.DIE))
        _, rest = await behind_a_comment(world, gate)
    assert b"Hi" in rest and b"error" not in rest


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
