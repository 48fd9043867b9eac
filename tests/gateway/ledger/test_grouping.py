"""Grouping: what sums are taken over."""

from __future__ import annotations

import pytest

from serving.gateway.ledger.grouping import By
from serving.gateway.ledger.usage import totals
from serving.gateway.store.store import Store


@pytest.mark.parametrize("by", By)
def test_the_ledger_can_be_summed_by_every_word(store: Store, by: By) -> None:
    """Whatever `serving usage --by` offers, the store can group by."""
    assert totals(store, by) == []
