"""Step 7: files and batches. A release that knows of neither leaves them as they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.gateway.store.tables import Moment

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("user_ref", sa.String(32)),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("is_whole", sa.Boolean, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("pieces", sa.Integer, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("expires_at", Moment),
    )
    op.create_index("files_by_tenant", "files", ["tenant_id", "created_at"])
    op.create_index("files_by_expiry", "files", ["expires_at"])
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("user_ref", sa.String(32)),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255)),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("ending", sa.String(32)),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("expires_at", Moment, nullable=False),
        *(sa.Column(f"{name}_at", Moment) for name in ("in_progress", "cancelling", "finalizing", "ended")),
        _count("total", sa.Integer),
        _count("lines_written", sa.Integer),
        _count("failed", sa.Integer),
        *(_count(name, sa.BigInteger) for name in _TOKENS),
        _count("input_bytes", sa.BigInteger),
        _count("input_lines", sa.Integer),
        sa.Column("output_file_id", sa.String(64), nullable=False),
        _count("output_bytes", sa.BigInteger),
        _count("output_pieces", sa.Integer),
        sa.Column("error_file_id", sa.String(64), nullable=False),
        _count("error_bytes", sa.BigInteger),
        _count("error_pieces", sa.Integer),
        sa.Column("owner", sa.String(255)),
        _count("lease", sa.BigInteger),
        _count("beat", sa.BigInteger),
    )
    op.create_index("batches_by_tenant", "batches", ["tenant_id", "created_at"])
    is_going_on = sa.text("ended_at IS NULL")
    op.create_index("batches_open", "batches", ["created_at"], sqlite_where=is_going_on, postgresql_where=is_going_on)
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("ends_at", sa.BigInteger, nullable=False),
        sa.Column("is_failed", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _TOKENS),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )


_TOKENS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens")


def _count(name: str, kind: type[sa.Integer] | type[sa.BigInteger]) -> sa.Column[int]:
    return sa.Column(name, kind, nullable=False, server_default="0")
