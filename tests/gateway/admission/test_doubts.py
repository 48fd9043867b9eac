"""Doubts: which windows are read anew after a change, and how often."""

from __future__ import annotations

import pytest

from serving.gateway.admission import limits
from serving.gateway.admission.doubts import Doubts
from serving.gateway.identity.changes import Change, Kind, News
from serving.gateway.nouns import Caller
from serving.gateway.policies import Policy

CALLER = Caller(
    "t1",
    "acme",
    "k1",
    tenant_policy=Policy(tokens_per_day=9, requests_per_minute=9),
    key_policy=Policy(tokens_per_month=9),
)
PLAN = limits.plan(CALLER, "m", 0.0)
WINDOWS = ["t1/tokens_per_day/0/-/-", "t1/tokens_per_month/0/k1/-"]


def doubted(doubts: Doubts) -> list[str]:
    return doubts.of(PLAN, "t1", "k1")


@pytest.mark.parametrize(
    "changes",
    [None, [Change(Kind.TENANT, "t1")], [Change(Kind.KEY, "k1")], [Change(Kind.KEY, "k2"), Change(Kind.TENANT, "t1")]],
    ids=["anything", "tenant", "key", "several"],
)
def test_a_change_makes_windows_doubtful_once(changes: list[Change] | None) -> None:
    """Of its tenant or its key, or where changes were missed; buckets of a minute are not the ledger's."""
    doubts = Doubts()
    assert doubted(doubts) == []
    for revision in range(2):
        doubts.follow(News(revision, changes))
        assert doubted(doubts) == WINDOWS
        assert doubted(doubts) == []


def test_others_changes_make_none() -> None:
    """Of other tenants and keys, and of prices: calls that have ended keep theirs."""
    doubts = Doubts()
    doubts.follow(News(1, [Change(Kind.TENANT, "t2"), Change(Kind.KEY, "k2"), Change(Kind.PRICE, "t1")]))
    assert doubted(doubts) == []


def test_what_is_forgotten_is_doubted_once_more() -> None:
    """What is remembered is bounded, and no change is missed for that."""
    doubts = Doubts(remembered_max=2)
    doubts.follow(News(1, [Change(Kind.TENANT, it) for it in ("t1", "t2", "t3")]))
    assert doubted(doubts) == WINDOWS
