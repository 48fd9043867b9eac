"""People: operators see who is behind calls, and can erase a person."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert, select

from serving.errors import NotFound
from serving.gateway.cli import backup as backups
from serving.gateway.identity import changes
from serving.gateway.identity.acts import Act, ActKind
from serving.gateway.identity.changes import Change, Kind
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.people import erase, people
from serving.gateway.identity.registry import Registry
from serving.gateway.ledger.grouping import By
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.usage import each_call, totals
from serving.gateway.nouns import Caller, Right, Usage
from serving.gateway.store.store import Store
from serving.gateway.store.tables import end_users, metadata
from tests.gateway.calls import settle
from tests.gateway.places import Place, SqlitePlace
from tests.gateway.world import CHAT, running_gateway
from tests.scripted_engine import ScriptedEngine

NAMES = ("ann@acme.example", "ben@acme.example")


@pytest.fixture
def known(store: Store) -> Store:
    """Two people of acme's, one of them of another tenant too; each has called once."""
    registry = Registry(store, Keyring.open(store), lambda: 1.5)
    tenants = {name: registry.create_tenant(name).id for name in ("acme", "other")}
    people = {"u1": ("acme", NAMES[0]), "u2": ("acme", NAMES[1]), "u3": ("other", NAMES[0])}
    rows = [
        {"ref": ref, "tenant_id": tenants[tenant], "subject": name, "created_at": 1.5}
        for ref, (tenant, name) in people.items()
    ]
    with store.begin() as connection:
        connection.execute(insert(end_users), rows)
    with Ledger(store, clock=lambda: 2e9) as ledger:
        for ref, (tenant, _) in people.items():
            settle(ledger, f"call of {ref}", Usage(5, 2), Caller(tenants[tenant], tenant, "k1", user_ref=ref))
    return store


def told(store: Store) -> str:
    """Every row of every table."""
    with store.begin() as connection:
        return "\n".join(repr(connection.execute(select(table)).all()) for table in metadata.sorted_tables)


def test_people_are_listed_in_pages(known: Store) -> None:
    """With the references that the ledger has; of one tenant, or of one name."""
    assert [(it.ref, it.tenant, it.subject) for it in people(known, limit=2)] == [
        ("u1", "acme", NAMES[0]),
        ("u2", "acme", NAMES[1]),
    ]
    assert [it.ref for it in people(known, after="u2", limit=2)] == ["u3"]
    assert [it.ref for it in people(known, tenant="acme", limit=9)] == ["u1", "u2"]
    assert [it.ref for it in people(known, subject=NAMES[0], limit=9)] == ["u1", "u3"]


def test_an_erased_person_is_in_no_table_backup_or_export_made_afterwards(
    known: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reference stays in the ledger with its tokens, and leads to no one; the same name at another tenant is another person."""
    assert NAMES[0] in told(known)
    with known.begin() as connection:
        connection.execute(end_users.delete().where(end_users.c.ref == "u3"))
    assert erase(known, "acme", NAMES[0]) == ["u1"]

    backups.write(known, Keyring.open(known), tmp_path / "b", lambda: 2.5)
    written = gzip.decompress((tmp_path / "b").read_bytes()).decode()
    exported = json.dumps([msgspec.structs.asdict(it) for it in each_call(known)])
    for text in (told(known), written, exported, caplog.text):
        assert NAMES[0] not in text
    assert NAMES[1] in written and '"u1"' in written
    sums = {it.group: it for it in totals(known, By.USER)}
    assert (sums["u1"].label, sums["u1"].exact.prompt_tokens) == (None, 5)
    assert (sums["u2"].label, sums["u2"].exact.prompt_tokens) == (NAMES[1], 5)


def test_nothing_of_an_erased_person_stays_in_a_file_of_sqlite(tmp_path: Path) -> None:
    """Nor in its log: what a database marks as free could be read on."""
    place = SqlitePlace(tmp_path)
    with place.open() as store:
        tenant = Registry(store, Keyring.open(store), lambda: 1.5).create_tenant("acme").id
        with store.following() as connection:
            connection.execute(select(end_users.c.ref)).all()
        with store.begin() as connection:
            rows = [
                {"ref": f"u{n}", "tenant_id": tenant, "subject": f"person-{n}", "created_at": 1.5} for n in range(500)
            ]
            connection.execute(insert(end_users), rows)
        # Like a gateway's, that connection stays open, and with it the log stays.
        assert files_with(tmp_path, b"person-77") == ["serving.db-wal"]
        erase(store, "acme", "person-77")
        assert files_with(tmp_path, b"person-77") == []
        assert files_with(tmp_path, b"person-78") == ["serving.db"]


def files_with(folder: Path, text: bytes) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and text in path.read_bytes())


async def test_a_running_gateway_keeps_nothing_of_an_erased_person(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Named in calls, and then in no file of its home, line of its logs or sample of its metrics; seen again, another person."""
    caplog.set_level("DEBUG")
    async with ScriptedEngine() as engine, running_gateway(tmp_path / "home", (engine.url,)) as world:
        key = world.registry.create_key("acme", allowed=[Right.NAME_USERS])
        headers = {"Authorization": f"Bearer {key}", "X-Serving-User": NAMES[0], "Content-Type": "application/json"}

        async def reference() -> object:
            assert (await world.ask("POST", "/v1/chat/completions", CHAT, headers)).status == 200
            return world.rows()[-1]["user_ref"]

        ref = await reference()
        assert await asyncio.to_thread(erase, world.store, "acme", NAMES[0]) == [ref]
        page = (await world.ask("GET", "/metrics")).body.decode()
        backups.write(world.store, Keyring.open(world.store), tmp_path / "b", lambda: 2.5)
        written = gzip.decompress((tmp_path / "b").read_bytes()).decode()
        for text in (told(world.store), json.dumps(world.lines), caplog.text, page, written):
            assert NAMES[0] not in text
        assert str(ref) in told(world.store) and str(ref) in written
        assert files_with(tmp_path / "home", NAMES[0].encode()) == []
        # Until it learns of it, it has the reference in mind that leads to no one.
        later = [await reference()]
        for _ in range(200):
            if later[-1] != ref:
                break
            await asyncio.sleep(0.05)
            later.append(await reference())
        assert later[-1] not in (ref, None) and len(people(world.store, limit=9)) == 1


def test_gateways_learn_of_it_and_a_witness_is_told(known: Store) -> None:
    """By the reference alone: an audit must not name whom it says was erased."""
    before = changes.since(known, None).revision
    acts: list[Act] = []
    erase(known, "acme", NAMES[0], lambda _, act: acts.append(act))
    assert changes.since(known, before).changes == [Change(Kind.END_USER, "u1")]
    assert [(act.kind, act.subject, act.details) for act in acts] == [(ActKind.USER_ERASE, "u1", {})]


def test_who_is_not_there_cannot_be_erased(known: Store) -> None:
    """At this tenant; the sentence does not repeat the name, which may be a person's."""
    for tenant, name in (("other", NAMES[1]), ("none", NAMES[0]), ("acme", "carl")):
        with pytest.raises(NotFound) as refused:
            erase(known, tenant, name)
        assert name not in str(refused.value)


def test_what_cannot_be_witnessed_is_not_done(known: Store, place: Place) -> None:
    """The person is still there."""

    def fail(_: object, act: Act) -> None:
        raise ZeroDivisionError(act.kind)

    with pytest.raises(ZeroDivisionError):
        erase(known, "acme", NAMES[0], fail)
    assert len(place.execute("select ref from end_users")) == 3
