"""Price list: the prices in the database; operators change them, gateways keep a copy that follows."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from serving.errors import NotFound, Refusal, StoreUnavailable
from serving.gateway.identity import changes
from serving.gateway.identity.acts import Act, ActKind, Witness, unwitnessed
from serving.gateway.identity.changes import Change, Kind, News
from serving.gateway.ledger.prices import PRICE_MICROS_MAX, Price, Prices
from serving.gateway.ledger.rows import TEXT_MAX
from serving.gateway.store.store import Store
from serving.gateway.store.tables import prices

#: Models and adapters with a price of their own; a gateway holds all of them in memory.
PRICES_MAX = 10_000
#: Seconds between two attempts to read the list while the store is away.
RETRY_S = 1.0

log = logging.getLogger(__name__)


def read(store: Store) -> Prices:
    """The whole list; raises StoreUnavailable."""
    with store.begin() as connection:
        return read_in(connection)


def read_in(connection: Connection) -> Prices:
    """The same in a transaction of other acts."""
    rows = connection.execute(select(prices).order_by(prices.c.model).limit(PRICES_MAX)).all()
    return Prices({row.model: _price(row) for row in rows})


def put(store: Store, model: str, price: Price, witness: Witness = unwitnessed) -> None:
    """Set the price of a model or an adapter, in place of the one it had; calls that have ended keep theirs."""
    with store.alone() as connection:
        changes.take_turn(connection)
        put_in(connection, model, price, witness)


def put_in(connection: Connection, model: str, price: Price, witness: Witness) -> None:
    """The same in a transaction of other acts, which has taken its turn."""
    _require_sound(model, price)
    held = {row.model: _price(row) for row in connection.execute(select(prices))}
    if model not in held and len(held) >= PRICES_MAX:
        raise Refusal(f"{PRICES_MAX:,} models have prices already: remove one first.")
    connection.execute(delete(prices).where(prices.c.model == model))
    connection.execute(insert(prices).values(model=model, **_columns(price)))
    changes.note(connection, Change(Kind.PRICE, model))
    was = _columns(held[model]) if model in held else None
    witness(connection, Act(ActKind.PRICE_SET, model, details={"before": was, "after": _columns(price)}))


def remove(store: Store, model: str, witness: Witness = unwitnessed) -> None:
    """Remove a price; raises NotFound where there is none."""
    with store.begin() as connection:
        changes.take_turn(connection)
        remove_in(connection, model, witness)


def remove_in(connection: Connection, model: str, witness: Witness) -> None:
    """The same in a transaction of other acts, which has taken its turn."""
    row = connection.execute(select(prices).where(prices.c.model == model)).one_or_none()
    if row is None or connection.execute(delete(prices).where(prices.c.model == model)).rowcount == 0:
        raise NotFound(f"There is no price of '{model}'; `serving prices list` shows those there are.")
    changes.note(connection, Change(Kind.PRICE, model))
    witness(connection, Act(ActKind.PRICE_REMOVE, model, details={"before": _columns(_price(row))}))


class PriceList:
    """A gateway's copy: as new as the last change it was told of, and kept while the store is away."""

    def __init__(self, store: Store, retry_s: float = RETRY_S) -> None:
        self._store = store
        self._retry_s = retry_s
        self._current = Prices()
        #: What is in the database may be another list.
        self._is_outdated = asyncio.Event()

    def of(self, model: str, base_model: str | None) -> Price | None:
        """An adapter's own price, else its model's; None: none is set."""
        return self._current.of(model, base_model)

    def load(self) -> None:
        """Read the list here and now (blocking): no call is to end before its price is known. Raises StoreUnavailable."""
        self._current = read(self._store)

    def follow(self, news: News) -> None:
        """The list is read anew where it may have changed."""
        if news.changes is None or any(change.kind == Kind.PRICE for change in news.changes):
            self._is_outdated.set()

    async def run(self) -> None:
        """Read it whenever it has changed, until cancelled."""
        # Of its own: a database that hangs must not hold up look-ups, nor they this.
        thread = ThreadPoolExecutor(1, thread_name_prefix="prices")
        try:
            while await self._is_outdated.wait():
                await self._read(thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, thread: ThreadPoolExecutor) -> None:
        # Before it is read: what changes meanwhile is for the next time.
        self._is_outdated.clear()
        try:
            self._current = await asyncio.get_running_loop().run_in_executor(thread, read, self._store)
        except StoreUnavailable as error:
            log.warning("the prices cannot be read, those known stay: %s", error.reason)
            self._is_outdated.set()
            await asyncio.sleep(self._retry_s)


def _require_sound(model: str, price: Price) -> None:
    if not 0 < len(model) <= TEXT_MAX or not model.isprintable():
        raise Refusal(f"A model's name has 1 to {TEXT_MAX} printable characters.")
    if not all(0 <= micros <= PRICE_MICROS_MAX for micros in _columns(price).values()):
        raise Refusal("A price is from 0 to 10,000 for a million tokens, in whole millionths.")


def _price(row: Row[*tuple[Any, ...]]) -> Price:
    return Price(row.prompt_micros, row.cached_prompt_micros, row.completion_micros)


def _columns(price: Price) -> dict[str, int]:
    return {
        "prompt_micros": price.prompt_micros,
        "cached_prompt_micros": price.cached_prompt_micros,
        "completion_micros": price.completion_micros,
    }
