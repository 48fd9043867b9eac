"""Memory: what a call's body becomes when it goes on from what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.gateway.dialects.items import Continued
from serving.gateway.nouns import Caller
from serving.gateway.policies import NO_POLICY, Policy
from serving.gateway.store.store import Store
from serving.gateway.stored.memory import Memory
from tests.gateway.stored.shelves import ADA, Shelves

ON, OFF = Policy(store_responses=True), Policy(store_responses=False)


@pytest.mark.parametrize(
    ("tenant", "key", "serves"),
    [(NO_POLICY, NO_POLICY, False), (ON, NO_POLICY, True), (ON, OFF, False), (NO_POLICY, ON, False), (ON, ON, True)],
)
def test_it_is_off_until_the_tenant_has_it_on(tenant: Policy, key: Policy, serves: bool) -> None:
    """A key may turn it off for itself, and not on."""
    assert Memory.serves(Caller("t", "acme", "k", tenant_policy=tenant, key_policy=key)) is serves


async def test_a_body_goes_on_from_what_is_stored(tmp_path: Path) -> None:
    """Its `input` has what was said and answered before it; without a past it stays as it is."""
    with Store.open(tmp_path) as store:
        kept = Shelves(store, tmp_path)
        kept.put("r1", "one")
        memory = Memory(kept.shelf, kept.conversations, kept.clock)
        body: dict[str, Any] = {"input": "two", "previous_response_id": "r1"}
        turn = await memory.recalled(ADA, body)
        plain: dict[str, Any] = {"input": "two"}
        fresh = await memory.recalled(ADA, plain)
        memory.close()

    assert isinstance(body["input"], Continued) and body["input"].said == "two"
    assert [it["role"] for it in body["input"].earlier] == ["user", "assistant"]
    assert (list(turn.past.ancestors), plain, fresh.past.items) == (["r1"], {"input": "two"}, [])
