"""Pruning: what is older than the settings keep is removed, so that what stays can be verified.

A chain is cut only before a checkpoint of its own, whose signature then stands for what was before it; a chain of which all is old
goes as a whole. The act that tells of it, in a chain that stays, says up to which moment entries may be missing (TEN-31).
"""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, select

from serving.gateway.audit import checkpoints
from serving.gateway.audit.actors import Actor
from serving.gateway.audit.chain import Kind
from serving.gateway.audit.journal import Journal, body_of
from serving.gateway.audit.verification import moment
from serving.gateway.identity.acts import Act, ActKind
from serving.gateway.store.store import Store
from serving.gateway.store.tables import audit


class Pruned(msgspec.Struct):
    """How many entries were removed, and how many chains with all of theirs."""

    entries: int = 0
    chains: int = 0


def prune(store: Store, journal: Journal, actor: Actor, before: float) -> Pruned:
    """Remove what was written before a moment (seconds since the epoch), in the transaction that tells of it."""
    pruned, before_us = Pruned(), round(before * 1e6)
    with store.alone() as connection:
        ends = select(audit.c.writer, func.max(audit.c.written_at).label("last_at")).group_by(audit.c.writer)
        old = ends.having(func.min(audit.c.written_at) < before).order_by(audit.c.writer)
        for writer, last_at in connection.execute(old).all():
            if last_at is None:
                # One of its times was forged: verification finds it, and it stays.
                continue
            if last_at < before:
                pruned.chains += 1
                pruned.entries += _remove(connection, audit.c.writer == writer)
            elif first_kept := _checkpoint_before(connection, writer, before):
                pruned.entries += _remove(connection, audit.c.writer == writer, audit.c.number < first_kept)
        if pruned.entries:
            told = {"before_us": before_us, "before": moment(before_us), **msgspec.to_builtins(pruned)}
            act = Act(ActKind.AUDIT_PRUNE, "audit", details=told)
            journal.append(connection, act.kind, body_of(actor, act))
    return pruned


def _checkpoint_before(connection: Connection, writer: str, before: float) -> int | None:
    """The number of the last entry, written before that, whose checkpoint is of the entry before it."""
    is_its = (audit.c.writer == writer, audit.c.kind == Kind.CHECKPOINT, audit.c.written_at < before)
    for number, body in connection.execute(_NEWEST.where(*is_its)):
        statement = checkpoints.read(body)
        if statement is not None and (statement.writer, statement.number) == (writer, number - 1):
            return int(number)
    return None


def _remove(connection: Connection, *which: ColumnElement[bool]) -> int:
    return connection.execute(delete(audit).where(*which)).rowcount


_NEWEST = select(audit.c.number, audit.c.body).order_by(audit.c.number.desc())
