"""People: the end users of a store, for operators: who they are, and how a person is erased.

Ledger and audit hold references; a person's name is in `end_users` alone. Without it the references stay, with their tokens, and
say no one (TEN-22).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from sqlalchemy import Connection, delete, func, select

from serving.errors import NotFound
from serving.gateway.identity import changes, holdings
from serving.gateway.identity.acts import Act, ActKind, Witness, unwitnessed
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.store.store import Store
from serving.gateway.store.tables import (
    RUNNING,
    conversation_items,
    conversations,
    end_users,
    response_events,
    response_items,
    responses,
    sessions,
    tenants,
)


class Person(msgspec.Struct, frozen=True):
    """An end user as a tenant's calls name one; `ref` is what the ledger has. Seconds since the epoch."""

    ref: str
    tenant: str
    subject: str
    created_at: float


def people(
    store: Store, *, tenant: str | None = None, subject: str | None = None, after: str | None = None, limit: int
) -> list[Person]:
    """A page of at most `limit` people by reference, behind the reference `after`."""
    named = func.coalesce(tenants.c.name, end_users.c.tenant_id)
    query = select(end_users.c.ref, named, end_users.c.subject, end_users.c.created_at)
    query = query.select_from(end_users.outerjoin(tenants, tenants.c.id == end_users.c.tenant_id))
    if tenant is not None:
        query = query.where(tenants.c.name == tenant)
    if subject is not None:
        query = query.where(end_users.c.subject == subject)
    if after is not None:
        query = query.where(end_users.c.ref > after)
    with store.begin() as connection:
        return [Person(*row) for row in connection.execute(query.order_by(end_users.c.ref).limit(limit))]


def subject_of(store: Store, ref: str) -> str | None:
    """Whom a reference means; None for one who was erased."""
    with store.begin() as connection:
        found: str | None = connection.scalar(select(end_users.c.subject).where(end_users.c.ref == ref))
    return found


def erase(
    store: Store,
    tenant: str,
    subject: str,
    witness: Witness = unwitnessed,
    clock: Callable[[], float] = time.time,
) -> list[str]:
    """Remove a person of a tenant, and all that is stored of what they said, their files and batches included; returns the references
    that say no one from now on.

    Raises NotFound where there is none. Gateways forget the person within a second, sessions of the console included; one who
    calls again is a new one to them.
    """
    with store.erasing() as connection:
        changes.take_turn(connection)
        of_tenant = select(tenants.c.id).where(tenants.c.name == tenant).scalar_subquery()
        them = (end_users.c.tenant_id == of_tenant, end_users.c.subject == subject)
        rows = connection.execute(select(end_users.c.ref, end_users.c.tenant_id).where(*them)).all()
        if not rows:
            # Not repeated: it may be a person's.
            raise NotFound(f"Tenant '{tenant}' has no such user; `serving users list {tenant}` shows those it has.")
        connection.execute(delete(end_users).where(*them))
        refs = [row.ref for row in rows]
        _erase_stored(connection, refs)
        while holdings.erase_some(connection, lambda table: table.c.user_ref.in_(refs), clock()):
            pass
        changes.note(connection, *(Change(Kind.END_USER, row.ref) for row in rows))
        theirs = sessions.c.user_ref.in_([row.ref for row in rows])
        ended = list(connection.scalars(select(sessions.c.id).where(theirs)))
        changes.note(connection, *(Change(Kind.SESSION, it) for it in ended))
        connection.execute(delete(sessions).where(theirs))
        for row in rows:
            witness(connection, Act(ActKind.USER_ERASE, row.ref, row.tenant_id))
    return [row.ref for row in rows]


def _erase_stored(connection: Connection, refs: list[str]) -> None:
    """Delete what they said and were answered, where that is stored, and stop what runs for them."""
    running = select(responses.c.id).where(responses.c.user_ref.in_(refs), responses.c.status.in_(RUNNING))
    changes.note(connection, *(Change(Kind.RESPONSE, it) for it in connection.scalars(running)))
    theirs = select(responses.c.id).where(responses.c.user_ref.in_(refs))
    connection.execute(delete(response_events).where(response_events.c.response_id.in_(theirs)))
    connection.execute(delete(response_items).where(response_items.c.response_id.in_(theirs)))
    connection.execute(delete(responses).where(responses.c.user_ref.in_(refs)))
    talks = select(conversations.c.id).where(conversations.c.user_ref.in_(refs))
    said = conversation_items.c
    connection.execute(delete(conversation_items).where(said.user_ref.in_(refs) | said.conversation_id.in_(talks)))
    connection.execute(delete(conversations).where(conversations.c.user_ref.in_(refs)))
