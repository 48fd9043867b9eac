"""Journal: one process's chain in the table, on either database."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.errors import Conflict, StoreUnavailable
from serving.gateway.audit import reading
from serving.gateway.audit.actors import Actor
from serving.gateway.audit.chain import Kind
from serving.gateway.audit.checkpoints import found_in
from serving.gateway.audit.journal import QUIET_US, Journal, Origin
from serving.gateway.audit.verification import Report, verify
from serving.gateway.identity.acts import Act
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.audit.chains import SIGNER
from tests.gateway.places import Place

ROOT = Actor(os_user="root")
ACT = Act("tenant.create", "t1", "t1", {"name": "acme"})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(store: Store, clock: Clock) -> Journal:
    return Journal(store, SIGNER, clock, Origin.GATEWAY)


def kinds(store: Store) -> list[tuple[int, str]]:
    return [(entry.number, entry.kind) for entry in reading.entries(store)]


def verified(store: Store) -> Report:
    return verify(reading.entries(store), reading.entries(store, kind=Kind.CHECKPOINT), [], [SIGNER.public_key])


def test_a_chain_begins_with_its_first_entry_and_ends_with_the_process(store: Store, clock: Clock) -> None:
    """A process that has nothing to tell leaves nothing."""
    with Journal(store, SIGNER, clock, Origin.COMMAND):
        pass
    assert kinds(store) == []
    with Journal(store, SIGNER, clock, Origin.COMMAND) as journal:
        journal.record(ROOT, ACT)
    assert kinds(store) == [(1, "begin"), (2, "tenant.create"), (3, "end"), (4, "checkpoint")]
    assert verified(store) == Report(4, 1, 1, round(clock.now * 1e6), [], [])


def test_an_entry_is_read_as_it_was_written(store: Store, journal: Journal, clock: Clock) -> None:
    """To the microsecond, on each database: else no digest would be that of its fields."""
    clock.now = 1_795_942_800.123456
    journal.record(ROOT, Act("key.create", "k\x00", details={"name": "Zoë\x00\ud7ff"}))
    clock.now = 1_795_942_801.999999
    journal.record(ROOT, ACT)
    first, second, third = reading.entries(store)
    assert [entry.written_at_us for entry in (first, second, third)] == [
        1_795_942_800_123_456,
        1_795_942_800_123_456,
        1_795_942_801_999_999,
    ]
    assert verified(store).is_clean


def test_an_act_is_there_with_its_change_or_not_at_all(store: Store, journal: Journal) -> None:
    """The transaction that fails takes its entries along, and the chain goes on without a gap."""
    registry = Registry(store, Keyring.open(store), Clock(), journal.witness(ROOT))
    registry.create_tenant("acme")
    with pytest.raises(Conflict):
        create_together(registry, "other", "acme")
    registry.create_tenant("third")
    assert kinds(store) == [(1, "begin"), (2, "tenant.create"), (3, "tenant.create")]
    assert verified(store).is_clean


def create_together(registry: Registry, *names: str) -> None:
    with registry.together() as (joined, _):
        for name in names:
            joined.create_tenant(name)


def test_two_processes_have_two_chains(store: Store, clock: Clock) -> None:
    """Even where host and process number are the same."""
    for _ in range(2):
        Journal(store, SIGNER, clock, Origin.GATEWAY).record(ROOT, ACT)
    assert verified(store).chains == 2


def test_threads_of_a_process_share_its_chain(place: Place, clock: Clock) -> None:
    """Each entry has a place of its own."""
    with place.open() as store, ThreadPoolExecutor(4) as threads:
        journal = Journal(store, SIGNER, clock, Origin.GATEWAY)
        list(threads.map(lambda _: journal.record(ROOT, ACT), range(20)))
        assert [number for number, _ in kinds(store)] == list(range(1, 22))
        assert verified(store).is_clean


def test_checkpoints_go_out_as_log_lines(store: Store, journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """Each is an entry besides; where nothing was added since, there is none."""
    journal.record(ROOT, ACT)
    with caplog.at_level(logging.INFO, "serving.audit"):
        (made,) = journal.checkpoint()
        assert journal.checkpoint() == []
    assert (made.writer, made.number) == (journal.writer, 2)
    assert list(found_in(record.getMessage().encode() for record in caplog.records)) == [made]
    assert kinds(store)[-1] == (3, "checkpoint")


def test_a_chain_that_lives_is_signed_once_a_day(store: Store, journal: Journal, clock: Clock) -> None:
    """So that its end is never old enough to be pruned."""
    journal.record(ROOT, ACT)
    journal.checkpoint()
    clock.advance(QUIET_US / 1e6)
    journal.checkpoint()
    assert [kind for _, kind in kinds(store)][-2:] == ["checkpoint", "checkpoint"]
    assert verified(store).is_clean


def test_commands_are_covered_by_gateways(store: Store, journal: Journal, clock: Clock) -> None:
    """Once for each of their last entries: what a command without a pepper cannot sign, they do."""
    with Journal(store, None, clock, Origin.COMMAND) as command:
        command.record(ROOT, ACT)
    since_us = round(clock.now * 1e6)
    first = [(it.writer, it.number) for it in journal.checkpoint(also_since_us=since_us)]
    assert first == [(command.writer, 3), (journal.writer, 2)]
    assert journal.checkpoint(also_since_us=since_us) == []
    assert journal.checkpoint(also_since_us=since_us + 1) == []
    assert not verified(store).tails


def test_all_chains_are_signed_on_demand(store: Store, journal: Journal, clock: Clock) -> None:
    """With what the database has of each, and nothing is written."""
    journal.record(ROOT, ACT)
    Journal(store, None, clock, Origin.COMMAND).record(ROOT, ACT)
    before = kinds(store)
    assert sorted(it.number for it in journal.sign_all()) == [2, 2]
    assert kinds(store) == before


@pytest.mark.parametrize(
    "statement", ["delete from audit where number = 3", "update audit set digest = 'x' where number = 3"]
)
def test_a_journal_mends_no_cut(place: Place, clock: Clock, statement: str, caplog: pytest.LogCaptureFixture) -> None:
    """What was removed or changed behind its back stays missing: it says so, and goes on from what it knows."""
    with place.open() as store:
        journal = Journal(store, SIGNER, clock, Origin.GATEWAY)
        for _ in range(2):
            journal.record(ROOT, ACT)
        place.execute(
            statement.replace("'x'", "zeroblob(32)" if "sqlite" in type(place).__name__.lower() else "'\\x00'")
        )
        journal.record(ROOT, ACT)
        assert "were removed or changed" in caplog.text
        assert not verified(store).is_clean


def test_an_outage_is_told_and_nothing_is_skipped(place: Place, clock: Clock) -> None:
    """The next entry follows the last that was written."""
    with place.open() as store:
        journal = Journal(store, SIGNER, clock, Origin.GATEWAY)
        journal.record(ROOT, ACT)
        place.take_away()
        with pytest.raises(StoreUnavailable):
            journal.record(ROOT, ACT)
        place.bring_back()
        journal.record(ROOT, ACT)
        assert [number for number, _ in kinds(store)] == [1, 2, 3]
        assert verified(store).is_clean


EDITS = (
    "delete from audit where number = {number}",
    "update audit set kind = 'x' where number = {number}",
    "update audit set body = '' where number = {number}",
    "update audit set number = 99 where number = {number}",
    "update audit set written_at = '2026-01-01 00:00:00.000000' where number = {number}",
    "update audit set writer = 'x' where number = {number}",
    "insert into audit select writer, 77, written_at, kind, body, digest from audit where number = {number}",
)


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_done_to_the_table_is_found(place: Place, clock: Clock, edit: str) -> None:
    """Any row, in either database: as the pure rules have it, from the table itself."""
    with place.open() as store:
        journal = Journal(store, SIGNER, clock, Origin.GATEWAY)
        for _ in range(3):
            journal.record(ROOT, ACT)
        journal.end()
        assert verified(store).is_clean
        (*entries, _) = reading.entries(store)
        for entry in entries:
            place.execute("create table kept as select * from audit")
            place.execute(edit.format(number=entry.number))
            assert not verified(store).is_clean, entry
            place.execute("delete from audit")
            place.execute("insert into audit select * from kept")
            place.execute("drop table kept")
        assert verified(store).is_clean


def test_an_entry_knows_its_writer(store: Store, journal: Journal) -> None:
    """Host and process are in its name, for eyes."""
    journal.record(ROOT, ACT)
    entry, _ = reading.entries(store)
    assert entry.writer == journal.writer and entry.writer.startswith("gateway:")
