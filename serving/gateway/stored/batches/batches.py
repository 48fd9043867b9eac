"""Batches: which there are, how far each has got, and which gateway runs it. Database work, for threads.

A gateway takes a batch, and gives signs of life while it has it; another takes it over when those stop. Every step names the number
of the taking (`lease`): what a gateway writes that has lost its batch is written nowhere.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import accumulate
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.engine import RowMapping

from serving.config import FileSettings
from serving.errors import ConcurrencyExceeded, InvalidRequest, ResourceConflict, ResourceNotFound, VaultFailed
from serving.gateway.identity import changes
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.ledger.ledger import Beside
from serving.gateway.nouns import Caller, Usage
from serving.gateway.store.store import Store
from serving.gateway.store.tables import batch_lines, batches
from serving.gateway.stored.batches.checking import Fault
from serving.gateway.stored.batches.jsonl import Line, Place
from serving.gateway.stored.files.files import New, Purpose, TenantFiles, new_id
from serving.gateway.stored.files.pieces import Cipher
from serving.gateway.stored.vault import Vault, bound_to, own_key
from serving.gateway.stored.wishes import possible

#: Seconds in which a batch is to be done: the one window that OpenAI has.
WINDOW_S = 86_400.0
#: Lines of ended batches that one transaction removes.
REMOVED_AT_ONCE = 2000

log = logging.getLogger(__name__)


class Status(StrEnum):
    """Where a batch is, in OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class LeaseLost(Exception):
    """Another gateway has the batch, or it has ended."""


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """What its client said of a batch, and what is wrong with its file."""

    metadata: dict[str, str] | None = None
    output_expires_after_s: float | None = None
    faults: tuple[Fault, ...] = ()


class _Inside(msgspec.Struct, frozen=True):
    """What of a batch is kept sealed."""

    said: Said
    key: bytes


class Output(msgspec.Struct, frozen=True):
    """A file that a batch writes, as far as it has got."""

    file_id: str
    bytes: int = 0
    pieces: int = 0


class Batch(msgspec.Struct, frozen=True):
    """One batch; seconds since the epoch."""

    id: str
    tenant_id: str
    key_id: str
    user_ref: str | None
    endpoint: str
    input_file_id: str
    model: str | None
    status: Status
    ending: Status | None
    said: Said
    created_at: float
    expires_at: float
    in_progress_at: float | None
    cancelling_at: float | None
    finalizing_at: float | None
    ended_at: float | None
    total: int
    #: Lines that are done, and those of them that failed.
    done: int
    failed: int
    usage: Usage
    #: Where the first line stands that is not in its files.
    place: Place
    output: Output
    errors: Output
    lease: int
    #: Of what its files are kept as.
    key: bytes

    def cipher_of(self, output: Output) -> Cipher:
        """Seals one of its files."""
        return Cipher(self.tenant_id, output.file_id, self.key)


class Sign(msgspec.Struct, frozen=True):
    """What a gateway sees of a batch that has not ended."""

    id: str
    tenant_id: str
    owner: str | None
    beat: int
    lease: int
    status: Status
    created_at: float


class Done(msgspec.Struct, frozen=True):
    """A line that is done: what its batch's file will say, and what it cost."""

    line: Line
    text: bytes
    is_failed: bool
    usage: Usage = Usage()


class Written(msgspec.Struct, frozen=True):
    """How far a batch's files have got with some more lines."""

    place: Place
    done: int
    failed: int
    usage: Usage
    output: Output
    errors: Output


def new_request_id() -> str:
    """A line's id, as its files and the ledger have it."""
    return f"batch_req_{secrets.token_hex(12)}"


