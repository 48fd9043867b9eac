"""Tables: what the store holds. `migrations/` makes them; a test holds both against each other, in each database."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)
from sqlalchemy.types import TypeDecorator


def moment(epoch_s: float) -> datetime:
    """What a column of type `Moment` holds for seconds since the epoch."""
    return datetime.fromtimestamp(epoch_s, UTC).replace(tzinfo=None)


class Moment(TypeDecorator[float]):
    """Seconds since the epoch in Python, a readable UTC timestamp in the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> datetime | None:
        return None if value is None else moment(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> float | None:
        return None if value is None else value.replace(tzinfo=UTC).timestamp()


metadata = MetaData()

# One row.
meta = Table(
    "meta",
    metadata,
    # The level of serving/gateway/store/schema.py: what code must know to use this database.
    Column("schema_version", Integer, nullable=False),
    # A digest of a fixed word under the pepper: tells the pepper that belongs to these keys.
    Column("pepper_check", LargeBinary(32)),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    # HMAC-SHA256 of the whole key under the pepper: the database alone opens nothing.
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    Column("expires_at", Moment),
    # Words with commas between them; empty: what every key may do.
    Column("rights", String(255)),
)

# No foreign keys: a bill outlives its key, and no row may be refused.
ledger = Table(
    "ledger",
    metadata,
    Column("request_id", String(255), primary_key=True),
    # Random, one per entry: tells a repeated write from another request under the same id.
    Column("entry_id", String(32), nullable=False),
    Column("tenant_id", String(32), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("route", String(255), nullable=False),
    Column("model", String(255), nullable=False),
    Column("replica_id", String(255)),
    Column("started_at", Moment, nullable=False),
    # Empty while open, and for ever when the gateway died.
    Column("finished_at", Moment),
    Column("outcome", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_prompt_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    # The rule that produced the counts; empty means exact, as the engine said.
    Column("estimated_by", String(64)),
    Column("gateway_id", String(255), nullable=False),
)
Index("ledger_by_tenant", ledger.c.tenant_id, ledger.c.started_at)
Index("ledger_by_start", ledger.c.started_at)
_is_open = ledger.c.outcome == "open"
Index("ledger_open", ledger.c.gateway_id, sqlite_where=_is_open, postgresql_where=_is_open)

# The gateways that write the ledger; a row that no longer changes is a gateway that died.
gateways = Table(
    "gateways",
    metadata,
    Column("id", String(255), primary_key=True),
    # By the gateway's own clock: others look only whether it changes.
    Column("seen_at", Moment, nullable=False),
)
