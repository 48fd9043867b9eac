"""Gathering: what calls leave in memory, and how much of it at most."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.audit import gathering
from serving.gateway.audit.actors import Actor
from serving.gateway.audit.gathering import Batch, Gathering
from serving.gateway.identity.acts import Act
from serving.gateway.nouns import Caller, Outcome
from tests.clock import Clock
from tests.gateway.calls import CALLER, record


class Gathered:
    """What would be written, by kind."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.gathering = Gathering(self.clock, self.clock)

    def settle(self, **changed: Any) -> bool:
        return self.gathering.settle(record(entry_id="e", opened_at_epoch_s=self.clock.now, **changed))

    def refuse(self, reason: str = "invalid_api_key", caller: Caller | None = None) -> bool:
        refused: dict[str, Any] = {"caller": caller, "status": 403 if caller else 401, "reason": reason}
        return self.gathering.settle(record(model=None, outcome=Outcome.REJECTED, **refused))

    def taken(self, *, is_last: bool = False) -> dict[str, Any]:
        batch = self.gathering.batch(is_last=is_last)
        self.gathering.forget(batch)
        return bodies(batch)


def bodies(batch: Batch) -> dict[str, Any]:
    return {kind: json.loads(body) for kind, body in batch.entries}


@pytest.fixture
def gathered() -> Gathered:
    return Gathered()


def test_a_call_says_who_called_which_model_when_and_how_it_went(gathered: Gathered) -> None:
    """By ids and references; what was said is nowhere."""
    caller = Caller("t1", "acme", "k1", user_ref="u1")
    gathered.settle(caller=caller, prompt="a secret")
    body = gathered.taken()["calls"]
    assert body == {
        "calls": [
            {
                "at": 1000.0,
                "tenant_id": "t1",
                "key_id": "k1",
                "model": "m",
                "request_id": "r",
                "outcome": "ok",
                "status": 200,
                "user_ref": "u1",
            }
        ]
    }


def test_calls_are_those_of_the_ledger(gathered: Gathered) -> None:
    """What opened no row there is no call."""
    gathered.gathering.settle(record(entry_id=""))
    assert "calls" not in gathered.taken()


def test_a_callers_first_call_in_a_while_is_a_sign_in(gathered: Gathered) -> None:
    """Once for a key, and once for each user of it; the next one when it was away for an hour."""
    assert gathered.settle()
    assert [it["key_id"] for it in gathered.taken()["sign_ins"]["sign_ins"]] == ["k1"]
    gathered.settle()
    gathered.settle(caller=Caller("t1", "acme", "k1", user_ref="u1"))
    assert [it["user_ref"] for it in gathered.taken()["sign_ins"]["sign_ins"]] == ["u1"]
    gathered.clock.advance(gathering.SIGN_IN_AGAIN_S - 1)
    gathered.settle()
    gathered.clock.advance(gathering.SIGN_IN_AGAIN_S - 1)
    gathered.settle()
    assert "sign_ins" not in gathered.taken()
    gathered.clock.advance(gathering.SIGN_IN_AGAIN_S)
    gathered.settle()
    assert "sign_ins" in gathered.taken()


def test_a_flood_of_wrong_keys_is_one_entry_a_minute(gathered: Gathered) -> None:
    """It says how many there were, by reason."""
    for _ in range(10_000):
        gathered.refuse()
    gathered.refuse("key_expired")
    assert gathered.taken() == {}
    gathered.clock.advance(gathering.REFUSED_S)
    counted = gathered.taken()["sign_ins.refused"]["refused"]
    assert counted == [{"reason": "invalid_api_key", "count": 10_000}, {"reason": "key_expired", "count": 1}]
    assert gathered.taken() == {} and not gathered.gathering.has_refusals


def test_refused_keys_are_told_apart_up_to_a_bound(gathered: Gathered) -> None:
    """A key that may not do this is named; too many are counted together."""
    for number in range(gathering.REFUSED_MAX + 50):
        gathered.refuse("insufficient_permissions", Caller("t1", "acme", f"k{number}"))
    counted = gathered.taken(is_last=True)["sign_ins.refused"]["refused"]
    assert len(counted) == gathering.REFUSED_MAX + 1
    assert sum(it["count"] for it in counted) == gathering.REFUSED_MAX + 50
    assert counted[0] == {"reason": "insufficient_permissions", "count": 50}


def test_acts_that_change_nothing_are_written_as_they_are(gathered: Gathered) -> None:
    """With who did it."""
    gathered.gathering.note(Actor("t1", "k1"), Act("usage.read", "usage", "t1"))
    assert gathered.taken()["usage.read"]["by"] == {"tenant_id": "t1", "key_id": "k1"}


def test_what_was_not_written_waits(gathered: Gathered) -> None:
    """And what came meanwhile is kept beside it."""
    gathered.settle(request_id="a")
    gathered.refuse()
    gathered.clock.advance(gathering.REFUSED_S)
    batch = gathered.gathering.batch()
    gathered.settle(request_id="b")
    gathered.refuse()
    assert [it["request_id"] for it in bodies(gathered.gathering.batch())["calls"]["calls"]] == ["a", "b"]
    gathered.gathering.forget(batch)
    assert [it["request_id"] for it in gathered.taken()["calls"]["calls"]] == ["b"]
    assert gathered.taken(is_last=True)["sign_ins.refused"]["refused"] == [{"reason": "invalid_api_key", "count": 1}]


def test_an_entry_has_so_many_calls_at_most(gathered: Gathered) -> None:
    """The rest is for the next."""
    for _ in range(gathering.CALLS_PER_ENTRY + 1):
        gathered.settle()
    assert len(gathered.taken()["calls"]["calls"]) == gathering.CALLS_PER_ENTRY
    assert len(gathered.taken()["calls"]["calls"]) == 1


def test_what_finds_no_room_is_counted(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next entry says how many calls are missing, once."""
    monkeypatch.setattr(gathering, "CALLS_MAX", 2)
    for _ in range(5):
        gathered.settle()
    assert gathered.gathering.lost == 3
    body = gathered.taken()["calls"]
    assert (len(body["calls"]), body["lost"]) == (2, 3)
    assert gathered.taken() == {}


def test_sign_ins_acts_and_callers_are_bounded(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the store is away, and however many keys there are."""
    monkeypatch.setattr(gathering, "OTHERS_MAX", 2)
    monkeypatch.setattr(gathering, "CALLERS_MAX", 3)
    for number in range(5):
        gathered.settle(caller=Caller("t1", "acme", f"k{number}"))
        gathered.gathering.note(Actor(), Act("usage.read", "usage"))
    taken = gathered.taken()
    assert (len(taken["sign_ins"]["sign_ins"]), taken["calls"]["lost"]) == (2, 6)
    gathered.settle(caller=Caller("t1", "acme", "k0"))
    gathered.settle(caller=Caller("t1", "acme", "k4"))
    assert [it["key_id"] for it in gathered.taken()["sign_ins"]["sign_ins"]] == ["k0"]


def test_a_call_that_leaves_nothing_wakes_no_one(gathered: Gathered) -> None:
    """Probes and pages of metrics pass by."""
    assert not gathered.gathering.settle(record(caller=None))
    assert gathered.settle(caller=CALLER)
