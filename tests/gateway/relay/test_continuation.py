"""Continuation: a stream whose engine dies goes on at another one, and its client sees no seam."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from serving.errors import GatewayFull
from serving.gateway.relay.continuation import NOTED_BYTES_MAX, TAKEN_BYTES, Continuation, Misaligned
from tests.exposition import value
from tests.gateway.relay.streams import ROUTES, STREAMED, data_of
from tests.gateway.world import World, running_gateway
from tests.scripted_engine import (
    DONE,
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
    chat_chunk,
    chat_final,
    chat_stream,
    completion_stream,
    error_body,
    messages_stream,
    noted,
    responses_stream,
)

WORDS = ["Once", " upon", " a", " time"]


def tool_stream() -> list[bytes]:
    """A chat that reasons, calls a tool in pieces, and ends."""
    function: dict[str, object] = {"name": "get_weather", "arguments": ""}
    call: dict[str, object] = {"id": "chatcmpl-tool-1", "type": "function", "index": 0, "function": function}
    deltas: list[dict[str, object]] = [
        {"reasoning": "Let"},
        {"reasoning": " me"},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ': "Paris"}'}}]},
    ]
    first = chat_chunk({"role": "assistant", "content": ""}, 7, 0, is_first=True)
    chunks = [chat_chunk(delta, 7, count) for count, delta in enumerate(deltas, 1)]
    ending = chat_chunk({}, 7, 6).replace(b'"finish_reason":null', b'"finish_reason":"tool_calls"')
    return [first, *chunks, ending, chat_final(7, 6), DONE]


TOOLS: dict[str, object] = {
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
}
COMPLETION = [*completion_stream([(0, word) for word in WORDS]), chat_final(5, 4), DONE]
#: Path, what is asked besides, and the engine's events.
STREAMS: dict[str, tuple[str, dict[str, object], list[bytes]]] = {
    "chat": ("/v1/chat/completions", {}, chat_stream(WORDS)),
    "chat with usage": ("/v1/chat/completions", {"stream_options": {"include_usage": True}}, chat_stream(WORDS)),
    "a tool call": ("/v1/chat/completions", TOOLS, tool_stream()),
    "completions": ("/v1/completions", {}, COMPLETION),
    "responses": ("/v1/responses", {}, responses_stream(WORDS)),
    "messages": ("/v1/messages", {}, messages_stream(WORDS)),
}
#: A client of Responses gets nothing before the third event (RLY-23).
FIRST = {"responses": 3}
SEAMS = [(name, at) for name, (_, _, stream) in STREAMS.items() for at in range(FIRST.get(name, 1), len(stream))]


def later(stream: Sequence[bytes]) -> list[bytes]:
    """The same events from an engine that began a second later."""
    return [event.replace(b'"created":1,', b'"created":2,') for event in noted(stream)]


async def asked(world: World, name: str) -> bytes:
    path, besides, _ = STREAMS[name]
    answer = await world.post(path, ROUTES[path] | besides | STREAMED)
    assert answer.status == 200
    return answer.body


async def undisturbed(tmp_path: Path, name: str) -> tuple[bytes, dict[str, object]]:
    """What a client gets of a stream, and its row."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path / "undisturbed", (engine.url,)) as world:
        engine.say(Script(STREAMS[name][2]))
        return await asked(world, name), await world.row()


def billed(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[it] for it in ("outcome", "status", "prompt_tokens", "completion_tokens", "estimated_by"))


@pytest.mark.parametrize(("name", "at"), SEAMS)
async def test_no_seam_is_seen_wherever_an_engine_dies(tmp_path: Path, name: str, at: int) -> None:
    """Every byte is that of an undisturbed answer, and there is one row, with the same tokens; the engine that goes on gets the tokens
    before the seam, and nothing that the client has is asked for again.
    """
    stream = STREAMS[name][2]
    whole, row = await undisturbed(tmp_path, name)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(noted(stream)[:at], ending=Ending.DIE), Script(later(stream)))
        body, now = await asked(world, name), await world.row()
        page = (await world.ask("GET", "/metrics")).body
    first, second = engine.received
    assert body == whole and billed(now) == billed(row)
    assert first.sent == [] and first.body == second.body
    assert first.headers["x-serving-seed"] == second.headers["x-serving-seed"]
    if second.sent:
        assert second.sent == [[token] for token in range(at)]
    assert value(page, "serving_gateway_continuations_total", model=MODEL) == bool(second.sent)


@pytest.mark.parametrize("name", list(STREAMS))
async def test_an_engine_dies_in_the_middle_of_an_event(tmp_path: Path, name: str) -> None:
    """What came of the event is not passed on, though its tokens may be known already."""
    stream = STREAMS[name][2]
    whole, row = await undisturbed(tmp_path, name)
    for cut in (10, 14, 20, 40):
        async with ScriptedEngine() as engine, running_gateway(tmp_path / str(cut), (engine.url,)) as world:
            writes = [*noted(stream)[:3], noted(stream)[3][:cut]]
            engine.say(Script(writes, ending=Ending.DIE), Script(later(stream)))
            assert await asked(world, name) == whole and billed(await world.row()) == billed(row)


