"""Migrations: the schema's history, one numbered step after another, run by alembic. Only `schema.py` asks for them.

A step adds tables, and columns that are nullable or have a server default, so that the version before works on.
"""

from __future__ import annotations

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

#: What databases had before alembic counted.
FIRST = "0001"


def upgrade(connection: Connection, *, is_adopted: bool) -> None:
    """Run every step this database has not had, in the caller's transaction.

    `is_adopted`: it has the first step's tables without alembic's own.
    """
    scripts = ScriptDirectory(str(Path(__file__).parent))
    context = MigrationContext.configure(connection)
    if is_adopted:
        context.stamp(scripts, FIRST)
    done = context.get_current_revision() or "base"
    with Operations.context(context):
        for step in reversed(list(scripts.iterate_revisions("head", done))):
            step.module.upgrade()
            context.stamp(scripts, step.revision)
