"""Vault: what is sealed opens here, for what it belongs to, and nowhere else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Refusal, VaultFailed
from serving.gateway.stored import vault as vaults
from serving.gateway.stored.vault import Vault, bound_to, fresh_key, key_id_of
from tests.gateway.processes import at_once

MINE = bound_to("acme", "response", "resp_1")


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    return Vault.at(tmp_path_factory.mktemp("home"), may_make=True)


def keys_of(path: Path, *keys: str) -> Vault:
    path.write_text("".join(f"{key}\n" for key in keys))
    return Vault.at(path.parent, path, may_make=False)


@given(plain=st.binary(max_size=200))
def test_what_is_sealed_opens_and_shows_nothing(vault: Vault, plain: bytes) -> None:
    """It comes back as it was; sealed twice it is two different things, each a fixed number of bytes longer."""
    one, other = vault.seal(plain, MINE), vault.seal(plain, MINE)

    assert vault.open(one, MINE) == vault.open(other, MINE) == plain
    assert one != other and len(one) == len(plain) + vaults.OVERHEAD_BYTES
    assert len(plain) < 8 or plain not in one


@pytest.mark.parametrize(
    "about", [bound_to("other", "response", "resp_1"), bound_to("acme", "response", "resp_2"), b""]
)
def test_it_opens_only_as_what_it_was_sealed_as(vault: Vault, about: bytes) -> None:
    """A row that is moved to another tenant or another id does not open there."""
    with pytest.raises(VaultFailed):
        vault.open(vault.seal(b"canary", MINE), about)


def test_a_changed_byte_anywhere_is_seen(vault: Vault) -> None:
    """Header, wrapped key, nonce, text and tag alike; and what was cut short."""
    sealed = vault.seal(b"canary", MINE)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(VaultFailed):
            vault.open(bytes(changed), MINE)
    for length in (0, 1, 50, len(sealed) - 1):
        with pytest.raises(VaultFailed):
            vault.open(sealed[:length], MINE)


def test_the_first_key_seals_and_all_open(tmp_path: Path) -> None:
    """A key is added at the end, then moved to the front: whatever was sealed meanwhile opens, with no restart."""
    old, new = fresh_key(), fresh_key()
    path = tmp_path / "keys"
    vault = keys_of(path, old)
    before = vault.seal(b"before", MINE)

    keys_of(path, old, new)
    assert key_id_of(vault.seal(b"", MINE)) == key_id_of(before)
    keys_of(path, new, old)
    after = vault.seal(b"after", MINE)

    assert (key_id_of(after), key_id_of(before)) == vault.key_ids
    assert (vault.open(before, MINE), vault.open(after, MINE)) == (b"before", b"after")


def test_a_key_can_go_once_everything_is_wrapped_by_another(tmp_path: Path) -> None:
    """Wrapping again leaves what is inside sealed as it was, does nothing the second time, and makes the old key superfluous."""
    old, new = fresh_key(), fresh_key()
    path = tmp_path / "keys"
    sealed = keys_of(path, old).seal(b"canary", MINE)
    vault = keys_of(path, new, old)

    again = vault.rewrapped(sealed)

    assert again is not None and vault.rewrapped(again) is None
    assert keys_of(path, new).open(again, MINE) == b"canary"
    with pytest.raises(VaultFailed, match="stored content"):
        keys_of(path, new).open(sealed, MINE)


def key_ids_of(home: Path) -> tuple[str, ...]:
    return Vault.at(home, may_make=True).key_ids


def test_the_file_is_made_once_however_many_ask(tmp_path: Path) -> None:
    """Processes that start at once share one key, readable by its owner alone."""
    made = at_once(2, key_ids_of, tmp_path)

    assert len(set(made)) == 1 and len(made[0]) == 1
    assert stat.S_IMODE((tmp_path / vaults.FILE_NAME).stat().st_mode) == 0o600


def test_without_a_file_nothing_is_sealed(tmp_path: Path) -> None:
    """Where it may not make one, a gateway has a vault that says so when it is asked; one that is named must be there."""
    with pytest.raises(VaultFailed) as failed:
        Vault.at(tmp_path, may_make=False).seal(b"", MINE)
    assert failed.value.reason == "there is no key file"
    with pytest.raises(Refusal, match="cannot be used: no such file"):
        Vault.at(tmp_path, tmp_path / "missing", may_make=True)


@pytest.mark.parametrize("content", ["", "c2hvcnQ=\n", "not base64!\n", f"{'A' * 43}=\nrubbish\n"])
def test_a_damaged_file_is_refused_at_start_and_ignored_later(tmp_path: Path, content: str) -> None:
    """A gateway that runs goes on with the last good keys: a file may be half written."""
    path = tmp_path / "keys"
    vault = keys_of(path, fresh_key())
    sealed = vault.seal(b"canary", MINE)
    path.write_text(content)

    assert vault.open(sealed, MINE) == b"canary"
    with pytest.raises(Refusal, match=r"is damaged|holds 0 keys"):
        Vault.at(tmp_path, path, may_make=False)
