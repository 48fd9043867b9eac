"""Batches: one gateway has a batch at a time, and nothing is written for one that has lost it; in either database."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from serving.config import FileSettings
from serving.errors import ConcurrencyExceeded, InvalidRequest, ResourceNotFound
from serving.gateway.nouns import Usage
from serving.gateway.store.store import Store
from serving.gateway.store.tables import batches as table
from serving.gateway.stored.batches.batches import Batch, Batches, Done, LeaseLost, Output, Said, Status, Written
from serving.gateway.stored.batches.checking import Fault
from serving.gateway.stored.batches.jsonl import Line, Place
from serving.gateway.stored.vault import Vault
from tests.clock import Clock
from tests.gateway.calls import CALLER
from tests.gateway.stored.files.test_files import files_of

USAGE = Usage(5, 2, 1, 1)


@pytest.fixture
def clock() -> Clock:
    return Clock(1_795_000_000.0)


@pytest.fixture
def batches(store: Store, tmp_path: Path, clock: Clock) -> Batches:
    settings = FileSettings(tenant_batches_max=2)
    vault = Vault.at(tmp_path, may_make=True)
    return Batches(settings, store, vault, files_of(store, tmp_path, clock), clock)


def made(batches: Batches) -> Batch:
    return batches.create(CALLER, "/v1/embeddings", "file-1", Said({"a": "b"}))


def taken(batches: Batches, owner: str = "one") -> Batch:
    """A batch that this gateway has."""
    (sign,) = batches.open_ones()
    batch = batches.take(sign, owner)
    assert batch is not None
    return batch


def done(number: int, *, is_failed: bool = False) -> Done:
    return Done(Line(number, number + 1, 10 * (number + 1), None), b"line %d\n" % number, is_failed, USAGE)


def test_what_cannot_be_an_id_is_none(batches: Batches) -> None:
    """In either database: PostgreSQL takes no text with a NUL."""
    for odd in ("\0", "x" * 99, ""):
        with pytest.raises(ResourceNotFound):
            batches.find(CALLER.tenant_id, odd)
        with pytest.raises(ResourceNotFound):
            batches.cancel(CALLER.tenant_id, odd)
        with pytest.raises(InvalidRequest):
            batches.page(CALLER.tenant_id, odd, 5)


def test_one_that_does_not_open_hides_no_other(batches: Batches, store: Store) -> None:
    """Its tenant is told that it is lost."""
    lost, other = made(batches), made(batches)
    with store.begin() as connection:
        connection.execute(update(table).where(table.c.id == lost.id).values(sealed=b"changed"))
    page, _ = batches.page(CALLER.tenant_id, None, 10)
    assert {it.id for it in page} == {lost.id, other.id}
    for found in (batches.find(CALLER.tenant_id, lost.id), batches.cancel(CALLER.tenant_id, lost.id)):
        assert [it.code for it in found.said.faults] == ["content_lost"] and not found.said.metadata


def test_a_batch_is_taken_once(batches: Batches) -> None:
    """By whoever is first; from one that is silent, and not from one that has given a sign of life meanwhile."""
    made(batches)
    (free,) = batches.open_ones()
    assert batches.take(free, "one") is not None and batches.take(free, "two") is None
    (seen,) = batches.open_ones()
    assert [it.beat for it in batches.beat("one")] == [seen.beat + 1]
    assert batches.take(seen, "two") is None
    (silent,) = batches.open_ones()
    assert batches.take(silent, "two") is not None and batches.beat("one") == []
    batch = taken(batches, "two")
    batches.release(batch.id, batch.lease)
    assert batches.open_ones()[0].owner is None


def test_what_a_gateway_writes_that_has_lost_its_batch_is_written_nowhere(batches: Batches, store: Store) -> None:
    """Neither lines nor how far it got nor its end."""
    made(batches)
    old = taken(batches)
    batches.begin(old, 3, "m")
    batches.keep(old, done(0))
    new = taken(batches, "two")
    batches.keep(old, done(1))
    with store.begin() as connection:
        assert not batches.keeping(old, done(1))(connection) and batches.keeping(new, done(2))(connection)
    written = Written(Place(1, 1, 10), 1, 0, USAGE, Output(old.output.file_id, 7, 1), old.errors)
    for late in (
        partial(batches.append, old, written),
        partial(batches.fail, old, [Fault("a", "b")]),
        partial(batches.end, old, written, Status.COMPLETED),
        partial(batches.begin, old, 3, "m"),
    ):
        with pytest.raises(LeaseLost):
            late()
    batches.release(old.id, old.lease)
    assert batches.done_numbers(new) == {0, 2} and batches.open_ones()[0].owner == "two"


def test_lines_are_kept_once_and_counted_until_they_are_written(batches: Batches, clock: Clock) -> None:
    """A repetition changes nothing; what follows one another can be written, and is then counted by its batch. That goes when its
    files have, its lines before it.
    """
    made(batches)
    batch = taken(batches)
    batches.begin(batch, 4, "m")
    for one in (done(0), done(0), done(1, is_failed=True), done(3)):
        batches.keep(batch, one)
    seen = batches.find(CALLER.tenant_id, batch.id)
    assert (seen.status, seen.total, seen.done, seen.failed) == (Status.IN_PROGRESS, 4, 3, 1)
    assert seen.usage == Usage(15, 6, 3, 3) and seen.said == Said({"a": "b"})
    found = batches.done_lines(batch, 0, 10, 10_000)
    assert [(it.line.number, it.text, it.is_failed) for it in found] == [
        (0, b"line 0\n", False),
        (1, b"line 1\n", True),
    ]
    assert len(batches.done_lines(batch, 0, 10, 1)) == 1 == len(batches.done_lines(batch, 0, 1, 10_000))

    written = Written(
        Place(2, 2, 20),
        2,
        1,
        Usage(10, 4, 2, 2),
        Output(batch.output.file_id, 7, 1),
        Output(batch.errors.file_id, 7, 1),
    )
    batches.append(batch, written)
    assert batches.done_numbers(batch) == {3}
    again = batches.find(CALLER.tenant_id, batch.id)
    assert (again.done, again.failed, again.usage) == (3, 1, Usage(15, 6, 3, 3))
    batches.finalize(batch, Status.EXPIRED)
    batches.end(batch, written, Status.EXPIRED)
    ended = batches.find(CALLER.tenant_id, batch.id)
    assert (ended.status, ended.done, ended.output.bytes) == (Status.EXPIRED, 2, 7)
    with pytest.raises(ResourceNotFound):
        batches.find("t2", batch.id)
    made(batches)
    clock.advance(FileSettings().expires_after_s)
    assert batches.remove_old() == 0
    assert batches.remove_lines() == 1 and batches.remove_lines() == 0
    assert batches.remove_old() == 1 and len(batches.open_ones()) == 1
    with pytest.raises(ResourceNotFound):
        batches.find(CALLER.tenant_id, batch.id)


def test_a_tenant_has_so_many_open(batches: Batches, clock: Clock) -> None:
    """One that is cancelled counts until it has ended."""
    made(batches)
    clock.advance(1)
    made(batches)
    with pytest.raises(ConcurrencyExceeded):
        made(batches)
    other = msgspec.structs.replace(CALLER, tenant_id="t2")
    batches.create(other, "/v1/embeddings", "file-1", Said())
    page, has_more = batches.page(CALLER.tenant_id, None, 1)
    assert has_more and batches.page(CALLER.tenant_id, page[0].id, 5)[1] is False
    assert batches.cancel(CALLER.tenant_id, page[0].id).status is Status.CANCELLING
