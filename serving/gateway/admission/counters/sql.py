"""SqlTally: counters in the gateway's database, for several gateways on PostgreSQL and for the workers of one on SQLite.

The rows of one decision are locked in the order of their names, so that no two wait for one another, and the same pure policy decides
as in memory. All of it runs in a few threads of its own: a database that hangs holds up no look-up of a key and no ledger row.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import msgspec
from sqlalchemy import BigInteger, Connection, Table, bindparam, cast, delete, extract, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from serving.errors import StoreUnavailable
from serving.gateway.admission.counters import policy
from serving.gateway.admission.counters.counter import LEASE_S, Draw, Kind, Verdict
from serving.gateway.admission.counters.policy import NEW, State
from serving.gateway.admission.counters.tally import Change, Part, TallyUnavailable, Unseeded
from serving.gateway.store.store import Store
from serving.gateway.store.tables import counters, leases

#: Threads, each with a connection of its own: decisions of one tenant take turns in the database in any case.
THREADS = 4
#: Seconds without a decision after which the database is not kept open.
QUIET_S = 1.0
#: Seconds between two removals of rows that say nothing any more.
PURGE_S = 600.0
#: The counter under whose name leases that are over are kept.
_SETTLED = "settled"
_LEASE_US = round(LEASE_S * 1e6)
_DAY_US = 86_400_000_000
#: Attempts at a decision whose rows another gateway keeps removing: once an hour.
_ATTEMPTS_MAX = 5

T = TypeVar("T")


class _Row(msgspec.Struct, frozen=True):
    """A counter as it is locked."""

    value: int
    moment_us: int
    seeded_at_us: int


class _Missing(Exception):
    """These counters have no row that could be locked."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names


