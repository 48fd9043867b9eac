"""Storing: what is stored is exported, erased and sealed anew by command, and is in no file that can be read."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.cli import app
from serving.gateway.store.store import Store
from serving.gateway.stored import items
from serving.gateway.stored.vault import Vault
from tests.gateway.places import Place, PostgresPlace, SqlitePlace
from tests.gateway.stored.shelves import ADA, BOB, Shelves

CANARY = "a canary that no file may show"


def run(place: Place, *arguments: str) -> str:
    """A command with the settings of a place; fails where it does."""
    done = CliRunner().invoke(app, arguments, env=place.environment(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def kept(place: Place, store: Store) -> Shelves:
    place.execute("insert into tenants (id, name, created_at) values ('t1', 'acme', '2026-01-01')")
    shelves = Shelves(store, place.home)
    # Until long after this test.
    shelves.clock.now = 4_000_000_000.0
    talk = shelves.conversations.begin(ADA, {"topic": CANARY}, items.said(CANARY))
    shelves.put("resp_1", CANARY, conversation_id=talk.id)
    shelves.put("resp_2", CANARY, caller=BOB)
    return shelves


def readable(home: Path) -> bytes:
    """The files of a home, packed ones unpacked."""
    found = [path.read_bytes() for path in home.iterdir() if path.is_file()]
    return b"".join(gzip.decompress(it) if it.startswith(b"\x1f\x8b") else it for it in found)


def test_no_file_shows_what_is_stored(kept: Shelves, place: Place) -> None:
    """Not the database, its log while it is open, nor a backup; with the key file beside it a restored backup opens, without it not."""
    shared = isinstance(place, PostgresPlace)
    with kept.store.begin():
        run(place, "backup", str(place.home / "backup"))
        if not shared:
            assert (place.home / "serving.db-wal").exists()
        files = readable(place.home)
    encoded = base64.b64encode(CANARY.encode())
    assert CANARY.encode() not in files and encoded[2:-4] not in files and b"resp_1" in files
    if shared:
        return
    home = place.home / "new"
    home.mkdir()
    target = SqlitePlace(home)
    (home / "vault.keys").write_bytes((place.home / "vault.keys").read_bytes())
    run(target, "restore", str(place.home / "backup"))
    assert run(target, "stored", "export").count(CANARY) == 8


def test_what_is_stored_is_exported_and_erased(kept: Shelves, place: Place) -> None:
    """Of a tenant or of a person; the audit has both, and none of the words."""
    vault = ("--tenant", "acme")
    all_of_it = [json.loads(line) for line in run(place, "stored", "export", *vault).splitlines()]
    bobs = [json.loads(line) for line in run(place, "stored", "export", *vault, "--user", "bob").splitlines()]
    assert [it["kind"] for it in all_of_it] == ["conversation", "response", "response"]
    assert [it["id"] for it in bobs] == ["resp_2"] and bobs[0]["items"][0]["content"][0]["text"] == CANARY

    assert "1 responses, conversations, files and batches were deleted" in run(
        place, "stored", "erase", *vault, "--user", "bob"
    )
    assert "2 responses, conversations, files and batches were deleted" in run(place, "stored", "erase", *vault)
    assert run(place, "stored", "export") == "" and "past its time" in run(place, "stored", "expire")
    told = repr(place.execute("select kind, body from audit"))
    assert "stored.read" in told and "stored.erase" in told and CANARY not in told


def test_a_key_is_rotated_by_command(kept: Shelves, place: Place) -> None:
    """A new one is put first, everything is sealed with it, and the old one can go."""
    file = place.home / "vault.keys"
    old, new = file.read_text(), run(place, "vault", "key")
    file.write_text(new + old)
    shown = run(place, "vault", "show").splitlines()
    assert [line.split()[1:] for line in shown] == [
        ["DOES", "RESPONSES", "CONVERSATIONS", "FILES", "BATCHES"],
        ["seals", "0", "0", "0", "0"],
        ["opens", "4", "4", "0", "0"],
    ]
    assert "8 things were sealed by another key" in run(place, "vault", "rewrap")
    assert [line.split()[2] for line in run(place, "vault", "show").splitlines()] == ["RESPONSES", "4", "0"]
    file.write_text(new)
    assert run(place, "stored", "export").count(CANARY) == 8
    assert Vault.at(place.home, may_make=False).key_ids == (shown[1].split()[0],)


@pytest.mark.parametrize(
    "arguments", [("erase",), ("erase", "--everything", "--tenant", "acme"), ("export", "--tenant", "no")]
)
def test_what_is_not_meant_is_refused(place: Place, arguments: tuple[str, ...]) -> None:
    """Nothing is deleted by a word that was forgotten."""
    with place.open():
        pass
    done = CliRunner().invoke(app, ("stored", *arguments), env=place.environment())
    assert done.exit_code != 0
