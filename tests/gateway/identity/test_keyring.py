"""Keyring: digests instead of keys, and the one pepper behind them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import select

from serving.errors import Refusal
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.store.store import Store
from serving.gateway.store.tables import meta
from tests.clock import Clock
from tests.gateway.places import Place
from tests.gateway.processes import at_once


def test_the_database_does_not_hold_the_key(place: Place, store: Store) -> None:
    """Neither a key nor its secret part is anywhere in the home folder or among the keys."""
    registry = Registry(store, Keyring.open(store), Clock())
    registry.create_tenant("acme")
    secret = registry.create_key("acme")[-43:]

    assert not [path for path in place.home.iterdir() if secret.encode() in path.read_bytes()]
    assert secret not in repr(place.execute("select * from keys"))


def test_a_digest_depends_on_the_key_and_the_pepper() -> None:
    """HMAC-SHA256: 32 bytes, the same for the same two, another for another key or pepper."""
    one = Keyring(b"p" * 32)
    assert one.digest("x") == Keyring(b"p" * 32).digest("x") and len(one.digest("x")) == 32
    assert len({one.digest("x"), one.digest("y"), Keyring(b"q" * 32).digest("x")}) == 3


def test_a_derived_key_is_the_same_for_all_who_share_the_pepper() -> None:
    """Another for each purpose and each pepper, and none is a digest."""
    one = Keyring(b"p" * 32)
    assert one.derived(b"x") == Keyring(b"p" * 32).derived(b"x") and len(one.derived(b"x")) == 32
    assert len({one.derived(b"x"), one.derived(b"y"), Keyring(b"q" * 32).derived(b"x"), one.digest("x")}) == 4


def test_the_database_knows_its_pepper_from_the_first_start(store: Store) -> None:
    """It keeps a digest of a fixed word, never the pepper."""
    keyring = Keyring.open(store)
    with store.begin() as connection:
        assert connection.scalar(select(meta.c.pepper_check)) == keyring.check != keyring.pepper


def digest_of_x(home: Path) -> str:
    with Store.open(home) as store:
        return Keyring.open(store).digest("x").hex()


def test_the_pepper_is_made_once_however_many_ask(tmp_path: Path) -> None:
    """Processes that start at once share one pepper of 32 bytes, readable by its owner alone."""
    digests = at_once(4, digest_of_x, tmp_path)

    pepper = tmp_path / "pepper"
    assert len(set(digests)) == 1
    assert (pepper.stat().st_size, stat.S_IMODE(pepper.stat().st_mode)) == (32, 0o600)


def test_a_lost_pepper_is_refused_and_not_replaced(place: Place, store: Store) -> None:
    """With a new pepper every key would silently stop working, so its loss is reported instead."""
    registry = Registry(store, Keyring.open(store), Clock())
    registry.create_tenant("acme")
    registry.create_key("acme")
    (place.home / "pepper").unlink()

    with pytest.raises(Refusal, match="none of the 1 keys works without it"):
        Keyring.open(store)
    assert not (place.home / "pepper").exists()


@pytest.mark.parametrize(
    ("content", "words"), [(b"short", "is damaged"), (bytes(32), "is not the one of the database")]
)
def test_a_damaged_or_foreign_pepper_is_refused(place: Place, store: Store, content: bytes, words: str) -> None:
    """Before any key is answered with 401: the sentence names the file."""
    Keyring.open(store)
    (place.home / "pepper").write_bytes(content)

    with pytest.raises(Refusal, match=words) as refused:
        Keyring.open(store)
    assert str(place.home / "pepper") in str(refused.value)
