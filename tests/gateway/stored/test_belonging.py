"""Belonging: a gateway does not start with another key file than that of what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import FileSettings, Settings
from serving.errors import Refusal
from serving.gateway.cli import opening
from serving.gateway.store.store import Store
from serving.gateway.stored import belonging, estate
from serving.gateway.stored.batches.batches import Batches, Said
from serving.gateway.stored.estate import Whose
from serving.gateway.stored.files.files import brought_by
from tests.gateway.stored.files.test_files import files_of
from tests.gateway.stored.shelves import ADA, Shelves


def test_a_lost_key_file_is_refused_and_not_replaced(tmp_path: Path) -> None:
    """Where things are stored; once they are deleted a new one is made."""
    with Store.open(tmp_path) as store:
        kept = Shelves(store, tmp_path)
        kept.put("r1")
        assert belonging.key_ids_used(store) == set(kept.vault.key_ids)
        (tmp_path / "vault.keys").unlink()

        with pytest.raises(Refusal, match=f"sealed with the key {kept.vault.key_ids[0]}, which is not in"):
            opening.vault(Settings(home=tmp_path), store)
        assert not (tmp_path / "vault.keys").exists()

        estate.erase(store, Whose())
        assert opening.vault(Settings(home=tmp_path), store).key_ids


@pytest.mark.parametrize("kind", ["file", "batch"])
async def test_a_key_file_is_missed_where_only_files_or_batches_are(tmp_path: Path, kind: str) -> None:
    """They are sealed as well."""
    with Store.open(tmp_path) as store:
        shelves = Shelves(store, tmp_path)
        files = files_of(store, tmp_path, shelves.clock)
        if kind == "file":
            await files.begin(brought_by(ADA, "in.jsonl"), 1)
        else:
            Batches(FileSettings(), store, shelves.vault, files, shelves.clock).create(ADA, "/v1/x", "file-1", Said())
        (tmp_path / "vault.keys").unlink()
        with pytest.raises(Refusal, match="sealed with the key"):
            opening.vault(Settings(home=tmp_path), store)

        estate.erase(store, Whose())
        assert opening.vault(Settings(home=tmp_path), store).key_ids
