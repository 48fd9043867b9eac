"""Audit: who called which model when, who signed in and who was refused, in entries of this gateway's chain.

Calls only put facts into memory; one thread writes them about twice a second, some hundred calls to an entry, and signs a checkpoint
every few minutes. A gateway that is killed loses the last second's; the ledger has the calls. While the store is away a bounded number
waits, and the next entry says how many more there were (TEN-29). Administrators' acts do not wait: each is written in its own transaction.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

from serving.errors import StoreUnavailable
from serving.gateway.audit import actors
from serving.gateway.audit.checkpoints import Signer
from serving.gateway.audit.gathering import REFUSED_S, Gathering
from serving.gateway.audit.journal import Journal, Origin
from serving.gateway.identity.acts import Act, Witness
from serving.gateway.nouns import Caller, CallRecord
from serving.gateway.store.store import Store

#: Seconds in which facts gather before they are written together: while the ledger keeps the database open.
GATHER_S = 0.5
#: Seconds between two checkpoints, where there is something to sign, and between two looks for what commands have written.
CHECKPOINT_S = 300.0
#: Seconds between attempts while the store is away, at most.
RETRY_MAX_S = 5.0
#: Seconds by which commands' clocks may be behind.
CLOCKS_DIFFER_S = 600.0

log = logging.getLogger(__name__)


class Audit:
    """This gateway's part of the audit. `with Audit(store, signer, clock=time.time) as audit: …`"""

    def __init__(
        self,
        store: Store,
        signer: Signer,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = Journal(store, signer, clock, Origin.GATEWAY)
        self._gathering = Gathering(clock, monotonic)
        self._clock = clock
        self._monotonic = monotonic
        self._arrived = threading.Event()
        self._closing = threading.Event()
        #: Attempts that failed in a row, and when the first of them was.
        self._failures = 0
        self._behind_since = 0.0
        self._signed_at = monotonic()
        #: What commands have written before this moment, since the epoch, was signed.
        self._looked_at = clock()
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._arrived.set()
        self._thread.join()
        if self._flushed(is_last=True):
            self._journal.__exit__()
        else:
            missing = self._gathering.waiting_calls + self._gathering.lost
            log.error("%d calls are missing in the audit; the ledger has them", missing)

    @property
    def lag_s(self) -> float:
        """Seconds since the store took every entry; 0 while it does."""
        return self._monotonic() - self._behind_since if self._failures else 0.0

    @property
    def writer(self) -> str:
        """Whose chain it is."""
        return self._journal.writer

    def witness(self, caller: Caller) -> Witness:
        """Tells of an administrator's acts, each in the transaction that does it."""
        return self._journal.witness(actors.of(caller))

    def note(self, caller: Caller, act: Act) -> None:
        """Tell of an act that changes nothing, within a second."""
        self._gathering.note(actors.of(caller), act)
        self._arrived.set()

    def settle(self, record: CallRecord) -> None:
        """A request is over."""
        # Asked first, because to set it takes the interpreter from the event loop.
        if self._gathering.settle(record) and not self._arrived.is_set():
            self._arrived.set()

    def flush(self, *, is_last: bool = False) -> None:
        """Write what waits, now and here (blocking). Raises StoreUnavailable; it waits on then."""
        while (batch := self._gathering.batch(is_last=is_last)).entries:
            self._journal.write(batch.entries)
            self._gathering.forget(batch)
            if batch.lost:
                log.error("%d calls and sign-ins are missing in the audit; the ledger has the calls", batch.lost)

    def sign(self) -> None:
        """Sign how far this chain and those of commands have come (blocking). Raises StoreUnavailable."""
        now = self._clock()
        self._journal.checkpoint(also_since_us=round((self._looked_at - CLOCKS_DIFFER_S) * 1e6))
        self._looked_at, self._signed_at = now, self._monotonic()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._arrived.wait(self._rest_s())
            self._closing.wait(GATHER_S)
            self._arrived.clear()
            if not self._flushed() or not self._signed_if_due():
                self._closing.wait(min(GATHER_S * 2.0 ** min(self._failures, 16), RETRY_MAX_S))
                self._arrived.set()

    def _rest_s(self) -> float:
        """Seconds after which there is something to do in any case."""
        due_s = self._signed_at + CHECKPOINT_S - self._monotonic()
        return max(0.0, min(due_s, REFUSED_S) if self._gathering.has_refusals else due_s)

    def _signed_if_due(self) -> bool:
        return self._monotonic() - self._signed_at < CHECKPOINT_S or self._done(self.sign)

    def _flushed(self, *, is_last: bool = False) -> bool:
        return self._done(lambda: self.flush(is_last=is_last))

    def _done(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except StoreUnavailable as error:
            return self._failed(error.reason)
        except Exception as error:  # noqa: BLE001 The thread's outermost edge: a dead writer would lose all that follows.
            return self._failed(type(error).__name__)
        if self._failures:
            log.info("the audit has caught up with the store")
        self._failures = 0
        return True

    def _failed(self, reason: str) -> bool:
        if self._failures == 0:
            self._behind_since = self._monotonic()
            log.warning("the audit waits for the store (%s): %d calls in memory", reason, self._gathering.waiting_calls)
        self._failures += 1
        return False
