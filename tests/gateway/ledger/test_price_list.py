"""Price list: operators change it, and gateways keep what they have read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from serving.errors import NotFound, Refusal
from serving.gateway.identity import changes
from serving.gateway.identity.changes import Change, Follower, Kind, News
from serving.gateway.ledger import price_list
from serving.gateway.ledger.price_list import PriceList, put, read, remove
from serving.gateway.ledger.prices import Price
from serving.gateway.store.store import Store
from tests.gateway.places import Place
from tests.gateway.world import until

CHEAP, DEAR = Price(1, 0, 2), Price(10, 5, 20)


def test_a_price_is_set_replaced_and_removed(store: Store) -> None:
    """Each change is noted, so that gateways learn of it."""
    before = changes.since(store, None).revision
    put(store, "m", CHEAP)
    put(store, "m", DEAR)
    put(store, "other", CHEAP)
    assert read(store).by_model == {"m": DEAR, "other": CHEAP}
    remove(store, "m")
    assert read(store).by_model == {"other": CHEAP}
    noted = changes.since(store, before).changes
    assert noted == [Change(Kind.PRICE, name) for name in ("m", "m", "other", "m")]


def test_what_cannot_be_done_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A price that is none, a name that is none, one more than gateways hold, and one that is not there."""
    monkeypatch.setattr(price_list, "PRICES_MAX", 1)
    put(store, "m", CHEAP)
    put(store, "m", DEAR)
    for model, price in (("x", CHEAP), ("", CHEAP), ("a\nb", CHEAP), ("m" * 256, CHEAP), ("m", Price(-1, 0, 0))):
        with pytest.raises(Refusal):
            put(store, model, price)
    with pytest.raises(NotFound, match="no price of 'x'"):
        remove(store, "x")
    assert read(store).by_model == {"m": DEAR}


@contextlib.asynccontextmanager
async def followed(store: Store, prices: PriceList) -> AsyncIterator[Follower]:
    running = asyncio.create_task(prices.run())
    try:
        yield Follower(store, prices.follow)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_gateways_use_a_new_price_without_a_restart(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Set in another process, and removed there; while the store is away, those that are known stay, and then follow."""
    with place.open() as mine, place.open() as theirs:
        prices = PriceList(mine, retry_s=0.01)
        put(theirs, "m", CHEAP)
        prices.load()
        assert prices.of("m", None) == CHEAP
        async with followed(mine, prices) as follower:
            await follower.catch_up()
            put(theirs, "m", DEAR)
            await follower.catch_up()
            await until(lambda: prices.of("m", None) == DEAR)
            place.take_away()
            prices.follow(News(0, None))
            await until(lambda: "the prices cannot be read" in caplog.text)
            assert prices.of("m", None) == DEAR
            place.bring_back()
            remove(theirs, "m")
            await follower.catch_up()
            await until(lambda: prices.of("m", None) is None)


class CountedStore(Store):
    """A real store that counts its transactions."""

    transactions = 0

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        self.transactions += 1
        with super().begin() as connection:
            yield connection


async def test_other_changes_do_not_read_the_list(tmp_path: Path) -> None:
    """A revoked key says nothing of prices."""
    with CountedStore.open(tmp_path) as store:
        prices = PriceList(store)
        put(store, "m", CHEAP)
        before = store.transactions
        async with followed(store, prices):
            prices.follow(News(1, [Change(Kind.KEY, "k")]))
            # Turns in which a reading would begin.
            for _ in range(5):
                await asyncio.sleep(0)
            prices.follow(News(2, [Change(Kind.KEY, "k"), Change(Kind.PRICE, "m")]))
            await until(lambda: prices.of("m", None) == CHEAP)
        assert store.transactions == before + 1
