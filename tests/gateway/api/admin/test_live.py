"""Live: one's own use against one's limits, over HTTP; and what platform administrators see."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.identity.keys import id_of
from serving.gateway.ledger import price_list
from serving.gateway.ledger.prices import Price
from serving.gateway.nouns import Role
from serving.gateway.policies import Budget, Limits, Policy
from tests.gateway.world import World, running_gateway
from tests.scripted_engine import MODEL, ScriptedEngine

POLICY = Policy(
    requests_per_minute=60,
    tokens_per_day=1000,
    open_requests=4,
    monthly_budget=Budget(soft=1.0, hard=2.0),
    per_model={MODEL: Limits(tokens_per_month=500)},
)


@pytest.fixture
async def bounded(engine: ScriptedEngine, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway whose tenant has limits and prices, and has called once."""
    async with running_gateway(tmp_path, (engine.url,)) as world:
        price_list.put(world.store, MODEL, Price(1_000_000, 0, 1_000_000))
        await world.bound(POLICY)
        assert (await world.chat(max_tokens=10)).status == 200
        world.rows()
        yield world


async def seen(world: World, path: str, key: str | None = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else None
    answer = await world.ask("GET", f"/admin/v1{path}", headers=headers)
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_member_sees_its_own_use_against_its_limits(bounded: World) -> None:
    """All that bound it, with what was taken of each on all gateways, and no other key's calls."""
    me = await seen(bounded, "/me")
    assert me["key"]["id"] == id_of(bounded.key) and me["user"] is None and me["role"] == "member"
    tokens = me["today"]["prompt_tokens"] + me["today"]["completion_tokens"]
    assert me["today"] == me["month"] and me["today"]["requests"] == 1 and tokens > 0
    limits = {(it["what"], it["model"]): it for it in me["limits"]}
    assert {name: (it["limit"], it["of"]) for name, it in limits.items()} == {
        ("requests_per_minute", None): (60, "tenant"),
        ("tokens_per_day", None): (1000, "tenant"),
        ("tokens_per_month", MODEL): (500, "tenant"),
        ("open_requests", None): (4, "tenant"),
        ("budget", None): (2_000_000, "tenant"),
        ("soft_budget", None): (1_000_000, "tenant"),
    }
    assert limits["tokens_per_day", None]["used"] == limits["tokens_per_month", MODEL]["used"] == tokens
    assert limits["requests_per_minute", None]["used"] <= 1 and limits["open_requests", None]["used"] == 0
    assert limits["tokens_per_day", None]["resets_at"] > time.time()
    stranger = await seen(bounded, "/me", bounded.registry.create_key("acme"))
    assert stranger["today"]["requests"] == 0


async def test_to_look_takes_nothing(bounded: World) -> None:
    """However often it is done."""
    before = await seen(bounded, "/me")
    for _ in range(3):
        await seen(bounded, "/me")
    after = {it["what"]: it["used"] for it in (await seen(bounded, "/me"))["limits"]}
    assert after["tokens_per_day"] == next(it["used"] for it in before["limits"] if it["what"] == "tokens_per_day")
    assert after["requests_per_minute"] <= 1


async def test_administrators_see_their_tenants_limits(bounded: World) -> None:
    """The tenant's own, whoever asks."""
    key = bounded.registry.create_key("acme", role=Role.TENANT_ADMIN)
    page = await seen(bounded, "/tenants/acme/limits", key)
    assert page["currency"] == "USD" and {it["of"] for it in page["data"]} == {"tenant"} and len(page["data"]) == 6


async def test_the_platforms_administrators_see_the_fleet_and_the_hour(bounded: World) -> None:
    """What runs, and what was done."""
    key = bounded.registry.create_key("acme", role=Role.PLATFORM_ADMIN)
    (model,) = (await seen(bounded, "/fleet", key))["models"]
    assert (model["name"], model["state"], len(model["replicas"])) == (MODEL, "ready", 1)
    assert model["queued"] == {"interactive": 0, "standard": 0, "batch": 0} and model["aliases"] == ["gpt-4o"]
    hour = await seen(bounded, "/activity", key)
    (one,) = hour["models"]
    assert (hour["covers"], hour["gateways"], len(one["requests"])) == (1, 1, hour["slots"])
    assert (sum(one["requests"]), sum(one["judged"])) == (1, 1)
