"""Estate: all that is stored of a tenant or a person is shown, deleted and sealed anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, select, update

from serving.errors import VaultFailed
from serving.gateway.identity import changes, people
from serving.gateway.identity.acts import Act
from serving.gateway.identity.changes import Kind
from serving.gateway.store.store import Store
from serving.gateway.store.tables import files as files_table
from serving.gateway.store.tables import metadata
from serving.gateway.stored import estate, items
from serving.gateway.stored.batches.batches import Batches, Said
from serving.gateway.stored.estate import BATCH_ROWS, Whose
from serving.gateway.stored.vault import Vault, fresh_key
from tests.gateway.calls import CALLER
from tests.gateway.places import Place
from tests.gateway.stored.files.test_files import files_of, put
from tests.gateway.stored.shelves import ADA, BOB, RIVAL, Shelves, texts


@pytest.fixture
def kept(store: Store, place: Place) -> Shelves:
    shelves = Shelves(store, place.home)
    talk = shelves.conversations.begin(ADA, {"topic": "x"}, items.said("ada's"))
    shelves.put("r1", "ada's", conversation_id=talk.id)
    shelves.put("r2", "bob's", caller=BOB, conversation_id=talk.id)
    shelves.put("r3", "rival's", caller=RIVAL, gateway_id="g", status="queued")
    shelves.shelf.keep_events("t2", "r3", 0, 0, b"x")
    return shelves


def test_all_of_a_tenant_or_a_person_is_shown(kept: Shelves) -> None:
    """Opened, each once, whatever the size of a page."""
    of_tenant = list(estate.each(kept.store, kept.vault, Whose("t1")))
    assert [it.kind for it in of_tenant] == ["conversation", "response", "response"]
    assert texts(of_tenant[0].items) == ["ada's", "ada's", "answer to ada's", "bob's", "answer to bob's"]
    assert [it.id for it in estate.each(kept.store, kept.vault, Whose("t1", "bob"))] == ["r2"]
    assert len(list(estate.each(kept.store, kept.vault, Whose()))) == 4
    found, behind = estate.page(kept.store, kept.vault, Whose(), after="r1", limit=1)
    assert ([it.id for it in found], behind) == (["r2"], "r2")


def test_a_page_is_bounded_in_bytes(kept: Shelves) -> None:
    """One thing at least, and each once."""
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        found, after = estate.page(kept.store, kept.vault, Whose("t1"), after=after, limit=5, bytes_max=1)
        assert len(found) == 1
        seen += [it.kind for it in found]
    assert seen == ["conversation", "response", "response"]


def test_all_of_a_person_is_deleted(kept: Shelves) -> None:
    """What they said in another's conversation too; the others' stays, and the audit is told how much it was."""
    told: list[Act] = []

    def witness(_: Connection, act: Act) -> None:
        told.append(act)

    assert estate.erase(kept.store, Whose("t1", "bob"), witness) == 1
    left = list(estate.each(kept.store, kept.vault, Whose("t1")))
    assert texts(left[0].items) == ["ada's", "ada's", "answer to ada's"] and [it.id for it in left[1:]] == ["r1"]
    assert (told[0].kind, told[0].tenant_id, told[0].details) == ("stored.erase", "t1", {"user": "bob", "count": 1})
    assert estate.erase(kept.store, Whose("t1")) == 2 and estate.erase(kept.store, Whose()) == 1
    assert [kept.count(it) for it in estate.SEALED] == [0] * len(estate.SEALED)


def test_erasing_a_person_erases_what_they_said(kept: Shelves, place: Place) -> None:
    """`serving users erase` leaves nothing of them, in whosever conversation, and stops what runs for them."""
    place.execute("insert into tenants (id, name, created_at) values ('t1', 'acme', '2026-01-01')")
    place.execute(
        "insert into end_users (ref, tenant_id, subject, created_at) values ('ada', 't1', 'Ada', '2026-01-01')"
    )
    kept.put("r4", gateway_id="g")
    kept.put("r5", gateway_id="g", status="queued")
    before = changes.since(kept.store, None).revision
    people.erase(kept.store, "acme", "Ada")
    told = changes.since(kept.store, before).changes or []
    assert [it.subject for it in told if it.kind == Kind.RESPONSE] == ["r5"]
    assert [it.id for it in estate.each(kept.store, kept.vault, Whose())] == ["r2", "r3"]
    assert kept.count("conversation_items") == 0


def test_a_key_is_taken_out_once_all_is_wrapped_by_another(kept: Shelves, tmp_path: Path) -> None:
    """Every sealed column of every table, in small transactions; the second time there is nothing to do."""
    file = kept.vault.at(kept.store.home, may_make=False)._path
    assert file is not None
    old, new = file.read_text().strip(), fresh_key()
    file.write_text(f"{new}\n{old}\n")
    assert estate.rewrap(kept.store, kept.vault) == {
        "responses": 6,
        "response_events": 1,
        "conversations": 1,
        "conversation_items": 5,
        **dict.fromkeys(("files", "batches", "batch_lines"), 0),
    }
    assert sum(estate.rewrap(kept.store, kept.vault).values()) == 0

    file.write_text(f"{new}\n")
    assert len(list(estate.each(kept.store, kept.vault, Whose()))) == 4
    with pytest.raises(VaultFailed):
        list(estate.each(kept.store, Vault(tmp_path / "none"), Whose()))


async def test_a_files_bytes_stay_as_they_are_and_need_the_old_key_no_more(store: Store, tmp_path: Path) -> None:
    """Those of finished files, and those that a batch still writes. A rewrap that breaks off in the middle is begun again."""
    shelves, file = Shelves(store, tmp_path), tmp_path / "vault.keys"
    files = files_of(store, tmp_path, shelves.clock)
    batches = Batches(files.settings, store, shelves.vault, files, shelves.clock)
    kept = [await put(files) for _ in range(BATCH_ROWS + 2)]
    batches.create(ADA, "/v1/embeddings", kept[0].id, Said())
    (sign,) = batches.open_ones()
    batch = batches.take(sign, "one")
    assert batch is not None
    await files.shelf.put(batch.cipher_of(batch.output), 0, b"written\n")
    before = {path: path.read_bytes() for path in (tmp_path / "files").rglob("*") if path.is_file()}
    old, new = file.read_text().strip(), fresh_key()
    file.write_text(f"{new}\n{old}\n")
    first, second = shelves.vault.key_ids

    def damage() -> None:
        """Change one byte of the last row, or change it back."""
        last = files_table.c.id == max(it.id for it in kept)
        with store.begin() as connection:
            sealed = bytearray(connection.scalar(select(files_table.c.sealed).where(last)) or b"")
            sealed[20] ^= 1
            connection.execute(update(files_table).where(last).values(sealed=bytes(sealed)))

    damage()
    with pytest.raises(VaultFailed):
        estate.rewrap(store, shelves.vault)
    assert estate.sealed_by(store) == {first: {"files": BATCH_ROWS}, second: {"files": 2, "batches": 1}}
    damage()
    estate.rewrap(store, shelves.vault)
    assert estate.sealed_by(store) == {first: {"files": BATCH_ROWS + 2, "batches": 1}}

    file.write_text(f"{new}\n")
    assert {path: path.read_bytes() for path in before} == before
    assert [[it async for it in files.content(await files.find(CALLER.tenant_id, one.id))] for one in kept] == [
        [b"x"] for _ in kept
    ]
    again = batches.find(ADA.tenant_id, batch.id)
    assert await files.shelf.get(again.cipher_of(again.output), 0) == b"written\n"


def test_every_sealed_column_is_wrapped_again() -> None:
    """A table that is added, and sealed with the vault, is not forgotten; answers to creations are sealed with another key."""
    sealed = {
        name: {column.name for column in table.c if column.name.startswith("sealed")}
        for name, table in metadata.tables.items()
    }
    sealed.pop("idempotency")
    assert {name: set(columns) for name, (_, _, columns) in estate.SEALED.items()} == {
        name: columns for name, columns in sealed.items() if columns
    }
