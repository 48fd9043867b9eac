"""Models: every name that clients may ask for, as OpenAI's API lists it."""

from __future__ import annotations

import json
from datetime import datetime

from serving.gateway.policies import Policy
from tests.gateway.world import World, until
from tests.scripted_engine import (
    MODEL,
)


async def test_models_are_listed_with_their_aliases(world: World) -> None:
    """The list holds every name that works, and each can be looked up."""
    listed = json.loads((await world.ask("GET", "/v1/models")).body)
    assert [model["id"] for model in listed["data"]] == [MODEL, "gpt-4o"] and listed["object"] == "list"
    one = (await world.ask("GET", f"/v1/models/{MODEL}")).json
    assert one["object"] == "model" and one["max_model_len"] == 4096
    assert (await world.ask("GET", "/v1/models/none")).error["code"] == "model_not_found"


async def test_a_card_says_what_is_known_and_no_more(world: World) -> None:
    """An engine without a directory names no default limit; a model is no adapter; an alias is itself."""
    one = (await world.ask("GET", "/v1/models/gpt-4o")).json
    assert (one["id"], one["default_output_tokens"], one["parent"], one["owned_by"]) == (
        "gpt-4o",
        None,
        None,
        "serving",
    )


async def test_a_name_with_slashes_is_looked_up_whole(world: World) -> None:
    """As names on Hugging Face have them; the error repeats what was asked for, within bounds."""
    answer = await world.ask("GET", "/v1/models/openai/gpt-oss-20b")
    assert answer.status == 404 and "openai/gpt-oss-20b" in str(answer.error["message"])
    assert len((await world.ask("GET", "/v1/models/" + "x" * 5000)).body) < 1000


ANTHROPIC = {"anthropic-version": "2023-06-01"}


async def test_anthropics_clients_get_anthropics_list(world: World) -> None:
    """Told by their header: pages in their shape, and their name for the request id."""
    headers = world.headers() | ANTHROPIC
    answer = await world.ask("GET", "/v1/models", headers=headers)
    cards = answer.json["data"]
    assert isinstance(cards, list) and [card["id"] for card in cards] == [MODEL, "gpt-4o"]
    assert (answer.json["has_more"], answer.json["first_id"], answer.json["last_id"]) == (False, MODEL, "gpt-4o")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    one = (await world.ask("GET", f"/v1/models/{MODEL}", headers=headers)).json
    assert one == cards[0] and (one["type"], one["display_name"]) == ("model", MODEL)
    assert datetime.fromisoformat(str(one["created_at"])).tzinfo is not None
    unknown = await world.ask("GET", "/v1/models/none", headers=headers)
    assert unknown.json["type"] == "error" and unknown.headers["request-id"]


async def test_anthropics_list_has_pages(world: World) -> None:
    """Forwards and backwards; a page that there cannot be is refused."""
    headers = world.headers() | ANTHROPIC
    for query, ids, has_more in (
        ("limit=1", [MODEL], True),
        (f"limit=1&after_id={MODEL}", ["gpt-4o"], False),
        ("before_id=gpt-4o", [MODEL], False),
        ("after_id=gpt-4o", [], False),
    ):
        page = (await world.ask("GET", f"/v1/models?{query}", headers=headers)).json
        assert ([card["id"] for card in page["data"]], page["has_more"]) == (ids, has_more)  # type: ignore[attr-defined]
    for query in ("limit=0", "limit=1001", "limit=0000000010000", "limit=x", "after_id=none"):
        assert (await world.ask("GET", f"/v1/models?{query}", headers=headers)).status == 400


async def test_strangers_see_no_models(world: World) -> None:
    """The list needs a key; the access line names the tenant that asked."""
    for path in ("/v1/models", f"/v1/models/{MODEL}"):
        assert (await world.ask("GET", path, headers={})).status == 401
    await world.ask("GET", "/v1/models")
    await until(lambda: len(world.lines) == 3)
    assert [line["tenant"] for line in world.lines] == [None, None, "acme"]


async def test_a_caller_sees_the_models_it_may_ask_for(world: World) -> None:
    """Under the names that it may use; any other is as if it were not there."""
    await world.bound(Policy(models=("gpt-4o",)))
    listed = json.loads((await world.ask("GET", "/v1/models")).body)
    assert [model["id"] for model in listed["data"]] == ["gpt-4o"]
    assert (await world.ask("GET", f"/v1/models/{MODEL}")).error["code"] == "model_not_found"
