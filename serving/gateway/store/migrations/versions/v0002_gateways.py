"""Step 2: several gateways share one store: who of them lives, and which pepper is theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("seen_at", sa.DateTime, nullable=False),
    )
    op.add_column("meta", sa.Column("pepper_check", sa.LargeBinary(32)))