class Batches:
    """Those of all tenants."""

    def __init__(
        self, settings: FileSettings, store: Store, vault: Vault, files: TenantFiles, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._store = store
        self._vault = vault
        self._files = files
        self._clock = clock

    def create(self, caller: Caller, endpoint: str, input_file_id: str, said: Said) -> Batch:
        """Raises ConcurrencyExceeded where the tenant has as many open as it may."""
        batch_id, now, most = f"batch_{secrets.token_hex(12)}", self._clock(), self._settings.tenant_batches_max
        row = {
            "id": batch_id,
            "tenant_id": caller.tenant_id,
            "key_id": caller.key_id,
            "user_ref": caller.user_ref,
            "endpoint": endpoint,
            "input_file_id": input_file_id,
            "status": Status.VALIDATING,
            "sealed": self._sealed(caller.tenant_id, batch_id, _Inside(said, own_key())),
            "created_at": now,
            "expires_at": now + WINDOW_S,
            "output_file_id": new_id(),
            "error_file_id": new_id(),
        }
        with self._store.begin() as connection:
            changes.take_turn(connection)
            is_open = (batches.c.tenant_id == caller.tenant_id, batches.c.ended_at.is_(None))
            if (connection.scalar(select(func.count()).where(*is_open)) or 0) >= most:
                raise ConcurrencyExceeded(f"There are {most} batches open; a tenant may have no more at a time.")
            connection.execute(insert(batches).values(**row))
            changes.note(connection, Change(Kind.BATCH, batch_id))
            made = connection.execute(select(batches).where(batches.c.id == batch_id)).mappings().one()
        return self._batch(made)

    def find(self, tenant_id: str, batch_id: str) -> Batch:
        """As it is now, lines that are in none of its files yet included. Raises ResourceNotFound."""
        with self._store.begin() as connection:
            return self._found(connection, tenant_id, batch_id)

    def page(self, tenant_id: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """A tenant's batches, the newest first, and whether there are more. Raises InvalidRequest for an `after` that is none."""
        at, name = batches.c.created_at, batches.c.id
        query = select(batches).where(batches.c.tenant_id == tenant_id)
        with self._store.begin() as connection:
            if after is not None:
                known = connection.execute(
                    select(at, name).where(batches.c.tenant_id == tenant_id, name == possible(after))
                ).one_or_none()
                if known is None:
                    raise InvalidRequest("after: There is no such batch.", param="after")
                query = query.where(or_(at < known[0], and_(at == known[0], name < known[1])))
            rows = connection.execute(query.order_by(at.desc(), name.desc()).limit(limit + 1)).mappings().all()
            page = [self._with_lines(connection, self._shown(row)) for row in rows[:limit]]
        return page, len(rows) > limit

    def cancel(self, tenant_id: str, batch_id: str) -> Batch:
        """From now on no line of it is begun. Raises ResourceNotFound, and ResourceConflict where it is too late."""
        may_end = batches.c.status.in_((Status.VALIDATING, Status.IN_PROGRESS))
        with self._store.begin() as connection:
            changes.take_turn(connection)
            mine = update(batches).where(*_asked(tenant_id, batch_id), may_end)
            cancelled = mine.values(status=Status.CANCELLING, cancelling_at=self._clock(), ending=Status.CANCELLED)
            if connection.execute(cancelled).rowcount:
                changes.note(connection, Change(Kind.BATCH, batch_id))
            batch = self._found(connection, tenant_id, batch_id)
        if batch.status not in (Status.CANCELLING, Status.CANCELLED):
            raise ResourceConflict(f"Cannot cancel a batch with status '{batch.status}'.")
        return batch

    def open_ones(self) -> list[Sign]:
        """Those of all tenants that have not ended, the oldest first."""
        query = select(*(batches.c[name] for name in Sign.__struct_fields__)).where(batches.c.ended_at.is_(None))
        with self._store.begin() as connection:
            rows = connection.execute(query.order_by(batches.c.created_at, batches.c.id)).mappings().all()
        return [_sign(row) for row in rows]

    def take(self, sign: Sign, owner: str) -> Batch | None:
        """Take a batch over, unless another did or its owner gave a sign of life meanwhile."""
        is_same = and_(batches.c.lease == sign.lease, batches.c.beat == sign.beat, batches.c.ended_at.is_(None))
        taken = update(batches).where(batches.c.id == sign.id, is_same)
        with self._store.begin() as connection:
            if not connection.execute(taken.values(owner=owner, lease=sign.lease + 1, beat=sign.beat + 1)).rowcount:
                return None
            return self._batch(connection.execute(select(batches).where(batches.c.id == sign.id)).mappings().one())

    def beat(self, owner: str) -> list[Sign]:
        """A sign of life for all that a gateway has; returns them."""
        own = (batches.c.owner == owner, batches.c.ended_at.is_(None))
        with self._store.begin() as connection:
            connection.execute(update(batches).where(*own).values(beat=batches.c.beat + 1))
            rows = connection.execute(select(*(batches.c[name] for name in Sign.__struct_fields__)).where(*own))
            return [_sign(row) for row in rows.mappings()]

    def release(self, batch_id: str, lease: int) -> None:
        """This gateway runs it no longer: another may take it at once."""
        with self._store.begin() as connection:
            connection.execute(update(batches).where(*_is(batch_id, lease)).values(owner=None))

    def give_up(self, sign: Sign) -> None:
        """What was said of it does not open: it has failed, unless another gateway has it."""
        failed = update(batches).where(*_is(sign.id, sign.lease))
        with self._store.begin() as connection:
            connection.execute(failed.values(status=Status.FAILED, ended_at=self._clock(), owner=None))

    def begin(self, batch: Batch, total: int, model: str) -> None:
        """Its file is in order. Raises LeaseLost; one that is to be cancelled stays so."""
        now = self._clock()
        with self._store.begin() as connection:
            changed = {"total": total, "model": model, "in_progress_at": now}
            _require(connection.execute(update(batches).where(*_is(batch.id, batch.lease)).values(**changed)).rowcount)
            is_first = (*_is(batch.id, batch.lease), batches.c.status == Status.VALIDATING)
            connection.execute(update(batches).where(*is_first).values(status=Status.IN_PROGRESS))

    def fail(self, batch: Batch, faults: Sequence[Fault]) -> None:
        """Its file cannot be run. Raises LeaseLost."""
        said = msgspec.structs.replace(batch.said, faults=tuple(faults))
        sealed = self._sealed(batch.tenant_id, batch.id, _Inside(said, batch.key))
        self._change(batch, status=Status.FAILED, ended_at=self._clock(), sealed=sealed, owner=None)

    def finalize(self, batch: Batch, ending: Status) -> None:
        """No more of its lines is begun. Raises LeaseLost. A cancelled one says so until its files are written."""
        status = Status.CANCELLING if ending is Status.CANCELLED else Status.FINALIZING
        with self._store.begin() as connection:
            sealed = self._sealed(batch.tenant_id, batch.id, _Inside(batch.said, batch.key))
            changed = {"status": status, "ending": ending, "finalizing_at": self._clock(), "sealed": sealed}
            mine = update(batches).where(*_is(batch.id, batch.lease), batches.c.ending.is_(None))
            connection.execute(mine.values(**changed))

    def end(self, batch: Batch, written: Written, ending: Status) -> None:
        """Its files are complete, and there for its tenant. Raises LeaseLost."""
        with self._store.begin() as connection:
            sealed = self._sealed(batch.tenant_id, batch.id, _Inside(batch.said, batch.key))
            changed = {"status": ending, "ended_at": self._clock(), "owner": None, "sealed": sealed}
            _require(connection.execute(update(batches).where(*_is(batch.id, batch.lease)).values(**changed)).rowcount)
            for output, name in ((written.output, "output"), (written.errors, "error")):
                if output.bytes:
                    who = (batch.tenant_id, batch.key_id, batch.user_ref)
                    lasts_s = batch.said.output_expires_after_s
                    new = New(*who, Purpose.BATCH_OUTPUT, f"{batch.id}_{name}.jsonl", lasts_s, batch.key)
                    self._files.written(connection, output.file_id, new, output.bytes, output.pieces)

    def append(self, batch: Batch, written: Written) -> None:
        """Some more lines are in its files. Raises LeaseLost."""
        usage = written.usage
        values = {
            "lines_written": written.place.number,
            "failed": written.failed,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_prompt_tokens": usage.cached_prompt_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "input_bytes": written.place.bytes,
            "input_lines": written.place.lines,
            "output_bytes": written.output.bytes,
            "output_pieces": written.output.pieces,
            "error_bytes": written.errors.bytes,
            "error_pieces": written.errors.pieces,
        }
        with self._store.begin() as connection:
            _require(connection.execute(update(batches).where(*_is(batch.id, batch.lease)).values(**values)).rowcount)
            is_written = (batch_lines.c.batch_id == batch.id, batch_lines.c.number < written.place.number)
            connection.execute(delete(batch_lines).where(*is_written))

    def done_numbers(self, batch: Batch) -> set[int]:
        """The lines that are done and in none of its files yet."""
        with self._store.begin() as connection:
            return set(connection.scalars(select(batch_lines.c.number).where(batch_lines.c.batch_id == batch.id)))

    def done_lines(self, batch: Batch, first: int, count_max: int, bytes_max: int) -> list[Done]:
        """Lines that are done and in none of its files, from one on as far as they follow one another: one at least, and else no
        more than so many bytes.
        """
        with self._store.begin() as connection:
            numbers = self._fitting(connection, batch, first, count_max, bytes_max)
        follow = sum(number == first + index for index, number in enumerate(numbers))
        return list(self.done_among(batch, first, follow).values())

    def done_behind(self, batch: Batch, first: int, count_max: int, bytes_max: int) -> list[Done]:
        """The same whatever is not done between them; without those that do not open."""
        found: list[Done] = []
        with self._store.begin() as connection:
            while not found and (numbers := self._fitting(connection, batch, first, count_max, bytes_max)):
                query = select(batch_lines).where(batch_lines.c.batch_id == batch.id, batch_lines.c.number.in_(numbers))
                for row in connection.execute(query.order_by(batch_lines.c.number)).mappings():
                    try:
                        found.append(self._done(batch, row))
                    except VaultFailed as error:
                        log.error("batch %s: the answer to call %d is lost: %s", batch.id, row["number"], error.reason)
                first = numbers[-1] + 1
        return found

    @staticmethod
    def _fitting(connection: Connection, batch: Batch, first: int, count_max: int, bytes_max: int) -> list[int]:
        """Numbers of lines that are done, from one on: one at least, and else no more than so many bytes."""
        sizes = select(batch_lines.c.number, func.length(batch_lines.c.sealed)).where(
            batch_lines.c.batch_id == batch.id, batch_lines.c.number >= first
        )
        rows = connection.execute(sizes.order_by(batch_lines.c.number).limit(count_max)).all()
        fit = sum(size <= bytes_max for size in accumulate(row[1] for row in rows))
        return [row[0] for row in rows[: max(fit, 1)]]

    def done_among(self, batch: Batch, first: int, count: int) -> dict[int, Done]:
        """Those of so many lines, from one on, that are done."""
        numbers = batch_lines.c.number.between(first, first + count - 1)
        with self._store.begin() as connection:
            query = select(batch_lines).where(batch_lines.c.batch_id == batch.id, numbers)
            rows = connection.execute(query.order_by(batch_lines.c.number)).mappings()
            return {row["number"]: self._done(batch, row) for row in rows}

    def keeping(self, batch: Batch, done: Done) -> Beside:
        """Writes a line that is done, in the transaction of what it cost: once, and for the gateway that has the batch alone; False for
        any other.
        """
        line, usage = done.line, done.usage
        values: dict[str, Any] = {
            "batch_id": batch.id,
            "number": line.number,
            "line": line.line,
            "ends_at": line.ends_at,
            "is_failed": done.is_failed,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_prompt_tokens": usage.cached_prompt_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "sealed": self._vault.seal(done.text, bound_to(batch.tenant_id, batch.id, str(line.number))),
        }
        is_there = select(batch_lines.c.number).where(
            batch_lines.c.batch_id == batch.id, batch_lines.c.number == line.number
        )
        # Locked until the transaction ends: who takes the batch over comes after it, and sees the line.
        fenced = select(*(literal(value, batch_lines.c[name].type) for name, value in values.items())).where(
            *_is(batch.id, batch.lease), ~is_there.exists()
        )
        written = insert(batch_lines).from_select(list(values), fenced.select_from(batches).with_for_update(read=True))

        def write(connection: Connection) -> bool:
            return connection.execute(written, execution_options={"preserve_rowcount": True}).rowcount > 0

        return write

    def keep(self, batch: Batch, done: Done) -> None:
        """The same for a line that cost nothing."""
        with self._store.begin() as connection:
            self.keeping(batch, done)(connection)

    def remove_lines(self) -> int:
        """Remove some lines of batches that have ended, which are in their files or nowhere; returns how many."""
        ended = select(batches.c.id).where(batches.c.ended_at.is_not(None))
        some = select(batch_lines.c.batch_id, batch_lines.c.number).where(batch_lines.c.batch_id.in_(ended))
        with self._store.begin() as connection:
            rows = connection.execute(some.limit(REMOVED_AT_ONCE)).all()
            for batch_id in {row.batch_id for row in rows}:
                numbers = [row.number for row in rows if row.batch_id == batch_id]
                those = (batch_lines.c.batch_id == batch_id, batch_lines.c.number.in_(numbers))
                connection.execute(delete(batch_lines).where(*those))
        return len(rows)

    def remove_old(self) -> int:
        """Remove batches that ended so long ago that none of their files is left; returns how many."""
        is_old = batches.c.ended_at <= self._clock() - self._settings.expires_after_s
        has_lines = batches.c.id.in_(select(batch_lines.c.batch_id))
        with self._store.begin() as connection:
            return connection.execute(delete(batches).where(is_old, ~has_lines)).rowcount

    def _change(self, batch: Batch, **values: object) -> None:
        with self._store.begin() as connection:
            _require(connection.execute(update(batches).where(*_is(batch.id, batch.lease)).values(**values)).rowcount)

    def _found(self, connection: Connection, tenant_id: str, batch_id: str) -> Batch:
        row = connection.execute(select(batches).where(*_asked(tenant_id, batch_id))).mappings().one_or_none()
        if row is None:
            raise ResourceNotFound
        return self._with_lines(connection, self._shown(row))

    def _with_lines(self, connection: Connection, batch: Batch) -> Batch:
        """With what is in none of its files yet."""
        if batch.ended_at is not None:
            return batch
        names = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens")
        sums = (func.coalesce(func.sum(batch_lines.c[name]), 0) for name in names)
        counted = select(func.count(), func.count().filter(batch_lines.c.is_failed.is_(True)), *sums)
        count, failed, prompt, completion, cached, reasoning = connection.execute(
            counted.where(batch_lines.c.batch_id == batch.id)
        ).one()
        return msgspec.structs.replace(
            batch,
            done=batch.done + int(count),
            failed=batch.failed + int(failed),
            usage=summed(batch.usage, Usage(int(prompt), int(completion), int(cached), int(reasoning))),
        )

    def _sealed(self, tenant_id: str, batch_id: str, inside: _Inside) -> bytes:
        return self._vault.seal(msgspec.json.encode(inside), bound_to(tenant_id, batch_id))

    def _done(self, batch: Batch, row: RowMapping) -> Done:
        about = bound_to(batch.tenant_id, batch.id, str(row["number"]))
        line = Line(row["number"], row["line"], row["ends_at"], None)
        return Done(line, self._vault.open(row["sealed"], about), row["is_failed"], _usage(row))

    def _shown(self, row: RowMapping) -> Batch:
        """As its tenant sees it: one that does not open says so, and the others stay in sight."""
        try:
            return self._batch(row)
        except VaultFailed:
            return _as_it_stands(row, _Inside(Said(faults=(_UNREADABLE,)), b""))

    def _batch(self, row: RowMapping) -> Batch:
        plain = self._vault.open(row["sealed"], bound_to(row["tenant_id"], row["id"]))
        return _as_it_stands(row, msgspec.json.decode(plain, type=_Inside))


_UNREADABLE = Fault("content_lost", "What was said of this batch cannot be read any more.")


def _as_it_stands(row: RowMapping, inside: _Inside) -> Batch:
    """A batch as its row has it, with what is kept sealed."""
    same = (
        "id",
        "tenant_id",
        "key_id",
        "user_ref",
        "endpoint",
        "input_file_id",
        "model",
        "created_at",
        "expires_at",
    )
    times = ("in_progress_at", "cancelling_at", "finalizing_at", "ended_at")
    return Batch(
        **{name: row[name] for name in (*same, *times, "total", "failed", "lease")},
        status=Status(row["status"]),
        ending=None if row["ending"] is None else Status(row["ending"]),
        said=inside.said,
        done=row["lines_written"],
        usage=_usage(row),
        place=Place(row["lines_written"], row["input_lines"], row["input_bytes"]),
        output=Output(row["output_file_id"], row["output_bytes"], row["output_pieces"]),
        errors=Output(row["error_file_id"], row["error_bytes"], row["error_pieces"]),
        key=inside.key,
    )


def summed(one: Usage, other: Usage) -> Usage:
    """Tokens of several lines."""
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        one.cached_prompt_tokens + other.cached_prompt_tokens,
        one.reasoning_tokens + other.reasoning_tokens,
    )


def _sign(row: RowMapping) -> Sign:
    return Sign(**{**row, "status": Status(row["status"])})


def _usage(row: RowMapping) -> Usage:
    return Usage(row["prompt_tokens"], row["completion_tokens"], row["cached_prompt_tokens"], row["reasoning_tokens"])


def _asked(tenant_id: str, batch_id: str) -> tuple[ColumnElement[bool], ...]:
    """As a client names it."""
    return batches.c.id == possible(batch_id), batches.c.tenant_id == tenant_id


def _is(batch_id: str, lease: int) -> tuple[Any, ...]:
    """The batch, while it is had by this taking."""
    return batches.c.id == batch_id, batches.c.lease == lease, batches.c.ended_at.is_(None)


def _require(count: int) -> None:
    if not count:
        raise LeaseLost
