"""Usage: the ledger summed up; exact and estimated tokens are never added together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select, update

from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.ledger.grouping import By
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.usage import Tokens, Used, calls, totals, used
from serving.gateway.nouns import Caller, Usage
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger as rows
from serving.gateway.store.tables import tenants
from tests.clock import Clock
from tests.gateway.calls import open_call, settle

#: 2026-11-22 12:00 UTC.
NOON = 1_795_348_800.0
DAY_S = 86_400.0


@pytest.fixture
def summed(store: Store) -> Iterator[Store]:
    """Two exact calls and an estimated one of acme's at noon, one of a tenant that is gone a day later, one open."""
    clock = Clock(NOON)
    acme = Caller(Registry(store, Keyring.open(store), clock).create_tenant("acme").id, "acme", "k1")
    with Ledger(store, clock=clock) as ledger:
        settle(ledger, "one", Usage(10, 5, 2, 1), acme)
        settle(ledger, "two", Usage(20, 5), acme)
        settle(ledger, "cut", Usage(100, 50, estimated_by="last_chunk"), acme)
        clock.advance(DAY_S)
        settle(ledger, "gone", Usage(7, 7), Caller("gone-id", "gone", "k2"))
        clock.advance(1)
        with open_call(ledger, "open", caller=acme, model="m2"):
            ledger.flush()
            yield store


def test_what_the_engine_said_and_what_was_estimated_stand_apart(summed: Store) -> None:
    """An open call is counted and has no tokens yet; a tenant without a name is called by its id."""
    found = {it.group: it for it in totals(summed, By.TENANT)}
    assert found["acme"].exact == Tokens(2, 30, 10, 2, 1)
    assert found["acme"].estimated == Tokens(1, 100, 50, 0, 0)
    assert (found["acme"].open_requests, found["gone-id"].open_requests) == (1, 0)
    assert found["gone-id"].exact == Tokens(1, 7, 7, 0, 0)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        (By.MODEL, ["m", "m2"]),
        (By.KEY, ["k1", "k2"]),
        (By.ROUTE, ["/v1/chat/completions"]),
        (By.DAY, ["2026-11-22", "2026-11-23"]),
    ],
)
def test_each_way_to_sum_loses_no_call(summed: Store, by: By, groups: list[str]) -> None:
    """The same tokens, whatever they are grouped by."""
    found = totals(summed, by)
    assert [it.group for it in found] == groups
    assert sum(it.exact.prompt_tokens for it in found) == 37
    assert sum(it.open_requests for it in found) == 1


def test_a_question_can_be_about_one_tenant_or_a_time(summed: Store) -> None:
    """Calls count by when they began, the moment itself included."""
    assert [it.group for it in totals(summed, By.TENANT, tenant="acme")] == ["acme"]
    assert {it.group for it in totals(summed, By.DAY, since=NOON + DAY_S)} == {"2026-11-23"}
    assert totals(summed, By.DAY, since=NOON + 2 * DAY_S) == totals(summed, By.DAY, tenant="no such") == []


def test_the_newest_calls_are_listed_oldest_first(summed: Store) -> None:
    """As many as were asked for, each as the ledger has it."""
    found = calls(summed, limit=2)
    assert [(it.request_id, it.tenant, it.outcome) for it in found] == [
        ("gone", "gone-id", "ok"),
        ("open", "acme", "open"),
    ]
    assert (found[0].started_at, found[1].finished_at) == (NOON + DAY_S, None)
    assert len(calls(summed, tenant="acme", limit=10)) == 4


def test_limits_count_exact_and_estimated_tokens_together(summed: Store) -> None:
    """Of a tenant, of one of its keys or of one model, from a moment on; an open call has used nothing yet."""
    with summed.begin() as connection:
        acme = connection.scalar(select(tenants.c.id)) or ""
        connection.execute(update(rows).where(rows.c.request_id.in_(["one", "cut"])).values(price_micros=2**40))
    assert used(summed, acme, since=NOON) == Used(190, 2**41)
    assert used(summed, acme, since=NOON + 1) == Used(0, 0)
    assert used(summed, acme, since=0, key_id="k1", model="m") == Used(190, 2**41)
    assert used(summed, acme, since=0, key_id="k2") == used(summed, acme, since=0, model="m2") == Used(0, 0)
    assert used(summed, "gone-id", since=0) == Used(14, 0)
