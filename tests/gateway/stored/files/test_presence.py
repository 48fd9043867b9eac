"""Presence: what a restore without the bytes lacks is named, and what lies there without a row is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from typer.testing import CliRunner

from serving.cli import app
from serving.gateway.store.store import Store
from serving.gateway.stored.batches.batches import Batches, Said
from serving.gateway.stored.files.presence import Presence
from serving.gateway.stored.vault import Vault
from tests.clock import Clock
from tests.gateway.calls import CALLER
from tests.gateway.places import Place
from tests.gateway.stored.files.test_files import files_of, put


async def test_a_file_whose_bytes_are_missing_or_do_not_open_is_named(
    store: Store, place: Place, tmp_path: Path
) -> None:
    """Names of files are content, and are not told. What a batch writes, and what was deleted meanwhile, is neither missing nor astray."""
    files, vault = files_of(store, place.home, Clock(4e9)), Vault.at(place.home, may_make=True)
    whole, gone, changed, short = [await put(files) for _ in range(4)]
    batches = Batches(files.settings, store, vault, files, Clock(4e9))
    runs = batches.create(CALLER, "/v1/embeddings", whole.id, Said())
    await files.shelf.put(runs.cipher_of(runs.output), 0, b"written")
    presence = Presence(store, vault, files.shelf)
    assert [it async for it in presence.lacking()] == [] and (presence.count, await presence.astray()) == (4, [])
    assert await checked(place, 0) == "4 of 4 files are whole.\n"

    folder = place.home / "files"
    (folder / gone.id / "00000000").rename(folder / "0")
    (folder / changed.id / "00000000").write_bytes((folder / short.id / "00000000").read_bytes())
    await files.shelf.put(short.cipher, 0, b"longer")
    (folder / "file-astray").mkdir()
    (folder / "file-astray" / "00000000").write_bytes(b"x")
    found = {it.file_id: it.why async for it in Presence(store, vault, files.shelf).lacking()}
    assert found == {
        gone.id: "1 of its 1 pieces are missing",
        changed.id: "it does not open: it was changed, or belongs to something else",
        short.id: "it has 6 bytes instead of 1",
    }
    told = await checked(place, 1)
    assert "1 of 4 files are whole." in told and "Bytes of 1 more" in told and "file-astray" in told
    assert all(it in told for it in found) and whole.id not in told and "a.jsonl" not in told
    await files.remove(CALLER.tenant_id, gone.id)
    assert gone.id not in await checked(place, 1)


async def checked(place: Place, code: int) -> str:
    """What the command says."""
    done = await asyncio.to_thread(CliRunner().invoke, app, ("stored", "check"), env=place.environment())
    assert done.exit_code == code, done.output
    return done.output
