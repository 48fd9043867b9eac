"""Responses: what a tenant has stored is there for its own calls, at any gateway, through OpenAI's own client."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.policies import Policy
from serving.gateway.stored import items
from serving.gateway.stored.conversations import Conversations
from serving.gateway.stored.shelf import New, Shelf
from serving.gateway.stored.vault import Vault
from tests.gateway.places import Place
from tests.gateway.stored.shelves import KEPT_S, answer
from tests.gateway.stored.speaking import called, message, speaking, thought, told
from tests.gateway.world import QUICK, World, running_gateway, slow_reader, until
from tests.scripted_engine import MODEL, ScriptedEngine, unscripted

STORES = Policy(store_responses=True)


def client_of(world: World, key: str | None = None) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=world.url + "/v1", api_key=key or world.key, max_retries=0)


@asynccontextmanager
async def storing(home: Path, engine: ScriptedEngine, place: Place | None = None) -> AsyncIterator[World]:
    async with running_gateway(home, (engine.url,), place=place) as world:
        await world.bound(STORES)
        yield world


def storing_at(place: Place) -> tuple[dict[str, str], str]:
    """Settings of gateway processes at this place, and a key of a tenant that stores."""
    settings = place.environment() | {"SERVING_STORE__VAULT_FILE": str(place.home / "vault.keys")}
    settings["SERVING_STORE__PEPPER_FILE"] = str(place.home / "pepper")
    with place.open() as store:
        keyring = Keyring.open(store)
        Vault.at(place.home, may_make=True)
        registry = Registry(store, keyring, time.time)
        registry.create_tenant("acme", STORES)
        return settings, registry.create_key("acme")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_goes_on_from_one_that_is_stored(tmp_path: Path, engine: ScriptedEngine, stream: bool) -> None:
    """The engine is told what was said before, and is itself called stateless; the id is the gateway's, everywhere the same."""
    engine.improvise = speaking([thought("hm"), message("Blue.")], [message("The sky.")])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        if stream:
            async with client.responses.stream(model=MODEL, input="Which colour?") as events:
                first = await events.get_final_response()
        else:
            first = await client.responses.create(model=MODEL, input="Which colour?")
        second = await client.responses.create(model=MODEL, input="Of what?", previous_response_id=first.id)
        found = await client.responses.retrieve(second.id)

    assert first.id.startswith("resp_") and len(first.id) == 53
    assert (found.id, found.output_text, found.previous_response_id) == (second.id, "The sky.", first.id)
    assert [told(it.body) for it in engine.received] == [
        ["user: Which colour?"],
        ["user: Which colour?", "assistant: Blue.", "user: Of what?"],
    ]
    assert all(it.body["store"] is False and "previous_response_id" not in it.body for it in engine.received)


async def test_input_items_are_listed_by_pages(tmp_path: Path, engine: ScriptedEngine) -> None:
    """All that a response was made of, the newest first as at OpenAI, each item with an id to go on behind."""
    engine.improvise = speaking([message("Blue.")])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        first = await client.responses.create(model=MODEL, input="Which colour?")
        second = await client.responses.create(
            model=MODEL, input=[{"role": "user", "content": "Of what?"}], previous_response_id=first.id
        )
        page = await client.responses.input_items.list(second.id, limit=2)
        listed = [item async for item in page]
        forwards = (await client.responses.input_items.list(second.id, order="asc", after=listed[-1].id)).data
        unknown = await world.ask("GET", f"/v1/responses/{second.id}/input_items?after=msg_x")

    texts = [part.text for item in listed for part in item.content]
    assert texts == ["Of what?", "Blue.", "Which colour?"]
    assert page.has_more
    assert [item.id for item in forwards] == [listed[1].id, listed[0].id]
    assert (unknown.status, unknown.error["message"]) == (
        404,
        f"Item with id 'msg_x' not found in the input of response with id '{second.id}'.",
    )


