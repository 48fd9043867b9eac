"""Holdings: of files and batches that are erased nothing is left, in the database or in the folder of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from serving.config import FileSettings
from serving.errors import ResourceNotFound
from serving.gateway.identity import changes, holdings, people
from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from serving.gateway.store.tables import files as files_table
from serving.gateway.stored import estate
from serving.gateway.stored.batches.batches import Batches, Done, Said
from serving.gateway.stored.batches.jsonl import Line
from serving.gateway.stored.estate import Whose
from serving.gateway.stored.files.files import File, TenantFiles, brought_by
from serving.gateway.stored.files.pieces import MARKER
from serving.gateway.stored.vault import Vault, fresh_key
from tests.clock import Clock
from tests.gateway.places import Place
from tests.gateway.stored.files.test_files import files_of
from tests.gateway.stored.shelves import ADA, BOB, RIVAL


async def put(files: TenantFiles, caller: Caller) -> File:
    cipher = await files.begin(brought_by(caller, "a.jsonl"), 1)
    await files.shelf.put(cipher, 0, b"x")
    return await files.finish(cipher, 1, 1)


def kept(home: Path) -> set[str]:
    """The files that have bytes."""
    return {path.name for path in (home / "files").iterdir()} - {MARKER}


async def test_a_persons_files_and_batches_go_and_others_stay(store: Store, place: Place, tmp_path: Path) -> None:
    """What runs stops, as does what reads a file that goes; bytes go with what has expired, those of an unfinished output included."""
    clock = Clock(1_795_000_000.0)
    place.execute("insert into tenants (id, name, created_at) values ('t1', 'acme', '2026-01-01')")
    place.execute(
        "insert into end_users (ref, tenant_id, subject, created_at) values ('ada', 't1', 'Ada', '2026-01-01')"
    )
    files = files_of(store, tmp_path, clock)
    batches = Batches(FileSettings(), store, Vault.at(tmp_path, may_make=True), files, clock)
    adas, bobs = await put(files, ADA), await put(files, BOB)
    coming = await files.begin(brought_by(ADA, "b.jsonl"), 1)
    runs = batches.create(ADA, "/v1/embeddings", adas.id, Said())
    batch = batches.take(batches.open_ones()[0], "one")
    assert batch is not None
    reads = batches.create(BOB, "/v1/embeddings", adas.id, Said())
    stays = batches.create(BOB, "/v1/embeddings", bobs.id, Said())
    batches.keep(batch, Done(Line(0, 1, 10, None), b"line\n", is_failed=False))
    await files.shelf.put(runs.cipher_of(runs.output), 0, b"y")
    before = changes.since(store, None).revision

    people.erase(store, "acme", "Ada", clock=clock)
    told = changes.since(store, before).changes or []
    assert {it.subject for it in told if it.kind == changes.Kind.BATCH} == {runs.id, reads.id}
    assert [it.id for it in batches.open_ones()] == [stays.id] and batches.beat("one") == []
    batches.keep(batch, Done(Line(1, 2, 20, None), b"line\n", is_failed=False))
    assert place.execute("select count(*) from batch_lines") == [(0,)]
    with pytest.raises(ResourceNotFound):
        await files.find("t1", adas.id)
    with pytest.raises(ResourceNotFound):
        await files.finish(coming, 1, 1)
    with store.begin() as connection:
        names = select(files_table.c.id).where(holdings.IS_NAMED)
        assert list(connection.scalars(names)) == [bobs.id]
    assert sum(estate.rewrap(store, Vault.at(tmp_path, may_make=False)).values()) == 0

    assert kept(tmp_path) == {adas.id, bobs.id, runs.output.file_id} and await files.sweep() == 2
    assert kept(tmp_path) == {bobs.id, runs.output.file_id}
    clock.advance(holdings.STOPPING_S)
    assert await files.sweep() == 4 and kept(tmp_path) == {bobs.id}
    assert (await files.find("t1", bobs.id)).name == "a.jsonl"


async def test_a_tenants_files_and_batches_go(store: Store, tmp_path: Path) -> None:
    """However many; also where the key that sealed them is lost, bytes included."""
    clock = Clock(1_795_000_000.0)
    files = files_of(store, tmp_path, clock)
    batches = Batches(FileSettings(), store, Vault.at(tmp_path, may_make=True), files, clock)
    theirs = [await put(files, caller) for caller in (*[ADA] * holdings.PIECE_ROWS, BOB, RIVAL)]
    batches.create(ADA, "/v1/embeddings", theirs[0].id, Said())
    assert estate.erase(store, Whose("t1"), clock=clock) == holdings.PIECE_ROWS + 2
    assert estate.erase(store, Whose("t1"), clock=clock) == 0 and batches.open_ones() == []
    assert (await files.find("t2", theirs[-1].id)) == theirs[-1]

    (tmp_path / "vault.keys").write_text(f"{fresh_key()}\n")
    assert estate.erase(store, Whose(), clock=clock) == 1
    while await files.sweep():
        pass
    assert kept(tmp_path) == set()