async def test_several_engines_may_die_under_a_stream(tmp_path: Path) -> None:
    """Also the one that goes on, before it has got to the seam."""
    stream = STREAMS["chat"][2]
    whole, row = await undisturbed(tmp_path, "chat")
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(noted(stream)[:3], ending=Ending.DIE), Script(later(stream)[:2], ending=Ending.DIE))
        engine.say(Script(later(stream)))
        assert await asked(world, "chat") == whole and billed(await world.row()) == billed(row)
    assert [it.sent for it in engine.received] == [[], [[0], [1], [2]], [[0], [1], [2]]]


async def test_an_error_event_of_the_engine_is_a_death_too(tmp_path: Path) -> None:
    """vLLM says of its core's death in the stream."""
    stream = STREAMS["chat"][2]
    whole, _ = await undisturbed(tmp_path, "chat")
    died = b"data: " + error_body(500, "EngineCore died", "InternalServerError") + b"\n\n"
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script([*noted(stream)[:3], died, DONE]), Script(later(stream)))
        assert await asked(world, "chat") == whole


@pytest.mark.parametrize(
    ("first", "continuation"),
    [(noted, False), (list, True)],
    ids=["switched off", "an engine that notes no tokens"],
)
async def test_what_cannot_go_on_ends_in_an_error_event(
    tmp_path: Path, first: Callable[[Sequence[bytes]], list[bytes]], continuation: bool
) -> None:
    """As without continuation; billed for what the client has."""
    stream = STREAMS["chat"][2]
    async with (
        ScriptedEngine() as engine,
        running_gateway(tmp_path, (engine.url,), continuation=continuation) as world,
    ):
        engine.say(Script(first(stream)[:3] if continuation else list(stream)[:3], ending=Ending.DIE))
        body, row = await asked(world, "chat"), await world.row()
    assert data_of(body)[-1]["error"]["code"] == "engine_failed" and len(engine.received) == 1  # type: ignore[index]
    assert (row["outcome"], row["completion_tokens"], row["estimated_by"]) == ("error", 2, "last_chunk")


async def test_an_engine_that_goes_on_otherwise_is_not_believed(tmp_path: Path) -> None:
    """Where its event at the seam is not the one that the client has, the stream ends in an error event."""
    stream = STREAMS["chat"][2]
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(noted(stream)[:3], ending=Ending.DIE), Script(noted(chat_stream(["Twice", " under"]))))
        body, row = await asked(world, "chat"), await world.row()
    assert data_of(body)[-1]["error"]["code"] == "engine_failed"  # type: ignore[index]
    assert b"under" not in body and (row["outcome"], row["completion_tokens"]) == ("error", 2)


async def test_several_choices_are_not_asked_to_go_on(tmp_path: Path) -> None:
    """Their tokens are not in one row."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        await world.chat(stream=True, n=2)
        await world.chat()
    assert [it.headers.get("x-serving-seed") for it in engine.received] == [None, None]


def _begun(take: Callable[[int], None] = lambda count: None) -> Continuation:
    one = Continuation(take)
    one.begin()
    return one


def test_notes_are_taken_out_wherever_they_stand() -> None:
    """Several in a block, with several portions each; text that looks like one stays."""
    one = _begun()
    event = b'data: {"a":": tokens [9]"}\n\n'
    block = b": tokens [1,2]\n\n: tokens [3]\n\n" + event + b": tokens [4]\n\n" + event + b": keep\n\n"
    assert one.received(block) == event + event + b": keep\n\n"
    assert one.lacking(event) == event
    assert json.loads(one.body(b"")) == [[1, 2], [3], [4]]


def test_a_stream_that_is_too_long_cannot_go_on() -> None:
    """What is kept has a bound, and what all calls keep another: past it a stream is as it was before."""
    one, note = _begun(), b": tokens [" + b"1" * 5000 + b"]\n\n"
    for _ in range(NOTED_BYTES_MAX // 5000):
        one.received(note)
    assert one.can_go_on
    one.received(note)
    assert not one.can_go_on and one.received(note + b"data: {}\n\n") == b"data: {}\n\n"
    taken: list[int] = []

    def full(count: int) -> None:
        taken.append(count)
        if len(taken) > 1:
            raise GatewayFull("")

    poor = _begun(full)
    poor.received(b": tokens [1]\n\n")
    assert poor.can_go_on and taken == [TAKEN_BYTES]
    poor.received(note)
    assert not poor.can_go_on


def test_what_an_engine_draws_anew_makes_no_other_event() -> None:
    """Signatures and sealed reasoning."""
    one = _begun()
    one.received(b": tokens [1]\n\n")
    one.lacking(b'data: {"signature":"a"}\n\n')
    one.begin()
    assert one.lacking(b'data: {"signature":"b"}\n\ndata: {}\n\n') == b"data: {}\n\n" and one.resumed == 1
    one.begin()
    with pytest.raises(Misaligned):
        one.lacking(b'data: {"signature":"b"}\n\ndata: {"other":1}\n\n')
