"""Tables: what the store holds. `migrations/` makes them; a test holds both against each other, in each database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
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


class ForgedMoment(Moment):
    """The same where others may have written: what is no timestamp, as SQLite takes anything, is None."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], float | None]:
        process = super().result_processor(dialect, coltype)

        def read(value: Any) -> float | None:
            try:
                return process(value) if process else None
            except (TypeError, ValueError):
                return None

        return read


metadata = MetaData()

# One row.
meta = Table(
    "meta",
    metadata,
    # The level of serving/gateway/store/schema.py: what code must know to use this database.
    Column("schema_version", Integer, nullable=False),
    # A digest of a fixed word under the pepper: tells the pepper that belongs to these keys.
    Column("pepper_check", LargeBinary(32)),
    # Counts the changes below, whose transactions wait for one another here: none becomes visible after a later one.
    Column("revision", BigInteger, nullable=False, server_default="0"),
)

# What changed lately, for gateways that remember what they have read. The oldest are removed.
changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    # What kind of thing, and its id.
    Column("kind", String(32), nullable=False),
    Column("subject", String(255), nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
    # JSON of serving/gateway/policies.py; empty: no bounds.
    Column("policy", Text),
    # Counts its changes: who changes it says which state was meant.
    Column("revision", Integer, nullable=False, server_default="1"),
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
    Column("policy", Text),
    Column("revision", Integer, nullable=False, server_default="1"),
    # What it may administer; empty: nothing.
    Column("role", String(32)),
    # To the minute.
    Column("last_used_at", Moment),
)

# Who is signed in to the console, until when. A browser holds the word of which `id` is the digest.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(32), nullable=False),
    # The key that it was begun with; empty: a token of single sign-on, which said the three below.
    Column("key_id", String(32)),
    Column("issuer", String(255)),
    Column("user_ref", String(32)),
    Column("role", String(32)),
    Column("began_at", Moment, nullable=False),
    Column("ends_at", Moment, nullable=False),
)
Index("sessions_by_end", sessions.c.ends_at)

# Millionths of the currency for a million tokens.
prices = Table(
    "prices",
    metadata,
    Column("model", String(255), primary_key=True),
    Column("prompt_micros", BigInteger, nullable=False),
    Column("cached_prompt_micros", BigInteger, nullable=False),
    Column("completion_micros", BigInteger, nullable=False),
)