async def test_a_branch_leaves_the_other_alone(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Two answers to one response each know what led to them."""
    engine.improvise = speaking([message("Blue.")])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        root = await client.responses.create(model=MODEL, input="root")
        left = await client.responses.create(model=MODEL, input="left", previous_response_id=root.id)
        await client.responses.create(model=MODEL, input="right", previous_response_id=root.id)
        await client.responses.create(model=MODEL, input="more", previous_response_id=left.id)

    assert told(engine.received[2].body) == ["user: root", "assistant: Blue.", "user: right"]
    assert told(engine.received[3].body)[2:] == ["user: left", "assistant: Blue.", "user: more"]


async def test_what_was_deleted_is_not_gone_on_from(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Nor is what went on from it, which can still be read; both say what is missing in OpenAI's words."""
    engine.improvise = speaking([message("Blue.")])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        root = await client.responses.create(model=MODEL, input="root")
        child = await client.responses.create(model=MODEL, input="child", previous_response_id=root.id)
        await client.responses.delete(root.id)

        with pytest.raises(openai.NotFoundError, match=f"Response with id '{root.id}' not found."):
            await client.responses.retrieve(root.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(root.id)
        for parent in (root, child):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(model=MODEL, input="more", previous_response_id=parent.id)
            assert refused.value.code == "previous_response_not_found"
            assert refused.value.param == "previous_response_id"
            assert f"'{root.id}' not found. It was deleted." in refused.value.message
        assert (await client.responses.retrieve(child.id)).output_text == "Blue."


async def test_nothing_is_another_tenants(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Each route answers another tenant as if there were no such id, and a tenant that stores nothing as if there were no such route."""
    engine.improvise = speaking([message("Blue.")])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        mine = await client.responses.create(model=MODEL, input="mine")
        other = world.key_of_another("rival")
        headers = {"Authorization": f"Bearer {other}"}
        paths = [("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")]
        off = [await world.ask(method, f"/v1/responses/{mine.id}{rest}", headers=headers) for method, rest in paths]
        world.registry.update_tenant("rival", policy=STORES)
        async with client_of(world, other) as theirs:
            while True:
                on = [
                    await world.ask(method, f"/v1/responses/{mine.id}{rest}", headers=headers) for method, rest in paths
                ]
                if on[0].error["code"] != "unknown_url":
                    break
            with pytest.raises(openai.BadRequestError, match="not found"):
                await theirs.responses.create(model=MODEL, input="x", previous_response_id=mine.id)
        assert (await client.responses.retrieve(mine.id)).id == mine.id

    assert {(it.status, it.error["code"]) for it in off} == {(404, "unknown_url")}
    said = {(it.status, it.error["code"], it.error["message"]) for it in on}
    assert said == {(404, "not_found", f"Response with id '{mine.id}' not found.")}


async def test_stored_items_are_referred_to(tmp_path: Path, engine: ScriptedEngine) -> None:
    """As the AI SDK does instead of naming a response: the engine is told what they say, and what goes on from that has it too."""
    mine, yours = message("Blue.") | {"id": "msg_1"}, message("Sky.") | {"id": "msg_2"}
    engine.improvise = speaking([thought("hm"), mine], [yours])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        first = await client.responses.create(model=MODEL, input="Which colour?")
        refs = [{"type": "item_reference", "id": it.id} for it in first.output]
        second = await client.responses.create(model=MODEL, input=[*refs, {"role": "user", "content": "Of what?"}])
        again = [{"type": "item_reference", "id": "msg_2"}, {"role": "user", "content": "Sure?"}]
        await client.responses.create(model=MODEL, input=again, previous_response_id=second.id)
        with pytest.raises(openai.NotFoundError, match="Item with id 'msg_3' not found") as missed:
            await client.responses.create(model=MODEL, input=[{"type": "item_reference", "id": "msg_3"}])
        compact = await world.post("/v1/responses/compact", {"model": MODEL})

    assert told(engine.received[1].body) == ["reasoning: hm", "assistant: Blue.", "user: Of what?"]
    assert told(engine.received[2].body) == ["assistant: Blue.", "user: Of what?", "assistant: Sky.", "user: Sure?"]
    assert missed.value.param == "input"
    assert (compact.status, "not compacted here" in str(compact.error["message"])) == (404, True)


async def test_what_goes_on_is_counted_and_not_kept(tmp_path: Path, engine: ScriptedEngine) -> None:
    """The count is of all that the engine would be told; neither a response nor a conversation has anything of it."""
    engine.improvise = speaking([message("Blue.")])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        first = await client.responses.create(model=MODEL, input="Which colour?")
        talk = await client.conversations.create(items=[{"role": "user", "content": "I am Ada."}])
        engine.improvise = unscripted
        for before in ({"previous_response_id": first.id}, {"conversation": talk.id}):
            counted = await client.responses.input_tokens.count(model=MODEL, input="Of what?", **before)
            assert (counted.input_tokens, counted.object) == (2, "response.input_tokens")
        listed = (await client.conversations.items.list(talk.id)).data
        with world.store.begin() as connection:
            kept = connection.exec_driver_sql("select count(*) from responses").scalar()

    assert [it.path for it in engine.received[1:]] == ["/v1/responses/input_tokens"] * 2
    assert told(engine.received[1].body) == ["user: Which colour?", "assistant: Blue.", "user: Of what?"]
    assert told(engine.received[2].body) == ["user: I am Ada.", "user: Of what?"]
    assert (len(listed), kept) == (1, 1)


async def test_what_is_not_to_be_stored_is_not(tmp_path: Path, engine: ScriptedEngine) -> None:
    """`store: false` may go on from what is stored, and leaves nothing itself; off, `store` changes nothing and ids lead nowhere."""
    engine.improvise = speaking([message("Blue.")])
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        first = await client.responses.create(model=MODEL, input="one")
        second = await client.responses.create(model=MODEL, input="two", previous_response_id=first.id, store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(second.id)
        await world.bound(Policy())
        third = await client.responses.create(model=MODEL, input="three", store=True)
        with pytest.raises(openai.BadRequestError, match="No response is stored here"):
            await client.responses.create(model=MODEL, input="four", previous_response_id=first.id)

    assert told(engine.received[1].body) == ["user: one", "assistant: Blue.", "user: two"]
    assert third.id == "resp_engine"


async def test_reasoning_stays_in_a_loop_of_tools_and_goes_with_the_answer(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    """gpt-oss is told why it called a tool until it has answered, and not after that."""
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}]
    engine.improvise = speaking(
        [thought("I must look."), called("look")], [thought("I see."), message("Blue.")], [message("Bye.")]
    )
    output = {"type": "function_call_output", "call_id": "call_0123456789abcdef", "output": "blue"}
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        asked = {"model": MODEL, "tools": tools}
        first = await client.responses.create(**asked, input="Which colour?")
        second = await client.responses.create(**asked, input=[output], previous_response_id=first.id)
        await client.responses.create(**asked, input="Thanks", previous_response_id=second.id)

    assert told(engine.received[1].body) == [
        "user: Which colour?",
        "reasoning: I must look.",
        "function_call: look",
        "function_call_output: blue",
    ]
    assert told(engine.received[2].body) == [
        "user: Which colour?",
        "function_call: look",
        "function_call_output: blue",
        "assistant: Blue.",
        "user: Thanks",
    ]


async def test_what_is_not_read_is_counted(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A client that does not read what is stored holds memory as any call does: what there is no room for beside it is refused."""
    async with running_gateway(tmp_path, (engine.url,), max_held_bytes=5 * 1024 * 1024) as world:
        for path in await large(world, tmp_path):
            with slow_reader(world, path) as first, slow_reader(world, path) as second:
                await until(lambda: _has_come(first) and _has_come(second))
                refused = await world.ask("GET", path)
                assert (refused.status, refused.error["code"]) == (503, "overloaded")
            found = await world.ask("GET", path)
            while found.status == 503:
                found = await world.ask("GET", path)
            assert found.status == 200 and len(found.body) > LARGE_BYTES


async def test_what_is_not_read_is_held_for_as_long_as_a_call(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Then the client is cut off."""
    brief = QUICK.model_copy(update={"request_total_s": 0.5})
    async with running_gateway(tmp_path, (engine.url,), timeouts=brief) as world:
        path, *_ = await large(world, tmp_path)
        with slow_reader(world, path):
            await until(lambda: any(line["reason"] == "request_timeout" for line in world.lines))


LARGE_BYTES = 2 * 1024 * 1024


async def large(world: World, home: Path) -> list[str]:
    """Where a stored response, its input and a conversation are read, each of that size."""
    await world.bound(STORES)
    vault = Vault.at(home, may_make=True)
    kept = Conversations(world.store, vault, KEPT_S, time.time)
    text, caller = "x" * LARGE_BYTES, await world.caller()
    talk = kept.begin(caller, {}, items.said(text)).id
    new = New(caller=caller, id="resp_large", created_at=0.0, said=items.said(text))
    Shelf(world.store, vault, kept, KEPT_S, time.time).put(new, answer("resp_large", text), "completed")
    one = "/v1/responses/resp_large"
    return [one, f"{one}/input_items", f"/v1/conversations/{talk}/items"]


def _has_come(connection: socket.socket) -> bool:
    """Has the answer begun?"""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_any_gateway_knows_it(place: Place, engine: ScriptedEngine) -> None:
    """On SQLite and on PostgreSQL: what one gateway stored another goes on from."""
    engine.improvise = speaking([message("Blue.")])
    async with (
        storing(place.home, engine, place) as world,
        running_gateway(place.home, (engine.url,), place=place, key=world.key, gateway_id="other:1:1") as other,
        client_of(world) as here,
        client_of(other) as there,
    ):
        first = await here.responses.create(model=MODEL, input="here")
        second = await there.responses.create(model=MODEL, input="there", previous_response_id=first.id)
        assert (await here.responses.retrieve(second.id)).previous_response_id == first.id
        await there.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await here.responses.retrieve(second.id)
