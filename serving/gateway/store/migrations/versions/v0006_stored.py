"""Step 6: responses and conversations that outlive their requests, sealed. A release that knows of none leaves them alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.gateway.store.tables import Moment

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("user_ref", sa.String(32)),
        sa.Column("previous_id", sa.String(64)),
        sa.Column("conversation_id", sa.String(64)),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("expires_at", Moment, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("gateway_id", sa.String(255)),
        sa.Column("is_streamed", sa.Boolean, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sealed_input", sa.LargeBinary, nullable=False),
        sa.Column("sealed_response", sa.LargeBinary, nullable=False),
    )
    op.create_index("responses_by_expiry", "responses", ["expires_at"])
    op.create_index("responses_by_tenant", "responses", ["tenant_id", "user_ref"])
    runs = sa.text("status IN ('queued', 'in_progress')")
    op.create_index("responses_running", "responses", ["gateway_id"], sqlite_where=runs, postgresql_where=runs)
    op.create_table(
        "response_events",
        sa.Column("response_id", sa.String(64), primary_key=True),
        sa.Column("first_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("last_number", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "response_items",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("response_id", sa.String(64), primary_key=True),
    )
    op.create_index("response_items_by_response", "response_items", ["response_id"])
    op.create_table(
        "gone_responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("was_deleted", sa.Boolean, nullable=False),
        sa.Column("told_until", Moment, nullable=False),
    )
    op.create_index("gone_responses_by_end", "gone_responses", ["told_until"])
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("user_ref", sa.String(32)),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("expires_at", Moment, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sealed_metadata", sa.LargeBinary, nullable=False),
    )
    op.create_index("conversations_by_expiry", "conversations", ["expires_at"])
    op.create_index("conversations_by_tenant", "conversations", ["tenant_id", "user_ref"])
    op.create_table(
        "conversation_items",
        sa.Column("conversation_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("user_ref", sa.String(32)),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("conversation_id", "id"),
    )
    op.create_index("conversation_items_by_user", "conversation_items", ["user_ref"])
