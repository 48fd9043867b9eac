"""Sessions: who is signed in to the console. A row of the database each, so that any gateway knows it and signing out ends it (CON-2).

The browser holds a random word, the database its digest and which key, or whom, it stands for. What that may do is looked up with each
request, as a key's is (`tenants`): a session can do what its credential can, and no longer than it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select

from serving.errors import StoreUnavailable
from serving.gateway.identity import changes
from serving.gateway.identity.acts import Act, ActKind, Witness
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.nouns import OIDC, Caller
from serving.gateway.store.store import Store
from serving.gateway.store.tables import end_users, keys, sessions

#: Sessions of one key or person; a further one ends the oldest.
SESSIONS_MAX = 20
#: A bulkhead: a database that hangs takes these threads and no others.
THREADS = 2
#: Seconds until a browser hears that the database does not answer.
ANSWER_S = 10.0

_WORD_BYTES = 32

T = TypeVar("T")


class Begun(msgspec.Struct, frozen=True):
    """A new session."""

    #: What the browser holds.
    word: str
    #: Seconds since the epoch.
    ends_at: float


class Shown(msgspec.Struct, frozen=True):
    """What its user may see of it."""

    ends_at: float
    key_name: str | None
    user: str | None


def id_of(word: str) -> str:
    """What the database knows of a word. It is random, so that a plain digest hides it."""
    return hashlib.sha256(word.encode()).hexdigest()


class Sessions:
    """Begins and ends them. `with Sessions(store, witness_of, lasts_s=28_800, wall_clock=time.time) as sessions: …`"""

    def __init__(
        self, store: Store, witness_of: Callable[[Caller], Witness], *, lasts_s: float, wall_clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._witness_of = witness_of
        self.lasts_s = lasts_s
        self._wall_clock = wall_clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="sessions")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def begin(self, caller: Caller, issuer: str | None = None) -> Begun:
        """Sign in who has shown to be this caller, by a key or by a token of the issuer. Raises StoreUnavailable."""
        begun = Begun(secrets.token_urlsafe(_WORD_BYTES), self._wall_clock() + self.lasts_s)
        await self._in_thread(partial(self._write, begun, caller, issuer))
        return begun

    async def end(self, word: str, caller: Caller | None) -> str:
        """Sign out: no gateway takes it within a second; returns its id. Where its credential has ended before, `caller` is None."""
        session_id = id_of(word)
        await self._in_thread(partial(self._remove, session_id, caller))
        return session_id

    async def shown(self, word: str) -> Shown | None:
        """What its user may see of it."""
        return await self._in_thread(partial(self._read, id_of(word)))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise StoreUnavailable("no answer in time") from None

    def _write(self, begun: Begun, caller: Caller, issuer: str | None) -> None:
        is_person, now = caller.key_id == OIDC, self._wall_clock()
        session_id = id_of(begun.word)
        row = {
            "id": session_id,
            "tenant_id": caller.tenant_id,
            "key_id": None if is_person else caller.key_id,
            "issuer": issuer,
            "user_ref": caller.user_ref,
            "role": caller.role if is_person else None,
            "began_at": now,
            "ends_at": begun.ends_at,
        }
        with self._store.begin() as connection:
            changes.take_turn(connection)
            connection.execute(delete(sessions).where(sessions.c.ends_at <= now))
            _make_room(connection, _of(caller))
            connection.execute(insert(sessions).values(row))
            told = {"issuer": issuer} if issuer else {}
            self._witness_of(caller)(connection, Act(ActKind.SESSION_BEGIN, session_id, caller.tenant_id, told))

    def _remove(self, session_id: str, caller: Caller | None) -> None:
        with self._store.begin() as connection:
            changes.take_turn(connection)
            if not connection.execute(delete(sessions).where(sessions.c.id == session_id)).rowcount:
                return
            changes.note(connection, Change(Kind.SESSION, session_id))
            if caller is not None:
                self._witness_of(caller)(connection, Act(ActKind.SESSION_END, session_id, caller.tenant_id))

    def _read(self, session_id: str) -> Shown | None:
        with self._store.looking() as connection:
            row = connection.execute(_SHOWN.where(sessions.c.id == session_id)).one_or_none()
        return None if row is None else Shown(*row)


_SHOWN = select(sessions.c.ends_at, keys.c.name, end_users.c.subject).select_from(
    sessions.outerjoin(keys, keys.c.id == sessions.c.key_id).outerjoin(
        end_users, end_users.c.ref == sessions.c.user_ref
    )
)


def _of(caller: Caller) -> ColumnElement[bool]:
    """Its own sessions."""
    if caller.key_id != OIDC:
        return sessions.c.key_id == caller.key_id
    return and_(sessions.c.tenant_id == caller.tenant_id, sessions.c.user_ref == caller.user_ref)


def _make_room(connection: Connection, of: ColumnElement[bool]) -> None:
    """End the oldest of those where one more would be too many."""
    oldest = select(sessions.c.id).where(of).order_by(sessions.c.began_at.desc()).offset(SESSIONS_MAX - 1)
    ended = list(connection.scalars(oldest))
    connection.execute(delete(sessions).where(sessions.c.id.in_(ended)))
    changes.note(connection, *(Change(Kind.SESSION, it) for it in ended))
