"""Audit: a gateway's calls, sign-ins and acts in its chain, through outages and ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.audit import actors, gathering, reading
from serving.gateway.audit import audit as audits
from serving.gateway.audit.audit import Audit
from serving.gateway.audit.chain import Kind
from serving.gateway.audit.journal import Journal, Origin
from serving.gateway.audit.reading import Asked, Event
from serving.gateway.audit.verification import Report, verify
from serving.gateway.identity.acts import Act
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.nouns import Caller, Role
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.audit.chains import SIGNER
from tests.gateway.calls import record
from tests.gateway.places import Place
from tests.gateway.world import World, until
from tests.waiting import until as until_now

ADMIN = Caller("t0", "default", "k0", role=Role.PLATFORM_ADMIN)


def call(audit: Audit, request_id: str = "r", **changed: Any) -> None:
    audit.settle(record(entry_id="e", request_id=request_id, **changed))


def events(store: Store, *kinds: str) -> list[Event]:
    return reading.page(store, Asked(kinds=kinds or None), limit=1000).events


def verified(store: Store) -> Report:
    return verify(reading.entries(store), reading.entries(store, kind=Kind.CHECKPOINT), [], [SIGNER.public_key])


def test_calls_are_written_within_a_moment(store: Store) -> None:
    """By the thread: the event loop waits for nothing."""
    with Audit(store, SIGNER, clock=time.time) as audit:
        call(audit)
        until_now(lambda: events(store, "call"))
    assert [entry.kind for entry in reading.entries(store)] == ["begin", "sign_ins", "calls", "end", "checkpoint"]
    assert verified(store).is_clean


def test_acts_and_calls_share_a_chain(store: Store) -> None:
    """An administrator's act through the API is in the gateway's chain, in its own transaction."""
    audit = Audit(store, SIGNER, clock=Clock())
    Registry(store, Keyring.open(store), Clock(), audit.witness(ADMIN)).create_tenant("acme")
    call(audit)
    audit.note(ADMIN, Act("usage.read", "usage"))
    audit.flush()
    assert [it.kind for it in events(store)] == ["begin", "tenant.create", "usage.read", "sign_in", "call"]
    assert events(store, "tenant.create")[0].by == {"tenant_id": "t0", "key_id": "k0", "role": "platform_admin"}


def test_an_outage_keeps_what_it_can_and_counts_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the store is back the chain goes on without a gap, and says how many calls it lacks."""
    monkeypatch.setattr(gathering, "CALLS_MAX", 3)
    with place.open() as store, Audit(store, SIGNER, clock=time.time) as audit:
        call(audit, "before")
        until_now(lambda: events(store, "call"))
        place.take_away()
        for number in range(5):
            call(audit, f"r{number}")
        until_now(lambda: "the audit waits for the store" in caplog.text)
        assert audit.lag_s > 0
        place.bring_back()
        until_now(lambda: events(store, "lost"))
        until_now(lambda: audit.lag_s == 0)
        kept = len(events(store, "call")) - 1
        # Three wait at most: what the writer has in its hands may be one of them, or one besides.
        assert kept in (2, 3, 4)
        assert [it.details for it in events(store, "lost")] == [{"count": 5 - kept}]
        assert f"{5 - kept} calls and sign-ins are missing in the audit" in caplog.text
        assert verified(store).is_clean


def test_a_stop_in_an_outage_says_what_is_missing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The chain just stops, as if the gateway were killed."""
    with place.open() as store:
        with Audit(store, SIGNER, clock=time.time) as audit:
            call(audit)
            until_now(lambda: events(store, "call"))
            place.take_away()
            call(audit)
        place.bring_back()
        assert "1 calls are missing in the audit; the ledger has them" in caplog.text
        (tail,) = verified(store).tails
        assert not tail.has_ended


def _call_until_killed(home: Path) -> None:
    with Store.open(home) as store, Audit(store, SIGNER, clock=time.time) as audit:
        for number in range(3):
            call(audit, f"r{number}")
        until_now(lambda: events(store, "call"))
        audit.sign()
        call(audit, "last")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_gateway_loses_the_last_seconds_calls_alone(tmp_path: Path) -> None:
    """Its chain just stops: nothing is found wrong with it, and the next gateway's is another."""
    process = multiprocessing.get_context("spawn").Process(target=_call_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Store.open(tmp_path) as store:
        with Audit(store, SIGNER, clock=time.time) as audit:
            call(audit, "next")
        assert [it.details["request_id"] for it in events(store, "call")] == ["r0", "r1", "r2", "next"]
        report = verified(store)
        assert report.is_clean and report.tails == [] and report.chains == 2


def test_checkpoints_cover_this_chain_and_those_of_commands(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """When they are due; each goes out as a log line."""
    clock = Clock()
    audit = Audit(store, SIGNER, clock=clock)
    call(audit)
    audit.flush()
    with Journal(store, None, clock, Origin.COMMAND) as command:
        command.record(actors.of(ADMIN), Act("usage.read", "usage"))
    with caplog.at_level(logging.INFO, "serving.audit"):
        audit.sign()
    assert len(caplog.records) == 2
    report = verified(store)
    assert (report.tails, report.checkpoints) == ([], 2)


def test_a_checkpoint_is_signed_when_it_is_due(store: Store) -> None:
    """Every few minutes, by the thread itself."""
    clock = Clock()
    with Audit(store, SIGNER, clock=time.time, monotonic=clock) as audit:
        call(audit)
        until_now(lambda: events(store, "call"))
        assert not events(store, "checkpoint")
        clock.advance(audits.CHECKPOINT_S)
        call(audit)
        until_now(lambda: events(store, "checkpoint"))


async def test_a_gateways_calls_are_in_its_audit(world: World) -> None:
    """As they are in its ledger: who, which model, which request, how it ended; and who was refused."""
    answer = await world.chat()
    await world.ask("POST", "/v1/chat/completions", {}, {"Authorization": "Bearer sk-wrong"})
    row = await world.row()
    await until(lambda: events(world.store, "call"))
    (event,) = events(world.store, "call")
    assert event.details == {"request_id": answer.headers["x-request-id"], "outcome": "ok", "status": 200}
    assert (event.tenant_id, event.subject) == (row["tenant_id"], row["model"])
    assert event.by == {"tenant_id": row["tenant_id"], "key_id": row["key_id"]}
