"""Sweeping: what is past its time goes, and what a dead gateway ran has failed."""

from __future__ import annotations

import msgspec

from serving.gateway.store.store import Store
from serving.gateway.stored import items, sweeping
from serving.gateway.stored.sweeping import Sweeper
from tests.gateway.places import Place
from tests.gateway.stored.shelves import ADA, KEPT_S, Shelves

TABLES = ("responses", "response_events", "response_items", "conversations", "conversation_items")


def test_what_is_past_its_time_goes(place: Place, store: Store) -> None:
    """With its events and items; what is younger stays. A further look comes when it is due."""
    kept = Shelves(store, place.home)
    sweeper = Sweeper(store, kept.clock, "me", frozenset)
    kept.put("old")
    kept.shelf.keep_events("t1", "old", 0, 1, b"x")
    kept.conversations.begin(ADA, {}, items.said("old"))
    kept.clock.advance(KEPT_S)
    kept.put("young")
    sweeper.sweep_if_due()

    assert [kept.count(table) for table in TABLES] == [1, 0, 1, 0, 0]
    kept.clock.advance(KEPT_S)
    sweeper.sweep_if_due()
    assert kept.count("responses") == 0


def test_what_no_gateway_runs_has_failed(place: Place, store: Store) -> None:
    """Of a gateway without a heartbeat, and of one's own of which it knows nothing; what runs stays. Nothing is run again."""
    kept = Shelves(store, place.home)
    place.execute("insert into gateways (id, seen_at) values ('me', '2026-01-01'), ('living', '2026-01-01')")
    for response_id, gateway_id in (("lost", "dead"), ("mine", "me"), ("unknown", "me"), ("theirs", "living")):
        kept.put(response_id, status="queued", gateway_id=gateway_id)
    kept.clock.advance(sweeping.OWN_S + 1)
    kept.put("new", status="queued", gateway_id="me")

    Sweeper(store, kept.clock, "me", lambda: {"mine"}).sweep_if_due()

    states = {it: kept.shelf.get("t1", it).status for it in ("lost", "mine", "unknown", "theirs", "new")}
    assert states == {"lost": "failed", "mine": "queued", "unknown": "failed", "theirs": "queued", "new": "queued"}
    told = msgspec.json.decode(kept.shelf.get("t1", "lost").response)
    assert (told["status"], told["error"]["code"]) == ("failed", "server_error")
