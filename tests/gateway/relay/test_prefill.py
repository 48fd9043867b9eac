"""Prefill: long prompts are computed by other engines, and whatever those do, each call has its answer from the one that decodes."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from tests.exposition import value
from tests.gateway.relay.streams import ROUTES, STREAMED, data_of
from tests.gateway.world import QUICK, World, running_gateway, until
from tests.scripted_engine import MODEL, Script, ScriptedEngine, answering, chat_answer, chat_stream, compact, failing

LONG = "The ward keeps a record. " * 200
MESSAGES = [{"role": "user", "content": LONG}]
LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
#: Where an engine says that its KV is.
KV = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_engine_id": "e", "remote_host": "10.0.0.7"}
HANDED = answering(compact({"id": "x", "kv_transfer_params": KV}).encode())


async def handovers(world: World, handover: str) -> float:
    page = (await world.ask("GET", "/metrics")).body
    return value(page, "serving_gateway_prefill_handovers_total", model=MODEL, handover=handover)


def long_call(route: str, word: str) -> dict[str, object]:
    """Its prompt begins like no other: what an engine's cache has is not worth handing over."""
    prompt = f"{word} {LONG}"
    fields = {"/v1/completions": {"prompt": prompt}, "/v1/responses": {"input": prompt}}
    return ROUTES[route] | fields.get(route, {"messages": [{"role": "user", "content": prompt}]})


async def test_the_engine_that_decodes_is_told_where_the_prompt_s_kv_is(tmp_path: Path) -> None:
    """Another one has computed the prompt alone: the same request but for its output. Billed is what the second one says."""
    async with (
        ScriptedEngine() as prefill,
        ScriptedEngine() as decode,
        running_gateway(tmp_path, (decode.url,), prefill_engines=(prefill.url,)) as world,
    ):
        prefill.improvise = lambda path, body: HANDED
        for route, is_streamed in itertools.product(ROUTES, (False, True)):
            answer = await world.post(route, long_call(route, f"{route} {is_streamed}") | {"stream": is_streamed})
            assert answer.status == 200 and b"kv_transfer" not in answer.body and b"10.0.0.7" not in answer.body
            asked, decoded = prefill.received[-1], decode.received[-1]
            assert asked.path == decoded.path == route
            assert decoded.body.pop("kv_transfer_params") == KV
            assert asked.body.pop("kv_transfer_params") == {"do_remote_decode": True, "do_remote_prefill": False}
            assert (asked.body.pop("stream"), decoded.body.pop("stream", False)) == (False, is_streamed)
            assert [asked.body.pop(name) for name in LIMITS & asked.body.keys()] == [1]
            # All else is the same, its tenant's cache salt among it.
            assert asked.body == {
                name: it for name, it in decoded.body.items() if name not in {*LIMITS, "stream_options"}
            }
        await until(lambda: all(row["outcome"] == "ok" for row in world.rows()))
        rows = world.rows()
        assert len(rows) == 2 * len(ROUTES) == await handovers(world, "done")
    assert all(row["completion_tokens"] == 2 and row["estimated_by"] is None for row in rows)
    assert not any(line["retries"] for line in world.lines)


@pytest.mark.parametrize(
    "failure",
    [answering(chat_answer("Hi")), Script(is_mute=True)],
    ids=["no connector", "mute"],
)
async def test_a_prefill_engine_that_fails_costs_no_answer_and_is_left_alone(tmp_path: Path, failure: Script) -> None:
    """Another one is asked; where none is left the engine that decodes computes the prompt. None asks a failed one again at once."""
    async with (
        ScriptedEngine() as bad,
        ScriptedEngine() as good,
        ScriptedEngine() as decode,
        running_gateway(tmp_path, (decode.url,), prefill_engines=(bad.url, good.url)) as world,
    ):
        bad.improvise = lambda path, body: failure
        good.improvise = lambda path, body: HANDED
        for number in range(4):
            answer = await world.post("/v1/chat/completions", long_call("/v1/chat/completions", str(number)))
            assert answer.status == 200 and b"Hi" in answer.body
        assert len(bad.received) == 1 and len(good.received) == 4
        await good.stop()
        answer = await world.post("/v1/chat/completions", long_call("/v1/chat/completions", "alone") | STREAMED)
    assert answer.status == 200 and data_of(answer.body)
    assert ["kv_transfer_params" in it.body for it in decode.received] == [True] * 4 + [False]


async def test_what_is_wrong_with_a_request_the_engine_that_decodes_says(tmp_path: Path) -> None:
    """A prefill engine that refuses it, or is full, is asked again by the next call."""
    async with (
        ScriptedEngine() as prefill,
        ScriptedEngine() as decode,
        running_gateway(tmp_path, (decode.url,), prefill_engines=(prefill.url,)) as world,
    ):
        prefill.say(failing(400, "bad"), failing(503, "full"), HANDED)
        decode.say(failing(400, "temperature must be lower"))
        prompts = [long_call("/v1/chat/completions", str(number)) for number in range(3)]
        answers = [await world.post("/v1/chat/completions", body) for body in prompts]
    assert [answer.status for answer in answers] == [400, 200, 200]
    assert len(prefill.received) == 3 and "kv_transfer_params" in decode.received[-1].body


async def test_only_what_is_worth_it_is_handed_over(tmp_path: Path) -> None:
    """No short prompt, no second turn whose prefix the decoding engine has, and no call with several answers."""
    async with (
        ScriptedEngine() as prefill,
        ScriptedEngine() as decode,
        running_gateway(tmp_path, (decode.url,), prefill_engines=(prefill.url,)) as world,
    ):
        prefill.improvise = lambda path, body: HANDED
        await world.chat()
        await world.chat(messages=MESSAGES, n=2)
        assert not prefill.received
        first = [{"role": "user", "content": f"first {LONG}"}]
        second = [*first, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And then?"}]
        assert [(await world.chat(messages=messages)).status for messages in (first, second)] == [200, 200]
    assert len(prefill.received) == 1 and len(decode.received) == 4


async def test_a_client_s_connection_is_kept_alive_and_its_leaving_ends_the_prefill(tmp_path: Path) -> None:
    """As while any engine is silent."""
    gate = asyncio.Event()
    async with (
        ScriptedEngine() as prefill,
        ScriptedEngine() as decode,
        running_gateway(tmp_path, (decode.url,), prefill_engines=(prefill.url,), timeouts=QUICK) as world,
    ):
        prefill.improvise = lambda path, body: Script(HANDED.writes, content_type="application/json", gate=gate)
        decode.improvise = lambda path, body: Script(chat_stream(["Hi"]))
        url, body = world.url + "/v1/chat/completions", {"model": MODEL, "messages": MESSAGES} | STREAMED
        async with world.client.post(url, json=body, headers=world.headers()) as response:
            assert await response.content.readline() == b": keep-alive\n"
            assert not decode.received
        await until(lambda: prefill.aborted == 1)
        async with world.client.post(url, json=body, headers=world.headers()) as response:
            assert await response.content.readline() == b": keep-alive\n"
            gate.set()
            assert b"Hi" in await response.read()
    assert len(decode.received) == 1
