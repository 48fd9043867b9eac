"""Usage: the ledger summed up; exact and estimated tokens are never added together."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from sqlalchemy import insert, select, update

from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.ledger.grouping import By
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.usage import Asked, Tokens, Used, calls, each_call, each_charge, totals, used
from serving.gateway.nouns import Caller, Usage
from serving.gateway.store.store import Store
from serving.gateway.store.tables import end_users, tenants
from serving.gateway.store.tables import ledger as rows
from tests.clock import Clock
from tests.gateway.calls import CALLER, USAGE, open_call, record, settle

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
        (By.ADAPTER, ["-"]),
        (By.USER, ["-"]),
        (By.PRIORITY, ["-"]),
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
    assert [it.group for it in totals(summed, By.TENANT, Asked(tenant="acme"))] == ["acme"]
    assert {it.group for it in totals(summed, By.DAY, Asked(since=NOON + DAY_S))} == {"2026-11-23"}
    assert totals(summed, By.DAY, Asked(since=NOON + 2 * DAY_S)) == []
    assert totals(summed, By.DAY, Asked(tenant="no such")) == totals(summed, By.DAY, Asked(until=NOON)) == []
    assert {it.group for it in totals(summed, By.DAY, Asked(until=NOON + 1))} == {"2026-11-22"}


def test_the_newest_calls_are_listed_oldest_first(summed: Store) -> None:
    """As many as were asked for, each as the ledger has it."""
    found = calls(summed, limit=2)
    assert [(it.request_id, it.tenant, it.outcome) for it in found] == [
        ("gone", "gone-id", "ok"),
        ("open", "acme", "open"),
    ]
    assert (found[0].started_at, found[1].finished_at) == (NOON + DAY_S, None)
    assert len(calls(summed, Asked(tenant="acme"), limit=10)) == 4


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


def test_a_model_counts_with_its_adapters_and_each_adapter_alone(store: Store) -> None:
    """And every end user under a reference, with the subject for as long as it is known."""
    caller = msgspec.structs.replace(CALLER, user_ref="u1")
    with Ledger(store, clock=Clock(NOON)) as ledger:
        for name, base, user in (("a", None, CALLER), ("b", "m", CALLER), ("c", "m", caller)):
            one = record(request_id=name, model="tuned" if base else "m", base_model=base, caller=user, usage=USAGE)
            ledger.open(one)
            ledger.close(one)
    with store.begin() as connection:
        connection.execute(insert(end_users).values(ref="u1", tenant_id="t1", subject="ann", created_at=NOON))
    assert [(it.group, it.exact.requests) for it in totals(store, By.MODEL)] == [("m", 3)]
    assert [(it.group, it.exact.requests) for it in totals(store, By.ADAPTER)] == [("-", 1), ("tuned", 2)]
    assert [(it.group, it.label, it.exact.requests) for it in totals(store, By.USER)] == [
        ("-", None, 2),
        ("u1", "ann", 1),
    ]
    assert [it.group for it in totals(store, By.TENANT, Asked(model="tuned", user_ref="u1", key_id="k1"))] == ["t1"]


@pytest.mark.parametrize("by", list(By))
def test_groups_come_in_pages(summed: Store, by: By) -> None:
    """One behind the other, they are all that there are."""
    paged: list[str] = []
    while page := totals(summed, by, after=paged[-1] if paged else None, limit=1):
        paged += [it.group for it in page]
    assert paged == [it.group for it in totals(summed, by)]


def test_each_call_and_each_charge_pass_in_order(summed: Store) -> None:
    """All calls, oldest first; a bill has no open ones and says which tokens are estimates, and which calls had no price."""
    assert [it.request_id for it in each_call(summed)][-2:] == ["gone", "open"]
    assert len(list(each_call(summed, Asked(tenant="acme")))) == 4
    told = [
        (it.day, it.tenant, it.is_estimated, it.requests, it.unpriced_requests, it.prompt_tokens)
        for it in each_charge(summed)
    ]
    assert told == [
        ("2026-11-22", "acme", False, 2, 2, 30),
        ("2026-11-22", "acme", True, 1, 1, 100),
        ("2026-11-23", "gone-id", False, 1, 1, 7),
    ]
