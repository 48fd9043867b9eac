"""Step 3: keys may have rights. A release that knows of none goes on making and reading keys without."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("rights", sa.String(255)))
