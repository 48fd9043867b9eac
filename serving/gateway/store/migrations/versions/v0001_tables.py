"""Step 1: tenants, keys and ledger, as version 0.1 made them without alembic."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Each `if_not_exists`: version 0.1 could be killed between two of them."""
    meta = op.create_table("meta", sa.Column("schema_version", sa.Integer, nullable=False), if_not_exists=True)
    op.execute(sa.insert(meta).values(schema_version=1))
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("disabled_at", sa.DateTime),
        if_not_exists=True,
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant_id", sa.String(32), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("revoked_at", sa.DateTime),
        sa.Column("expires_at", sa.DateTime),
        if_not_exists=True,
    )
    op.create_index("ix_keys_tenant_id", "keys", ["tenant_id"], if_not_exists=True)
    _make_ledger()


def _make_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("request_id", sa.String(255), primary_key=True),
        sa.Column("entry_id", sa.String(32), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("route", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("replica_id", sa.String(255)),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("finished_at", sa.DateTime),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated_by", sa.String(64)),
        sa.Column("gateway_id", sa.String(255), nullable=False),
        if_not_exists=True,
    )
    op.create_index("ledger_by_tenant", "ledger", ["tenant_id", "started_at"], if_not_exists=True)
    op.create_index("ledger_by_start", "ledger", ["started_at"], if_not_exists=True)
    is_open = sa.text("outcome = 'open'")
    op.create_index(
        "ledger_open", "ledger", ["gateway_id"], sqlite_where=is_open, postgresql_where=is_open, if_not_exists=True
    )
