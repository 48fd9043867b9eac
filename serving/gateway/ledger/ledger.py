"""Ledger: what every call cost, exact or marked estimated. A row is opened with the call and closed on every way out of it,
the gateway's own death included.

Calls only put rows into memory; one thread writes them in groups. Before any byte goes out, a call waits until its opening is in the
database (`kept`). While the database is away openings go to a file beside it, and so do other rows when too many wait; the file is
written into the database later, each row once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Self

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from serving.errors import Refusal, StoreUnavailable
from serving.gateway.ledger import spill
from serving.gateway.ledger.endings import Endings
from serving.gateway.ledger.openings import Openings
from serving.gateway.ledger.retention import Retention
from serving.gateway.ledger.rows import (
    OPEN,
    LedgerRow,
    closing_row,
    ended,
    foreseen_row,
    opening_row,
    unbilled,
    upsert,
    write,
)
from serving.gateway.ledger.watch import BEAT_S, Watch, own_gateway_id
from serving.gateway.nouns import CallRecord, Usage
from serving.gateway.store.store import Store

#: Writes something else in the transaction that writes a call's end; False where no one wants it any more.
Beside = Callable[[Connection], bool]

#: Seconds in which ends of calls gather before they are written together; an opening is waited for.
GROUP_S = 0.05
#: Seconds between two transactions while several calls at a time wait for one: a transaction for each would take more of the
#: interpreter than the calls' rows.
GATHER_S = 0.004
#: Seconds without a row after which the database is not kept open between writes.
QUIET_S = 1.0
#: Seconds a call waits for the database before its opening goes to the file instead.
KEPT_S = 0.25
#: Seconds between attempts while the database is away, at most.
RETRY_MAX_S = 5.0
#: Rows of one transaction: about 5 ms of work, so that other writers get their turn.
BATCH_ROWS_MAX = 500
#: Attempts at a batch of which another gateway keeps taking request ids; an attempt sees all that were taken before it.
COLLISIONS_MAX = 5
#: Rows that wait in memory before they go to the spill file; about 1 KB each.
SPILL_ROWS = 1_000
#: Rows after which no call may begin while neither database nor file takes them: unbilled work is refused.
PENDING_ROWS_MAX = 1_000

log = logging.getLogger(__name__)


class Ledger:
    """Every call's row, on its way to the database. `with Ledger(store, clock=time.time) as ledger: …`"""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float],
        gateway_id: str | None = None,
        retention_days: int | None = None,
        spill_rows: int = SPILL_ROWS,
        pending_rows_max: int = PENDING_ROWS_MAX,
    ) -> None:
        self._store = store
        self._clock = clock
        self._gateway_id = gateway_id or own_gateway_id()
        self._spill_at_rows = spill_rows
        self._pending_rows_max = pending_rows_max
        self._spill = spill.Spill(store.home)
        self._watch = Watch(store, self._gateway_id, clock)
        self._retention = Retention(store, retention_days, clock)
        #: What else is done in the store between writes.
        self._chores: list[Callable[[], None]] = []
        self._pending: dict[str, LedgerRow] = {}
        self._openings = Openings()
        #: What is written with the end of a call, and who waits for it.
        self._beside: dict[str, tuple[Beside, asyncio.Future[None]]] = {}
        self._endings = Endings(store.home, self._gateway_id)
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        #: A call waits for its opening.
        self._hurry = threading.Event()
        self._closing = threading.Event()
        # One writer at a time: the thread, or `flush()` of another.
        self._writing = threading.RLock()
        self._spilling = threading.Lock()
        #: The last attempt to write the file failed.
        self._is_spill_failing = False
        self._must_recover = True
        #: Openings in the last transaction.
        self._opened_together = 0
        self._failures = 0
        #: When the store first failed to take rows, on the clock; None while it takes them.
        self._behind_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)

    def __enter__(self) -> Self:
        self.flush()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if lost := self.stop():
            raise Refusal(
                f"{lost} ledger rows could be written neither to the database nor beside it. They stand above, one a line: "
                f"append those lines to {self._spill.path}, and the next start writes them."
            )

    @property
    def gateway_id(self) -> str:
        """What this gateway is called in the store."""
        return self._gateway_id

    def keep_house(self, chore: Callable[[], None]) -> None:
        """Have the writer do something in the store now and then, between its own writes; it says itself when that is due."""
        self._chores.append(chore)

    @property
    def pending_rows(self) -> int:
        """Rows in memory that the database has not got yet."""
        return len(self._pending)

    @property
    def gateways(self) -> int:
        """How many share the store, this one included, as last known; each worker is one."""
        return self._watch.living

    @property
    def is_store_up(self) -> bool:
        """Did the last use of the store work? The writer uses it every few seconds, whether or not rows wait."""
        return self._failures == 0

    @property
    def takes_calls(self) -> bool:
        """False while neither database nor file can be written and `pending_rows_max` rows wait already."""
        is_stranded = self._failures > 0 and self._is_spill_failing
        return not (is_stranded and len(self._pending) >= self._pending_rows_max)

    @property
    def lag_s(self) -> float:
        """Seconds since every row was in the store; 0 while it takes them."""
        since = self._behind_since
        return 0.0 if since is None else max(0.0, self._clock() - since)

    def open(self, record: CallRecord) -> None:
        """Open a call's row; `close` writes it again, for good.

        Raises StoreUnavailable while the ledger takes no calls: what cannot be billed is not begun.
        """
        if not self.takes_calls:
            raise StoreUnavailable("the ledger cannot be written")
        record.entry_id, record.opened_at_epoch_s = f"{random.getrandbits(64):016x}", self._clock()
        self._openings.note(record.entry_id)
        self._put(opening_row(record, self._gateway_id))
        if not self._hurry.is_set():
            self._hurry.set()

    async def kept(self, record: CallRecord) -> None:
        """Return when a call's opening is where no killed gateway loses it: in the database or, while that is away, the file.

        Returns as well when neither takes it: `takes_calls` bounds how many such calls there are.
        """
        entry_id = record.entry_id
        if self._openings.is_kept(entry_id):
            return
        if self.is_store_up and await self._openings.wait(entry_id, KEPT_S):
            return
        await asyncio.to_thread(self._spill_openings, entry_id)

    def foresee(self, record: CallRecord, usage: Usage, price_micros: int | None) -> None:
        """The last bytes of a call go out next: what it has cost is kept where no killed gateway loses it."""
        if record.entry_id:
            self._endings.note(foreseen_row(record, usage, price_micros, self._gateway_id, self._clock()))

    def accompany(self, record: CallRecord, write: Beside) -> asyncio.Future[None]:
        """Have `write` called in the transaction that has this call's end, which `close` brings. The call is billed where that is
        kept, and nowhere else (BAT-7).

        Done once they are. While the database is away they wait in memory; a gateway that stops meanwhile loses what was to be kept.
        """
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beside[record.entry_id] = write, kept
        return kept

    def close(self, record: CallRecord) -> None:
        """Write what a call came to, if its row is open."""
        if record.entry_id:
            self._put(closing_row(record, self._gateway_id, self._clock()))

    def flush(self) -> bool:
        """Write what waits, now and here (blocking). False when the database did not take it: it waits on."""
        with self._writing:
            try:
                self._recover()
                # Before any row: others close the rows of gateways without a heartbeat.
                self._watch.check_if_due()
                while batch := self._batch():
                    self._write(batch, write)
                    self._forget(batch)
                    self._opened_together = sum(row.outcome == OPEN for row in batch)
                self._retention.sweep_if_due()
                for chore in self._chores:
                    chore()
            except StoreUnavailable as error:
                return self._failed(error.reason)
            except OSError as error:
                return self._failed(f"{spill.FILE_NAME}: {error.strerror}")
            if self._failures:
                log.info("the ledger has caught up with the store")
            self._failures, self._behind_since = 0, None
            return True

    def stop(self) -> int:
        """Write everything out and stop; what the database does not take goes to the spill file.

        Returns how many rows neither of them took: those are printed whole on standard error, as lines of the file.
        """
        self._closing.set()
        self._arrived.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._empty():
            with contextlib.suppress(StoreUnavailable):
                self._watch.leave()
        self._rest()
        if not self._pending:
            self._endings.remove()
        return len(self._pending)

    def _empty(self) -> bool:
        if self._flushed():
            return True
        with self._writing:
            if not self._spill_rows(everything=True):
                _print_rows(self._spilled(row) for row in list(self._pending.values()))
        return False

    def _put(self, row: LedgerRow) -> None:
        with self._lock:
            # A call that ends before its opening was written needs one row, not two.
            self._pending[row.entry_id] = row
        # Asked first, because to set it takes the interpreter from the event loop.
        if not self._arrived.is_set():
            self._arrived.set()
        if self._closing.is_set() and not self._thread.is_alive():
            self._empty()

    def _run(self) -> None:
        while not self._closing.is_set():
            if not self._arrived.wait(QUIET_S):
                self._rest()
                self._arrived.wait(BEAT_S)
            self._arrived.clear()
            self._hurry.clear()
            if not self._flushed():
                self._arrived.set()
            self._pause()

    def _flushed(self) -> bool:
        try:
            return self.flush()
        except Exception as error:  # noqa: BLE001 The thread's outermost edge: a dead writer would lose every later row.
            return self._failed(type(error).__name__)

    def _pause(self) -> None:
        """Let more rows gather; while the database is away, back off."""
        if self._failures:
            self._closing.wait(min(GROUP_S * 2.0 ** min(self._failures, 16), RETRY_MAX_S))
        elif self._opened_together > 1:
            self._closing.wait(GATHER_S)
        else:
            self._hurry.wait(GROUP_S)

    def _rest(self) -> None:
        with self._writing:
            self._store.rest()

    def _failed(self, reason: str) -> bool:
        self._rest()
        if self._failures == 0:
            self._behind_since = self._clock()
            log.warning("the ledger waits for the store (%s): %d rows in memory", reason, len(self._pending))
        self._failures += 1
        if len(self._pending) >= self._spill_at_rows:
            self._spill_rows(everything=False)
        return False

    def _batch(self) -> list[LedgerRow]:
        with self._lock:
            return list(islice(self._pending.values(), BATCH_ROWS_MAX))

    def _forget(self, rows: Sequence[LedgerRow]) -> None:
        self._openings.tick_off([row.entry_id for row in rows])
        self._release([row.entry_id for row in rows if row.outcome != OPEN])
        self._endings.tick_off([row.entry_id for row in rows if row.outcome != OPEN])
        with self._lock:
            for row in rows:
                # Unless the call ended meanwhile: then its end still has to be written.
                if self._pending.get(row.entry_id) is row:
                    del self._pending[row.entry_id]

    def _release(self, entry_ids: Sequence[str]) -> None:
        """Those who wait for what was written with these ends go on."""
        for kept in [self._beside.pop(it)[1] for it in entry_ids if it in self._beside]:
            # A loop that has ended has none left that waits in it.
            with contextlib.suppress(RuntimeError):
                kept.get_loop().call_soon_threadsafe(_done, kept)

    def _write(self, rows: Sequence[LedgerRow], first: Callable[[Connection, Sequence[LedgerRow]], None]) -> None:
        for put in (first, *[upsert] * COLLISIONS_MAX):
            # Another gateway may take one of these ids between our query and our write; the next attempt sees it.
            with contextlib.suppress(IntegrityError), self._store.following() as connection:
                put(connection, self._accompanied(connection, rows))
                return
        raise StoreUnavailable("request ids were taken at the same moment")

    def _accompanied(self, connection: Connection, rows: Sequence[LedgerRow]) -> Sequence[LedgerRow]:
        """The rows to write, once what goes with them is written."""
        with_more = [row for row in rows if self._has_beside(row)]
        if not with_more:
            return rows
        # Of a transaction whose commit was not confirmed and that is repeated, all is there.
        known = ended(connection, with_more)
        lost = {
            row.entry_id
            for row in with_more
            if row.entry_id not in known and not self._beside[row.entry_id][0](connection)
        }
        return [unbilled(row) if row.entry_id in lost else row for row in rows]

    def _has_beside(self, row: LedgerRow) -> bool:
        return row.outcome != OPEN and row.entry_id in self._beside

    def _recover(self) -> None:
        """After a start or an outage: write the spilled rows."""
        if not self._must_recover:
            return
        # Before the file is read: rows that another thread adds meanwhile are for the next time.
        self._must_recover = False
        try:
            with self._spill.drained() as rows:
                while batch := list(islice(rows, BATCH_ROWS_MAX)):
                    self._write(batch, upsert)
            for path, left in self._endings.left():
                for first in range(0, len(left), BATCH_ROWS_MAX):
                    self._write(left[first : first + BATCH_ROWS_MAX], upsert)
                with contextlib.suppress(OSError):
                    path.unlink()
        except BaseException:
            self._must_recover = True
            raise

    def _spill_openings(self, entry_id: str) -> None:
        """Copy to the file the openings that are only in memory, unless another thread has just done it."""
        with self._spilling:
            if self._openings.is_kept(entry_id):
                return
            with self._lock:
                rows = [row for unkept in self._openings.unkept() if (row := self._pending.get(unkept))]
            if self._append(rows):
                self._openings.tick_off([row.entry_id for row in rows])

    def _spill_rows(self, *, everything: bool) -> bool:
        """Move rows to the file. Open ones stay in memory: their end is still to come."""
        with self._lock:
            rows = [row for row in self._pending.values() if everything or self._may_spill(row)]
        is_spilled = self._append([self._spilled(row) for row in rows])
        if is_spilled:
            self._forget(rows)
        return is_spilled

    def _may_spill(self, row: LedgerRow) -> bool:
        """Neither what is open, nor what has something beside it that only the database takes."""
        return row.outcome != OPEN and not self._has_beside(row)

    def _spilled(self, row: LedgerRow) -> LedgerRow:
        """As the file gets it: what goes with a row is lost there."""
        return unbilled(row) if self._has_beside(row) else row

    def _append(self, rows: Sequence[LedgerRow]) -> bool:
        try:
            self._spill.append(rows)
        except OSError as error:
            if not self._is_spill_failing:
                log.error("ledger rows can be written neither to the store nor beside it: %s", error.strerror)
            self._is_spill_failing = True
            return False
        self._is_spill_failing = False
        self._must_recover = True
        return True


def _done(kept: asyncio.Future[None]) -> None:
    if not kept.done():
        kept.set_result(None)


def _print_rows(rows: Iterable[LedgerRow]) -> None:
    """The last place for rows that no other took; without standard error there is none."""
    if sys.stderr:
        for row in rows:
            sys.stderr.write(msgspec.json.encode(row).decode() + "\n")
