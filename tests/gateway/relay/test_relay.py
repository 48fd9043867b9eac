"""The relay: bytes pass untouched and are billed, whatever the client does meanwhile."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.chat_answers import ChatShaper
from serving.gateway.answers.chunk_answers import without_private_keys
from serving.gateway.nouns import Usage
from serving.gateway.relay.held import ANSWER_BYTES_MAX
from tests.clock import Clock
from tests.gateway.answers import recorded_answers
from tests.gateway.relay.streams import ROUTES, STREAMED, TOOLS, data_of
from tests.gateway.world import CHAT, running_gateway, until
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
    messages_stream,
    responses_stream,
)


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
    assert row["counted_apart"] is None


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
    # Its engine may have made some tokens more.
    assert (row["outcome"], row["estimated_by"], row["counted_apart"]) == ("ok", rule, "stopped_here")


async def test_a_chat_that_a_stop_string_ended_is_billed_exactly(tmp_path: Path) -> None:
    """Its last chunk says what the answer cost; a client that asked for usage gets the same."""
    options = {"include_usage": True}
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(recorded_answers.stream("tiny-chat-reasoned")[:-1], ending=Ending.HANG))
        answer = await world.chat(stop="forty", stream=True, stream_options=options)
        row = await world.row()
    assert data_of(answer.body)[-1]["usage"]["completion_tokens"] == row["completion_tokens"] == 19  # type: ignore[index]
    assert row["estimated_by"] is None and answer.body.endswith(DONE)


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
