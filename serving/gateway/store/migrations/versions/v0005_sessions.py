"""Step 5: sessions of the console. A release that knows of none has none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.gateway.store.tables import Moment

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32)),
        sa.Column("issuer", sa.String(255)),
        sa.Column("user_ref", sa.String(32)),
        sa.Column("role", sa.String(32)),
        sa.Column("began_at", Moment, nullable=False),
        sa.Column("ends_at", Moment, nullable=False),
    )
    op.create_index("sessions_by_end", "sessions", ["ends_at"])
