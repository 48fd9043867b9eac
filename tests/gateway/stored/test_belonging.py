"""Belonging: a gateway does not start with another key file than that of what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import Settings
from serving.errors import Refusal
from serving.gateway.cli import opening
from serving.gateway.store.store import Store
from serving.gateway.stored import belonging, estate
from serving.gateway.stored.estate import Whose
from tests.gateway.stored.shelves import Shelves


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
