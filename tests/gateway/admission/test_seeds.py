"""Seeds: a day's and a month's use is read from the ledger, each kind of call and each unit for itself."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from serving.gateway.admission import limits
from serving.gateway.admission.seeds import Seeds
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, Usage
from serving.gateway.policies import Limits, Policy
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.calls import record
from tests.gateway.places import Place

DAY_S = 86_400.0


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as store:
        yield store


async def test_a_window_begins_with_what_its_calls_have_used(store: Store) -> None:
    """Those that began in it, of its key and its model; what waits to be written counts too."""
    clock = Clock()
    clock.now = 100 * DAY_S + 5
    policy = Policy(tokens_per_day=1, tokens_per_month=1, per_model={"m": Limits(tokens_per_day=1)})
    caller = Caller("t1", "acme", "k1", tenant_policy=policy, key_policy=Policy(tokens_per_day=1))
    calls = [("k1", "m", -DAY_S, 1), ("k1", "m", 0.0, 10), ("k1", "other", 0.0, 100), ("k2", "m", 0.0, 1_000)]
    with Ledger(store, clock=clock) as ledger:
        for number, (key_id, model, after_s, tokens) in enumerate(calls):
            clock.now = 100 * DAY_S + 5 + after_s
            one = record(request_id=str(number), model=model, usage=Usage(tokens, tokens))
            one.caller = msgspec.structs.replace(caller, key_id=key_id)
            ledger.open(one)
            ledger.close(one)
        windows = [slot.name for slot in limits.plan(caller, "m", 100 * DAY_S + 5).slots]
        with Seeds(store, ledger) as reader:
            seeds = await reader(windows)
    found = {(of.what, of.key_id, of.model): seed for of, seed in zip(map(limits.subject, windows), seeds, strict=True)}
    assert found == {
        ("tokens_per_day", None, None): 2_220,
        ("tokens_per_day", None, "m"): 2_020,
        ("tokens_per_day", "k1", None): 220,
        ("tokens_per_month", None, None): 2_222,
    }
