"""Step 4: policies of tenants and keys, roles, prices, end users, changes to follow, shared counters, the audit chain, and what
the ledger says more of a call. All of it is optional to a release that knows of none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.gateway.store.tables import Moment

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    _add("meta", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    for table in ("tenants", "keys"):
        _add(
            table,
            sa.Column("policy", sa.Text),
            sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        )
    _add("keys", sa.Column("role", sa.String(32)), sa.Column("last_used_at", Moment))
    _add(
        "ledger",
        sa.Column("user_ref", sa.String(32)),
        sa.Column("base_model", sa.String(255)),
        sa.Column("priority", sa.String(32)),
        sa.Column("waited_s", sa.Float),
        sa.Column("ttft_s", sa.Float),
        sa.Column("attempts", sa.Integer),
        sa.Column("counted_apart", sa.String(64)),
        sa.Column("price_micros", sa.BigInteger),
    )
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
    )
    op.create_table(
        "prices",
        sa.Column("model", sa.String(255), primary_key=True),
        sa.Column("prompt_micros", sa.BigInteger, nullable=False),
        sa.Column("cached_prompt_micros", sa.BigInteger, nullable=False),
        sa.Column("completion_micros", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "end_users",
        sa.Column("ref", sa.String(32), primary_key=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("stopgap", sa.String(32), nullable=False, server_default=sa.text("''")),
        sa.Column("created_at", Moment, nullable=False),
        sa.UniqueConstraint("tenant_id", "subject", "stopgap"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(512), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.Column("moment_us", sa.BigInteger, nullable=False),
        sa.Column("seeded_at_us", sa.BigInteger, nullable=False),
        sa.Column("idle_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("counter", sa.String(512), primary_key=True),
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("ends_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("writer", sa.String(255), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("written_at", Moment, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
    )
    op.create_index("audit_by_time", "audit", ["written_at"])
    op.create_table(
        "idempotency",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("request_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("made_at", Moment, nullable=False),
    )


def _add(table: str, *columns: sa.Column[object]) -> None:
    for column in columns:
        op.add_column(table, column)
