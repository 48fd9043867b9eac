"""Pruning: what is old goes, and what stays can be verified."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.audit import pruning, reading
from serving.gateway.audit.actors import Actor
from serving.gateway.audit.chain import Kind
from serving.gateway.audit.checkpoints import Checkpoint
from serving.gateway.audit.journal import Journal, Origin
from serving.gateway.audit.pruning import Pruned
from serving.gateway.audit.verification import Report, verify
from serving.gateway.identity.acts import Act
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.audit.chains import SIGNER
from tests.gateway.places import Place

ROOT = Actor(os_user="root")


def verified(store: Store, given: list[Checkpoint]) -> Report:
    statements = reading.entries(store, kind=Kind.CHECKPOINT)
    return verify(reading.entries(store), statements, given, [SIGNER.public_key])


def prune(store: Store, clock: Clock, before: float) -> Pruned:
    with Journal(store, SIGNER, clock, Origin.COMMAND) as journal:
        return pruning.prune(store, journal, ROOT, before)


def write(journal: Journal, clock: Clock, count: int) -> list[Checkpoint]:
    """So many entries, a second apart, each signed."""
    kept = []
    for _ in range(count):
        journal.record(ROOT, Act("usage.read", "usage"))
        kept += journal.checkpoint()
        clock.advance(1)
    return kept


def test_a_chain_is_cut_before_a_checkpoint_and_goes_on(store: Store) -> None:
    """Checkpoints that were kept elsewhere of what is gone are no finding; the chain's next entry follows as ever."""
    clock = Clock()
    journal = Journal(store, SIGNER, clock, Origin.GATEWAY)
    kept = write(journal, clock, 4)
    assert prune(store, clock, before=1002.0) == Pruned(entries=4, chains=0)
    assert next(entry.number for entry in list(reading.entries(store)) if entry.writer == journal.writer) == 5
    kept += write(journal, clock, 1)
    assert verified(store, kept).findings == []


def test_a_chain_of_which_all_is_old_goes_as_a_whole(store: Store) -> None:
    """With its end, which no checkpoint follows."""
    clock = Clock()
    with Journal(store, SIGNER, clock, Origin.GATEWAY) as journal:
        kept = write(journal, clock, 2)
    assert prune(store, clock, before=clock.now + 1) == Pruned(entries=7, chains=1)
    clock.advance(5)
    assert verified(store, kept).is_clean


def test_what_cannot_be_cut_stays(store: Store) -> None:
    """A chain without a checkpoint that is old keeps all; nothing is told where nothing was done."""
    clock = Clock()
    journal = Journal(store, SIGNER, clock, Origin.GATEWAY)
    journal.record(ROOT, Act("usage.read", "usage"))
    clock.advance(10)
    write(journal, clock, 1)
    assert prune(store, clock, before=1005.0) == Pruned(0, 0)
    assert {entry.writer for entry in reading.entries(store)} == {journal.writer}


def test_what_was_cut_by_hand_is_found(place: Place) -> None:
    """The act of an earlier pruning does not cover it."""
    clock = Clock()
    with place.open() as store:
        journal = Journal(store, SIGNER, clock, Origin.GATEWAY)
        kept = write(journal, clock, 6)
        prune(store, clock, before=1002.0)
        place.execute("delete from audit where writer like 'gateway:%' and number < 9")
        assert not verified(store, kept).is_clean
        assert not verified(store, []).is_clean


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=st.lists(st.integers(0, 12), min_size=1, max_size=3), count=st.integers(1, 6))
def test_an_audit_that_is_pruned_is_always_clean(store: Store, moments: list[int], count: int) -> None:
    """Whenever, and however often."""
    clock = Clock()
    living = Journal(store, SIGNER, clock, Origin.GATEWAY)
    with Journal(store, SIGNER, clock, Origin.COMMAND) as ended:
        kept = [*write(living, clock, count), *write(ended, clock, 1)]
    for moment in sorted(moments):
        # One that lives has an entry of its last day.
        prune(store, clock, before=min(1000.0 + moment, clock.now - 2))
        kept += write(living, clock, 1)
    assert verified(store, kept).findings == []
