"""Conversations: calls add to them, clients read and change them, through OpenAI's own client."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from serving.gateway.api import conversations
from tests.gateway.api.test_responses import client_of, storing
from tests.gateway.places import Place
from tests.gateway.stored.speaking import message, speaking, told
from tests.gateway.world import running_gateway
from tests.scripted_engine import MODEL, ScriptedEngine

SAID = {"type": "message", "role": "user", "content": "I am Ada."}


async def test_calls_add_to_a_conversation(place: Place, engine: ScriptedEngine) -> None:
    """What is said and answered stands in it, in order, at any gateway; the engine is told all of it."""
    engine.improvise = speaking([message("Ada.")])
    async with (
        storing(place.home, engine, place) as world,
        running_gateway(place.home, (engine.url,), place=place, key=world.key, gateway_id="other:1:1") as other,
        client_of(world) as here,
        client_of(other) as there,
    ):
        made = await here.conversations.create(items=[SAID], metadata={"topic": "names"})
        first = await there.responses.create(model=MODEL, input="Who am I?", conversation=made.id)
        async with here.responses.stream(model=MODEL, input="Sure?", conversation={"id": made.id}) as events:
            await events.get_final_response()
        listed = [item async for item in await there.conversations.items.list(made.id, order="asc", limit=2)]

    assert first.conversation is not None and first.conversation.id == made.id
    texts = [item.content[0].text for item in listed]
    assert texts == ["I am Ada.", "Who am I?", "Ada.", "Sure?", "Ada."]
    assert told(engine.received[1].body) == ["user: I am Ada.", "user: Who am I?", "assistant: Ada.", "user: Sure?"]


async def test_items_and_metadata_are_changed(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Items are added, read one by one and deleted; metadata is replaced; a deleted conversation is no longer there, nor gone on with."""
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        made = await client.conversations.create()
        added = await client.conversations.items.create(made.id, items=[SAID, {"role": "user", "content": "And you?"}])
        one = await client.conversations.items.retrieve(added.data[0].id, conversation_id=made.id)
        await client.conversations.items.delete(one.id, conversation_id=made.id)
        with pytest.raises(openai.NotFoundError, match=f"Item with id '{one.id}' not found in conversation with id"):
            await client.conversations.items.retrieve(one.id, conversation_id=made.id)
        left = (await client.conversations.items.list(made.id)).data
        await client.conversations.update(made.id, metadata={"topic": "none"})
        found = await client.conversations.retrieve(made.id)
        gone = await client.conversations.delete(made.id)
        with pytest.raises(openai.NotFoundError, match=f"Conversation with id '{made.id}' not found."):
            await client.conversations.retrieve(made.id)
        with pytest.raises(openai.NotFoundError, match=f"Conversation with id '{made.id}' not found."):
            await client.responses.create(model=MODEL, input="x", conversation=made.id)

    assert [it.id for it in left] == [added.data[1].id]
    assert (found.metadata, gone.deleted, gone.object) == ({"topic": "none"}, True, "conversation.deleted")


async def test_no_conversation_is_another_tenants(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Each route answers as if there were none."""
    async with storing(tmp_path, engine) as world, client_of(world) as client:
        made = await client.conversations.create(items=[SAID])
        (item,) = (await client.conversations.items.list(made.id)).data
        other = world.key_of_another("rival")
        world.registry.update_tenant("rival", policy=(await world.caller()).tenant_policy)
        headers = {"Authorization": f"Bearer {other}", "Content-Type": "application/json"}
        one, items = f"/v1/conversations/{made.id}", f"/v1/conversations/{made.id}/items"
        asked = [("GET", one), ("DELETE", one), ("GET", items), ("GET", f"{items}/{item.id}")]
        asked += [("DELETE", f"{items}/{item.id}")]
        answers = [await world.ask(method, path, headers=headers) for method, path in asked]
        answers.append(await world.ask("POST", one, {"metadata": {}}, headers))
        answers.append(await world.ask("POST", items, {"items": [SAID]}, headers))
        assert len((await client.conversations.items.list(made.id)).data) == 1

    said = {(it.status, it.error["message"]) for it in answers}
    assert said == {(404, f"Conversation with id '{made.id}' not found.")}


async def test_what_is_wrong_with_one_is_said(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A 400 that names the field; a call cannot go on from two things, and what is not said of metadata does not empty it."""
    wrong: list[tuple[str, dict[str, object], str]] = [
        ("/v1/conversations", {"items": [SAID] * (conversations.ADDED_MAX + 1)}, "items"),
        ("/v1/conversations", {"items": [{"type": "message", "role": "nobody", "content": ""}]}, "items[0].role"),
        ("/v1/conversations", {"metadata": {"a": 1}}, "metadata[...]"),
        ("/v1/conversations", {"name": "x"}, "name"),
        (
            "/v1/responses",
            {"model": MODEL, "input": "x", "previous_response_id": "resp_x", "conversation": "conv_x"},
            "previous_response_id",
        ),
    ]
    async with storing(tmp_path, engine) as world:
        made = await world.post("/v1/conversations", {"metadata": {"topic": "names"}})
        one = f"/v1/conversations/{made.json['id']}"
        wrong.append((one, {}, "metadata"))
        refused = [await world.post(path, body) for path, body, _ in wrong]
        found = await world.ask("GET", one)
        emptied = await world.post(one, {"metadata": None})
    assert (found.json["metadata"], emptied.json["metadata"]) == ({"topic": "names"}, {})
    assert [(it.status, it.error["param"]) for it in refused] == [(400, param) for _, _, param in wrong]
