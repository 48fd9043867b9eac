"""Schema: which migrations a database has had, and whether this version may use it.

Two numbers. The revision is that of the newest migration. The level, in `meta`, rises only with a migration after which
older code would go wrong: a database of a newer revision but a known level is used as it is, so that a release can be
taken back.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, select, text

from serving.errors import Refusal
from serving.gateway.store.tables import meta

#: The newest migration of this version.
REVISION = 7
#: The highest level this version can work with.
LEVEL = 1


def revision_of(connection: Connection) -> int | None:
    """The newest migration this database has had; None for an empty one."""
    tables = inspect(connection)
    if tables.has_table("alembic_version"):
        found: str | None = connection.scalar(text("select version_num from alembic_version"))
        return None if found is None else int(found)
    # Version 0.1 wrote its row when all of its tables were there.
    is_old = tables.has_table("meta") and connection.scalar(select(meta.c.schema_version)) is not None
    return 1 if is_old else None


def is_current(connection: Connection, name: str) -> bool:
    """Has the database every migration of this version? Raises Refusal when it is too new to be used."""
    found = revision_of(connection)
    if found is None:
        return False
    level = connection.scalar(select(meta.c.schema_version)) or 0
    if level > LEVEL:
        raise Refusal(
            f"The database {name} has schema {level} and this version knows up to {LEVEL}: "
            "run the newer version that wrote it."
        )
    return found >= REVISION


def migrate(connection: Connection, name: str) -> bool:
    """Run the migrations that are missing, in this transaction; false when there were none."""
    if is_current(connection, name):
        return False
    # Imported here: a start with nothing to migrate is spared 0.3 s.
    from serving.gateway.store import migrations

    tables = inspect(connection)
    is_adopted = revision_of(connection) is not None and not tables.has_table("alembic_version")
    migrations.upgrade(connection, is_adopted=is_adopted)
    return True
