"""End users: the people behind calls, as references that say no name. Ledger, audit and log have the reference; the name is in one row of
one table: deleting that row erases the person (TEN-4).

A reference is random, made in the database when a person is first seen, and the same on every gateway. While the database is away a
person who is not remembered gets a stopgap, which is written down later: no call is refused because a name could not be looked up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import bindparam, insert, select
from sqlalchemy.exc import IntegrityError

from serving.errors import StoreUnavailable
from serving.gateway.identity.changes import Kind, News
from serving.gateway.store.store import Store
from serving.gateway.store.tables import end_users

#: Characters of a name.
NAME_CHARS_MAX = 255
#: People that are remembered, at about 0.4 KB each.
REMEMBERED_MAX = 50_000
#: Seconds until the database is asked about one again: as long as a person who was erased by another program may keep the reference.
REMEMBERED_S = 600.0
#: Stopgaps that wait for the database; of more, the oldest are never written down and lead to no one.
STOPGAPS_MAX = 10_000
#: Seconds without asking the database after it failed, and between attempts to write stopgaps down.
RETRY_S = 1.0

log = logging.getLogger(__name__)

#: A tenant's id and the person's name.
Person = tuple[str, str]


def is_name(name: str) -> bool:
    """Can this be an end user's name?"""
    return 0 < len(name) <= NAME_CHARS_MAX and name.isprintable()


class EndUsers:
    """References of people. `clock` is monotonic, `wall_clock` in seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        *,
        lookup_timeout_s: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._store = store
        self._lookup_timeout_s = lookup_timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._remembered_max = remembered_max
        #: Person → reference, and when the database was asked.
        self._remembered: OrderedDict[Person, tuple[str, float]] = OrderedDict()
        self._stopgaps: OrderedDict[Person, str] = OrderedDict()
        self._has_stopgaps = asyncio.Event()
        self._lookups: dict[Person, asyncio.Task[str]] = {}
        self._ask_again_at = -math.inf
        # Of its own: a database that hangs takes this thread and no other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="end-users")

    async def reference(self, tenant_id: str, name: str) -> str:
        """The reference of a person; never fails."""
        person = (tenant_id, name)
        ref, asked_at = self._remembered.get(person, ("", -math.inf))
        if self._clock() - asked_at < REMEMBERED_S:
            self._remembered.move_to_end(person)
            return ref
        if self._clock() < self._ask_again_at:
            return ref or self._stopgap(person, _new())
        lookup = self._lookups.get(person)
        if lookup is None:
            lookup = self._lookups[person] = asyncio.create_task(self._look_up(person, ref))
            lookup.add_done_callback(lambda _: self._lookups.pop(person, None))
        # Shielded: one client that leaves must not fail the others who wait for the same answer.
        return await asyncio.shield(lookup)

    def forget(self, news: News) -> None:
        """A person who was erased gets a new reference when seen again."""
        erased = None if news.changes is None else {it.subject for it in news.changes if it.kind == Kind.END_USER}
        if erased is None or erased:
            gone = [person for person, (ref, _) in self._remembered.items() if erased is None or ref in erased]
            for person in gone:
                del self._remembered[person]

    async def run(self) -> None:
        """Write stopgaps down, whenever there are any, until cancelled."""
        while True:
            await self._has_stopgaps.wait()
            await asyncio.sleep(RETRY_S)
            await self.write_down()

    async def write_down(self) -> None:
        """Try once to write the stopgaps down; what the database does not take waits on."""
        waiting = dict(self._stopgaps)
        if waiting:
            taken = await asyncio.get_running_loop().run_in_executor(self._thread, self._written_down, waiting)
            for person, ref in taken.items():
                # Let go meanwhile for want of room, or written down by another call of this.
                self._stopgaps.pop(person, None)
                self._remember(person, ref)
        if not self._stopgaps:
            self._has_stopgaps.clear()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, person: Person, remembered: str) -> str:
        new = self._stopgaps.get(person) or _new()
        thread = asyncio.get_running_loop().run_in_executor(self._thread, self._kept, person, new)
        try:
            ref = await asyncio.wait_for(thread, self._lookup_timeout_s)
        except (StoreUnavailable, TimeoutError) as error:
            self._ask_again_at = self._clock() + RETRY_S
            reason = error.reason if isinstance(error, StoreUnavailable) else "no answer in time"
            log.warning("the store cannot be asked about an end user: %s", reason)
            # The same as the thread may still write.
            return remembered or self._stopgap(person, new)
        self._remember(person, ref)
        return ref

    def _remember(self, person: Person, ref: str) -> None:
        self._remembered.pop(person, None)
        self._remembered[person] = ref, self._clock()
        if len(self._remembered) > self._remembered_max:
            self._remembered.popitem(last=False)

    def _stopgap(self, person: Person, new: str) -> str:
        ref = self._stopgaps.setdefault(person, new)
        if len(self._stopgaps) > STOPGAPS_MAX:
            self._stopgaps.popitem(last=False)
        self._has_stopgaps.set()
        return ref

    def _kept(self, person: Person, new: str) -> str:
        """The reference in the database, `new` where there was none."""
        tenant_id, name = person
        for _ in range(2):
            with self._store.looking() as connection:
                found: str | None = connection.scalar(_FIND, {"tenant": tenant_id, "name": name})
            if found is not None:
                return found
            # Another gateway may be quicker; then the second look finds what it wrote.
            with contextlib.suppress(IntegrityError):
                self._insert(person, new)
                return new
        raise StoreUnavailable("an end user was made and removed at the same moment")

    def _insert(self, person: Person, ref: str, stopgap: str = "") -> None:
        tenant_id, name = person
        values = {"tenant_id": tenant_id, "subject": name, "created_at": self._wall_clock()}
        with self._store.begin() as connection:
            connection.execute(insert(end_users).values(ref=ref, stopgap=stopgap, **values))

    def _written_down(self, waiting: dict[Person, str]) -> dict[Person, str]:
        """Person → the reference that counts from now on, of those that the database took."""
        taken: dict[Person, str] = {}
        try:
            for person, stopgap in waiting.items():
                ref = self._kept(person, stopgap)
                if ref != stopgap:
                    # Known already: what was called by the stopgap leads to the same person.
                    with contextlib.suppress(IntegrityError):
                        self._insert(person, stopgap, stopgap)
                taken[person] = ref
        except StoreUnavailable:
            pass
        return taken


_FIND = select(end_users.c.ref).where(
    end_users.c.tenant_id == bindparam("tenant"),
    end_users.c.subject == bindparam("name"),
    end_users.c.stopgap == "",
)


def _new() -> str:
    return secrets.token_hex(16)
