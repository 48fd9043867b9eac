"""Reading: the audit in pages, for those whom it concerns."""

from __future__ import annotations

import pytest

from serving.errors import NotFound, Refusal
from serving.gateway.audit import reading
from serving.gateway.audit.audit import Audit
from serving.gateway.audit.reading import Asked, Event
from serving.gateway.identity.acts import Act
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.nouns import Caller, Role
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.audit.chains import SIGNER, verified
from tests.gateway.calls import record
from tests.gateway.places import Place

ADMIN = Caller("0" * 16, "default", "k0", role=Role.PLATFORM_ADMIN)
ACME, OTHER = Caller("a" * 16, "acme", "k1"), Caller("b" * 16, "other", "k2")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def audit(store: Store, clock: Clock) -> Audit:
    """With 8 calls by turns of two tenants, a second apart, in four entries, and an act for one of them."""
    audit = Audit(store, SIGNER, clock=clock)
    for number in range(8):
        caller = (ACME, OTHER)[number % 2]
        audit.settle(record(entry_id="e", opened_at_epoch_s=clock.now, caller=caller, request_id=f"r{number}"))
        if number % 2:
            audit.flush()
        clock.advance(1)
    audit.note(ADMIN, Act("key.update", "k1", ACME.tenant_id))
    audit.flush()
    return audit


def asked(store: Store, question: Asked, limit: int = 1000) -> list[Event]:
    """All pages together."""
    found: list[Event] = []
    after = None
    while True:
        page = reading.page(store, question, after=after, limit=limit)
        assert len(page.events) <= limit
        found += page.events
        if page.next is None:
            return found
        assert len(page.events) == limit
        after = page.next


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_pages_put_together_are_all(store: Store, audit: Audit, limit: int) -> None:
    """In order, each event once, also where a page ends within an entry."""
    calls = [it.details["request_id"] for it in asked(store, Asked(kinds=["call"]), limit)]
    assert calls == [f"r{number}" for number in range(8)]
    assert len(asked(store, Asked(), limit)) == 1 + 2 + 8 + 1


def test_a_tenant_sees_what_concerns_it_and_nothing_else(store: Store, audit: Audit) -> None:
    """Its own calls out of entries that hold others' too, and acts on its keys by whomever."""
    found = asked(store, Asked(ACME.tenant_id))
    assert {it.tenant_id for it in found} == {ACME.tenant_id}
    assert [it.details.get("request_id") for it in found if it.kind == "call"] == ["r0", "r2", "r4", "r6"]
    assert [it.kind for it in found if it.kind != "call"] == ["sign_in", "key.update"]


def test_a_question_may_have_an_end_and_a_beginning(store: Store, audit: Audit) -> None:
    """By when entries were written."""
    first, last = 1003.0, 1005.0
    found = asked(store, Asked(kinds=["call"], since=first, until=last))
    assert [it.details["request_id"] for it in found] == ["r2", "r3"]


def test_chains_written_at_one_moment_are_each_read_once(store: Store, clock: Clock) -> None:
    """Pages go on behind a place, not behind a moment."""
    for _ in range(3):
        audit = Audit(store, SIGNER, clock=clock)
        audit.note(ADMIN, Act("usage.read", "usage"))
        audit.flush()
    found = asked(store, Asked(), limit=1)
    assert len(found) == 6 and len({(it.writer, it.number) for it in found}) == 6


def test_more_entries_than_are_read_at_a_time_are_read(
    store: Store, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is left out, and none comes twice, where one batch ends and the next begins."""
    monkeypatch.setattr(reading, "BATCH_ROWS", 2)
    assert len(asked(store, Asked(), limit=5)) == 12


@pytest.mark.parametrize("named", ["", "zz", "00", "5b5d", b'[-1,1,"w",0]'.hex(), b'[1,1,"\\u0000",0]'.hex()])
def test_a_place_that_no_page_named_is_refused(store: Store, named: str) -> None:
    """It may come from a client."""
    with pytest.raises(Refusal, match="is no place between two pages"):
        reading.page(store, Asked(), after=named, limit=1)


def test_a_tenant_is_found_by_its_name(store: Store) -> None:
    """Events have its id; a name that no tenant has is refused."""
    tenant = Registry(store, Keyring.open(store), Clock()).create_tenant("acme")
    assert reading.tenant_called(store, "acme") == tenant.id
    with pytest.raises(NotFound):
        reading.tenant_called(store, "other")


#: What anyone who can write the table can make of a row, in either database; and what SQLite alone takes.
FORGERIES = (
    "body = '{'",
    "body = '[]'",
    'body = \'{"calls":5,"sign_ins":5,"refused":5,"by":5}\'',
    f"body = '{{\"details\":{'[' * 100_000}'",
    "kind = ''",
    "number = -5",
    f"number = {2**63 - 1}",
    "written_at = '1066-10-14'",
    "digest = ''",
)
FORGERIES_OF_SQLITE = (
    "written_at = 'noon'",
    "written_at = '2026-99-99'",
    "written_at = 5",
    "written_at = x'ff'",
    "number = 'one'",
    "number = 1.5",
    "kind = x'ff'",
    "body = x'ff'",
    "writer = x'ff'",
    "digest = 'word'",
    "digest = 5",
)


def test_whatever_is_made_of_a_row_is_a_finding_and_no_fault(place: Place, clock: Clock) -> None:
    """The pages go on, the chain goes on, and verification says that it was changed; nothing breaks off in an internal error."""
    with place.open() as store:
        audit = Audit(store, SIGNER, clock=clock)
        audit.settle(record(entry_id="e", opened_at_epoch_s=clock.now, caller=ACME))
        audit.flush()
        audit.note(ADMIN, Act("key.update", "k1", ACME.tenant_id))
        numbers = [entry.number for entry in reading.entries(store)]
        place.execute("create table kept as select * from audit")
        for forgery in FORGERIES if store.is_shared else FORGERIES + FORGERIES_OF_SQLITE:
            for number in numbers:
                place.execute(f"update audit set {forgery} where number = {number}")  # noqa: S608 Our own words.
                asked(store, Asked())
                asked(store, Asked(ACME.tenant_id))
                audit.note(ADMIN, Act("key.update", "k1", ACME.tenant_id))
                assert verified(list(reading.entries(store))).findings, (forgery, number)
                place.execute("delete from audit")
                place.execute("insert into audit select * from kept")
        place.execute("drop table kept")


def test_what_cannot_be_read_any_more_says_so(store: Store, place: Place, audit: Audit) -> None:
    """In the place of what it told."""
    place.execute("update audit set body = '{' where kind = 'key.update'")
    (event,) = asked(store, Asked(kinds=["key.update"]))
    assert event.details == {"fault": reading.UNREADABLE}