# The people behind calls. Ledger and audit have the reference alone, which is random: without this row it says no one.
end_users = Table(
    "end_users",
    metadata,
    Column("ref", String(32), primary_key=True),
    Column("tenant_id", String(32), nullable=False),
    Column("subject", String(255), nullable=False),
    # Empty in a person's one row that is used; a reference given while the database was away has itself here.
    Column("stopgap", String(32), nullable=False, server_default=text("''")),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("tenant_id", "subject", "stopgap"),
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
    # The end user (`end_users`), where one is known.
    Column("user_ref", String(32)),
    # The model that an adapter belongs to; empty for a model itself.
    Column("base_model", String(255)),
    Column("priority", String(32)),
    Column("waited_s", Float),
    Column("ttft_s", Float),
    # Attempts at engines that failed before the last one: their tokens are in those engines' counters alone.
    Column("attempts", Integer),
    # Why engines counted more than was billed, in words (`ledger/balance.py`); empty: they did not.
    Column("counted_apart", String(64)),
    # Millionths of the currency, by the prices when the call ended; empty where its model has none.
    Column("price_micros", BigInteger),
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

# What limits have counted, for gateways that share them without Redis (serving/gateway/admission/counters). Times are microseconds
# since the epoch.
counters = Table(
    "counters",
    metadata,
    Column("name", String(512), primary_key=True),
    Column("value", BigInteger, nullable=False),
    Column("moment_us", BigInteger, nullable=False),
    # When it was last read from the ledger.
    Column("seeded_at_us", BigInteger, nullable=False),
    # From when on nothing is lost with it.
    Column("idle_at_us", BigInteger, nullable=False),
)

# Reservations in them that are not settled; one that has ended is a gateway's that died. And those that are settled, under the name
# `settled`, for a while: what is repeated changes nothing.
leases = Table(
    "leases",
    metadata,
    Column("counter", String(512), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("ends_at_us", BigInteger, nullable=False),
)

# A chain for each process that writes: every digest covers the one before it. Rows are only added, and the oldest pruned.
audit = Table(
    "audit",
    metadata,
    Column("writer", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("written_at", ForgedMoment, nullable=False),
    Column("kind", String(64), nullable=False),
    # JSON.
    Column("body", Text, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
)
Index("audit_by_time", audit.c.written_at)

# Answers to creations, for a day, sealed: what repeats one with its key gets the same answer.
idempotency = Table(
    "idempotency",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("request_digest", LargeBinary(32), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("made_at", Moment, nullable=False),
)

#: States of a response that still runs, in the background.
RUNNING = ("queued", "in_progress")

# What outlives its request, for tenants that want it (serving/gateway/stored). What clients said and were answered is sealed by the vault.
responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(32), nullable=False),
    # The end user, where one is known.
    Column("user_ref", String(32)),
    # The response that it goes on from, and the conversation that it is part of.
    Column("previous_id", String(64)),
    Column("conversation_id", String(64)),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("status", String(32), nullable=False),
    # The gateway that runs it in the background, or did; empty for others.
    Column("gateway_id", String(255)),
    # Its events are in `response_events`.
    Column("is_streamed", Boolean, nullable=False),
    # Of both, before they were sealed.
    Column("size_bytes", BigInteger, nullable=False),
    # Its input items, and the response as clients get it.
    Column("sealed_input", LargeBinary, nullable=False),
    Column("sealed_response", LargeBinary, nullable=False),
)
Index("responses_by_expiry", responses.c.expires_at)
Index("responses_by_tenant", responses.c.tenant_id, responses.c.user_ref)
_runs = responses.c.status.in_(RUNNING)
Index("responses_running", responses.c.gateway_id, sqlite_where=_runs, postgresql_where=_runs)

# The stream of a response that runs in the background, in pieces of several events, so that a client can take it up again.
response_events = Table(
    "response_events",
    metadata,
    Column("response_id", String(64), primary_key=True),
    # Of its first event and of its last.
    Column("first_number", BigInteger, primary_key=True, autoincrement=False),
    Column("last_number", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)

# Where the items of an answer are found by their ids, for clients that refer to them.
response_items = Table(
    "response_items",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("response_id", String(64), primary_key=True),
)
Index("response_items_by_response", response_items.c.response_id)

# Responses that a client deleted or whose time was over, by their ids alone, so that a client that goes on from one is told which.
gone_responses = Table(
    "gone_responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(32), nullable=False),
    Column("was_deleted", Boolean, nullable=False),
    Column("told_until", Moment, nullable=False),
)
Index("gone_responses_by_end", gone_responses.c.told_until)

conversations = Table(
    "conversations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(32), nullable=False),
    Column("user_ref", String(32)),
    Column("created_at", Moment, nullable=False),
    # Put off whenever something is added.
    Column("expires_at", Moment, nullable=False),
    # Of its items, before they were sealed.
    Column("size_bytes", BigInteger, nullable=False),
    Column("sealed_metadata", LargeBinary, nullable=False),
)
Index("conversations_by_expiry", conversations.c.expires_at)
Index("conversations_by_tenant", conversations.c.tenant_id, conversations.c.user_ref)

conversation_items = Table(
    "conversation_items",
    metadata,
    Column("conversation_id", String(64), primary_key=True),
    # In the order in which they were said.
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(128), nullable=False),
    # Who said it, or was answered.
    Column("user_ref", String(32)),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    UniqueConstraint("conversation_id", "id"),
)
Index("conversation_items_by_user", conversation_items.c.user_ref)

# Files of tenants, as `/v1/files` has them: their bytes are sealed, in a folder or an object store (serving/gateway/stored/files).
files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(32), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("user_ref", String(32)),
    Column("purpose", String(32), nullable=False),
    # False while its bytes come: they count, and no one can read it.
    Column("is_whole", Boolean, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    # It is kept in so many pieces.
    Column("pieces", Integer, nullable=False),
    # Its name, and the key of its pieces; empty where it is erased.
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False),
    # Empty: until it is deleted.
    Column("expires_at", Moment),
)
Index("files_by_tenant", files.c.tenant_id, files.c.created_at)
Index("files_by_expiry", files.c.expires_at)

# Batches of lines of a file, each of them a call (serving/gateway/stored/batches).
batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(32), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("user_ref", String(32)),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("model", String(255)),
    Column("status", String(32), nullable=False),
    # How it ends once its files are written.
    Column("ending", String(32)),
    # What the client said of it, what is wrong with its file, and the key of its files' pieces.
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("in_progress_at", Moment),
    Column("cancelling_at", Moment),
    Column("finalizing_at", Moment),
    Column("ended_at", Moment),
    Column("total", Integer, nullable=False, server_default="0"),
    # Of the lines below, in order, that are in its files: how many succeeded and failed, what they cost.
    Column("lines_written", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    # Where the first line that is not stands in the input file: bytes and lines before it.
    Column("input_bytes", BigInteger, nullable=False, server_default="0"),
    Column("input_lines", Integer, nullable=False, server_default="0"),
    Column("output_file_id", String(64), nullable=False),
    Column("output_bytes", BigInteger, nullable=False, server_default="0"),
    Column("output_pieces", Integer, nullable=False, server_default="0"),
    Column("error_file_id", String(64), nullable=False),
    Column("error_bytes", BigInteger, nullable=False, server_default="0"),
    Column("error_pieces", Integer, nullable=False, server_default="0"),
    # The gateway that runs it, how often it was taken, and that gateway's sign of life: others look only whether it changes.
    Column("owner", String(255)),
    Column("lease", BigInteger, nullable=False, server_default="0"),
    Column("beat", BigInteger, nullable=False, server_default="0"),
)
Index("batches_by_tenant", batches.c.tenant_id, batches.c.created_at)
_is_going_on = batches.c.ended_at.is_(None)
Index("batches_open", batches.c.created_at, sqlite_where=_is_going_on, postgresql_where=_is_going_on)

# Lines that are done and not yet in their batch's files: written in one transaction with what they cost.
batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    # Among the batch's calls, from 0; and where it ends in the input file, in lines and bytes.
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("line", Integer, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    Column("is_failed", Boolean, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_prompt_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    # The line of the output or error file.
    Column("sealed", LargeBinary, nullable=False),
)