class SqlTally:
    """`tally = SqlTally(store)`, whose store is used by nothing else if it is PostgreSQL: its pool bounds this."""

    def __init__(self, store: Store, *, clock_us: Callable[[], int] | None = None) -> None:
        self._store = store
        #: None: the database's own on PostgreSQL, which is the same for all gateways.
        self._clock_us = clock_us
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="counters")
        self._rest: asyncio.TimerHandle | None = None
        self._purged_at_s = 0.0

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict | Unseeded:
        is_left = threading.Event()
        try:
            return await self._in_thread(lambda: self._attempted(lambda: self._reserve(lease, draws, is_left)))
        except asyncio.CancelledError:
            # Its thread may wait for rows that others hold: nobody is there to give back what it took then.
            is_left.set()
            raise

    async def seed(self, window: Draw, value: int, *, is_late: bool) -> None:
        await self._in_thread(lambda: self._seed(window, value, is_late=is_late))

    async def apply(self, changes: Sequence[Change]) -> None:
        await self._in_thread(lambda: self._attempted(lambda: self._apply(changes)))

    async def probe(self) -> None:
        await self._in_thread(self._purge)

    async def tidy(self) -> None:
        await self._in_thread(self._purge)

    async def close(self) -> None:
        if self._rest:
            self._rest.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, do: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        if self._rest:
            self._rest.cancel()
        if not self._store.is_shared:
            self._rest = loop.call_later(QUIET_S, self._threads.submit, self._store.rest_from_looking)
        try:
            return await loop.run_in_executor(self._threads, do)
        except StoreUnavailable as error:
            raise TallyUnavailable(error.reason) from None

    def _attempted(self, do: Callable[[], T]) -> T:
        """Make rows that are missing in a transaction of their own: one that holds others' locks could wait for theirs."""
        for _ in range(_ATTEMPTS_MAX):
            try:
                return do()
            except _Missing as missing:
                rows = [{"name": it, "value": 0, "moment_us": 0, "seeded_at_us": 0} for it in sorted(missing.names)]
                with self._transaction() as connection:
                    idle_at_us = self._now_us(connection) + _DAY_US
                    connection.execute(
                        _insert(connection, counters), [row | {"idle_at_us": idle_at_us} for row in rows]
                    )
        raise TallyUnavailable("rows of counters vanish as they are made")

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._store.is_shared:
            with self._store.begin() as connection:
                yield connection
        else:
            with self._store.looking() as connection:
                # Readers that become writers would find that another was quicker.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection

    def _now_us(self, connection: Connection) -> int:
        if self._clock_us is not None:
            return self._clock_us()
        if not self._store.is_shared:
            return time.time_ns() // 1000
        return int(connection.scalar(select(_DATABASE_NOW_US)) or 0)

    def _locked(self, connection: Connection, names: Sequence[str]) -> dict[str, _Row]:
        rows = connection.execute(_LOCK, {"names": sorted(names)})
        return {row.name: _Row(row.value, row.moment_us, row.seeded_at_us) for row in rows}

    def _reserve(self, lease: str, draws: Sequence[Draw], is_left: threading.Event) -> Verdict | Unseeded:
        with self._transaction() as connection:
            rows = self._locked(connection, [draw.name for draw in draws])
            if unknown := [draw for draw in draws if not _is_known(draw, rows)]:
                return Unseeded(tuple(unknown))
            if missing := [draw.name for draw in draws if draw.name not in rows]:
                raise _Missing(missing)
            now_us = self._now_us(connection)
            states = self._states(connection, draws, rows, now_us)
            verdict, after = policy.decide(draws, states, now_us)
            if verdict.refused is None:
                taken = {it.name: (it, state) for it, state in zip(draws, after, strict=True)}
                _write(connection, {it: of for it, of in taken.items() if of[0].kind is Kind.RATE}, now_us)
                holds = {(it.name, lease): _hold_of(it) for it in draws if _is_held(it, rows)}
                _hold(connection, holds, now_us, is_first=True)
            if is_left.is_set():
                raise TallyUnavailable("the call that asked has left")
            return verdict

    def _states(
        self, connection: Connection, draws: Sequence[Draw], rows: Mapping[str, _Row], now_us: int
    ) -> list[State]:
        names = [draw.name for draw in draws if draw.kind is not Kind.RATE]
        sums = connection.execute(_HELD, {"names": names, "now_us": now_us}) if names else ()
        held = {row.counter: (int(row.amount), int(row.number)) for row in sums}
        states = []
        for draw in draws:
            row, (amount, number) = rows[draw.name], held.get(draw.name, (0, 0))
            if draw.kind is Kind.OPEN:
                states.append(State(held=number))
            else:
                states.append(State(row.value, row.moment_us, amount))
        return states

    def _seed(self, window: Draw, value: int, *, is_late: bool) -> None:
        with self._transaction() as connection:
            row = self._locked(connection, [window.name]).get(window.name)
            if row is not None and row.moment_us >= window.ends_at_us:
                if not is_late or row.moment_us > window.ends_at_us:
                    return
                value = max(value, row.value)
            says = {"value": value, "moment_us": window.ends_at_us, "seeded_at_us": self._now_us(connection)}
            says["idle_at_us"] = window.ends_at_us
            if row is None:
                # Nothing, if another gateway was quicker.
                connection.execute(_insert(connection, counters).values(name=window.name, **says))
            else:
                connection.execute(update(counters).where(counters.c.name == window.name).values(**says))
                if row.moment_us < window.ends_at_us:
                    connection.execute(delete(leases).where(leases.c.counter == window.name))

    def _apply(self, changes: Sequence[Change]) -> None:
        """One transaction for all: none is made half."""
        with self._transaction() as connection:
            rows = self._locked(connection, [part.draw.name for change in changes for part in change.parts])
            spends = [part.draw.name for it in changes for part in it.parts if part.draw.kind is Kind.RATE and part.add]
            if missing := set(spends) - set(rows):
                raise _Missing(list(missing))
            now_us = self._now_us(connection)
            changed: dict[str, tuple[Draw, State]] = {}
            holds: dict[tuple[str, str], int] = {}
            for change in self._unsettled(connection, changes, now_us):
                for part in change.parts:
                    if part.add:
                        _add(connection, change, part, rows, changed, now_us)
                    if _is_held(part.draw, rows):
                        holds[part.draw.name, change.lease] = part.hold
            _write(connection, changed, now_us)
            if holds:
                connection.execute(delete(leases).where(tuple_(leases.c.counter, leases.c.id).in_(list(holds))))
            _hold(connection, holds, now_us)

    def _unsettled(self, connection: Connection, changes: Sequence[Change], now_us: int) -> list[Change]:
        """Those whose leases are not over; and note which are now."""
        known = select(leases.c.id).where(
            leases.c.counter == _SETTLED, leases.c.id.in_([change.lease for change in changes])
        )
        settled = set(connection.scalars(known))
        left = []
        for change in changes:
            if change.lease not in settled:
                left.append(change)
                if change.is_final:
                    settled.add(change.lease)
        final = [
            {"counter": _SETTLED, "id": it.lease, "amount": 0, "ends_at_us": now_us + _LEASE_US}
            for it in left
            if it.is_final
        ]
        if final:
            connection.execute(_insert(connection, leases), final)
        return left

    def _purge(self) -> None:
        """Write something, and at times remove what says nothing any more."""
        with self._transaction() as connection:
            now_us = self._now_us(connection)
            connection.execute(delete(leases).where(leases.c.ends_at_us <= now_us))
            if time.monotonic() - self._purged_at_s >= PURGE_S:
                connection.execute(delete(counters).where(counters.c.idle_at_us <= now_us))
                self._purged_at_s = time.monotonic()


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """What is there already stays."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def _is_known(draw: Draw, rows: Mapping[str, _Row]) -> bool:
    row = rows.get(draw.name)
    return policy.is_known(draw, NEW if row is None else State(row.value, row.moment_us))


def _is_held(draw: Draw, rows: Mapping[str, _Row]) -> bool:
    """Open calls, and windows that are not over."""
    if draw.kind is Kind.WINDOW:
        row = rows.get(draw.name)
        return row is None or row.moment_us <= draw.ends_at_us
    return draw.kind is Kind.OPEN


def _hold_of(draw: Draw) -> int:
    return 1 if draw.kind is Kind.OPEN else draw.amount


def _add(
    connection: Connection,
    change: Change,
    part: Part,
    rows: Mapping[str, _Row],
    changed: dict[str, tuple[Draw, State]],
    now_us: int,
) -> None:
    """What a change adds to one counter."""
    draw, row = part.draw, rows.get(part.draw.name)
    if row is None:
        return
    _, state = changed.get(draw.name, (draw, State(row.value, row.moment_us)))
    if draw.kind is Kind.RATE:
        changed[draw.name] = (draw, policy.take(draw, state, part.add, change.spent_at_us or now_us))
    elif row.moment_us == draw.ends_at_us and (
        row.seeded_at_us < change.over_at_us or _holds(connection, draw.name, change.lease)
    ):
        changed[draw.name] = (draw, State(state.value + part.add, state.moment_us))


def _holds(connection: Connection, name: str, lease: str) -> bool:
    return connection.scalar(select(leases.c.id).where(leases.c.counter == name, leases.c.id == lease)) is not None


def _write(connection: Connection, states: Mapping[str, tuple[Draw, State]], now_us: int) -> None:
    rows = [
        {"of": name, "value": state.value, "moment_us": state.moment_us, "idle_at_us": _idle_at_us(draw, state, now_us)}
        for name, (draw, state) in states.items()
    ]
    if rows:
        connection.execute(_UPDATE, rows)


def _idle_at_us(draw: Draw, state: State, now_us: int) -> int:
    if draw.kind is Kind.WINDOW:
        return state.moment_us
    return now_us + policy.level(draw, state, now_us).resets_in_us if draw.limit else now_us + _DAY_US


def _hold(connection: Connection, holds: Mapping[tuple[str, str], int], now_us: int, *, is_first: bool = False) -> None:
    """Have leases hold these amounts, and no others, for LEASE_S."""
    if holds and not is_first:
        connection.execute(delete(leases).where(tuple_(leases.c.counter, leases.c.id).in_(list(holds))))
    rows = [
        {"counter": name, "id": lease, "amount": amount, "ends_at_us": now_us + _LEASE_US}
        for (name, lease), amount in holds.items()
        if amount
    ]
    if rows:
        connection.execute(_insert(connection, leases), rows)


_DATABASE_NOW_US = cast(extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
_LOCK = (
    select(counters)
    .where(counters.c.name.in_(bindparam("names", expanding=True)))
    .order_by(counters.c.name)
    .with_for_update()
)
_HELD = (
    select(leases.c.counter, func.sum(leases.c.amount).label("amount"), func.count().label("number"))
    .where(leases.c.counter.in_(bindparam("names", expanding=True)), leases.c.ends_at_us > bindparam("now_us"))
    .group_by(leases.c.counter)
)
_UPDATE = (
    update(counters)
    .where(counters.c.name == bindparam("of"))
    .values(value=bindparam("value"), moment_us=bindparam("moment_us"), idle_at_us=bindparam("idle_at_us"))
)
