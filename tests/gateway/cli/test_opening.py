"""Opening a store: the pepper that belongs to it, and a first key that was made beforehand."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import pytest

from serving.config import Settings
from serving.errors import Refusal
from serving.gateway.cli.opening import first_start, migrate, opened
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.keys import mint
from serving.gateway.identity.records import Key
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.tenants import Tenants
from tests.gateway.places import Place, PostgresPlace, SqlitePlace, settings_of
from tests.gateway.processes import at_once


def given(place: Place, **files: bytes | str) -> Settings:
    """Settings that name these files of the home, `pepper_file` and `first_key_file`."""
    named = {}
    for name, content in files.items():
        named[name] = place.home / f"given-{name}"
        named[name].write_bytes(content if isinstance(content, bytes) else content.encode())
    return Settings(home=place.home, store=place.settings.model_copy(update=named))


def keys_of(settings: Settings) -> list[Key]:
    with opened(settings) as (store, keyring):
        return Registry(store, keyring, time.time).keys()


def identify(settings: Settings, key: str) -> str:
    with opened(settings) as (store, keyring), Tenants(store, keyring, key_cache_s=10, lookup_timeout_s=10) as tenants:
        return asyncio.run(tenants.identify(key)).tenant


def test_a_pepper_that_is_given_is_the_one_that_digests(place: Place) -> None:
    """What the file holds counts, and none is made beside it."""
    pepper = secrets.token_bytes(32)
    settings = given(place, pepper_file=pepper)

    with opened(settings) as (_, keyring):
        assert keyring.digest("x") == Keyring(pepper).digest("x")
    assert not (place.home / "pepper").exists()


def test_another_pepper_is_refused_at_the_start(place: Place) -> None:
    """Instead of 401 to all clients: the database knows which pepper its keys were digested with, before there is a key."""
    with opened(given(place, pepper_file=secrets.token_bytes(32))):
        pass

    with pytest.raises(Refusal, match="is not the one of the database"), opened(given(place, pepper_file=bytes(32))):
        pass


@pytest.mark.parametrize("content", [None, b"", b"short", bytes(33)])
def test_a_given_pepper_that_is_missing_or_damaged_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """It is never made, because another gateway would make another."""
    place = SqlitePlace(tmp_path)
    settings = given(place, pepper_file=content or b"")
    path = settings.store.pepper_file
    assert path is not None
    if content is None:
        path.unlink()

    with pytest.raises(Refusal, match=r"given-pepper_file (cannot be used|is damaged)"), opened(settings):
        pass
    assert content is not None or not path.exists()


def test_gateways_with_a_pepper_each_are_told_so(shared: PostgresPlace, tmp_path: Path) -> None:
    """A second pod without the shared pepper would refuse every key that the first one's pepper digested."""
    with opened(settings_of(shared)):
        pass

    elsewhere = Settings(home=tmp_path / "second", store=shared.settings)
    refused = pytest.raises(Refusal, match=r"is missing and none of the 0 keys works without it.*store\.pepper_file")
    with refused, opened(elsewhere):
        pass
    assert not (tmp_path / "second" / "pepper").exists()


def test_a_first_key_made_beforehand_opens(place: Place) -> None:
    """`serving store migrate` registers it as tenant default's `admin`, once however often it runs."""
    key = mint()
    settings = given(place, pepper_file=bytes(32), first_key_file=key + "\n")

    migrate(settings)
    first = migrate(settings)
    assert first is not None
    assert (first.tenant, first.name, first.id) == ("default", "admin", key[3:13])
    assert len(keys_of(settings)) == 1
    assert identify(settings, key) == "default"


def test_a_changed_file_adds_its_key_and_a_revoked_one_stays_revoked(place: Place) -> None:
    """Every upgrade runs this again: it removes no key and reactivates none."""
    first, second = mint(), mint()
    migrate(given(place, pepper_file=bytes(32), first_key_file=first))
    settings = given(place, pepper_file=bytes(32), first_key_file=second)
    migrate(settings)
    assert {identify(settings, key) for key in (first, second)} == {"default"}

    with opened(settings) as (store, keyring):
        Registry(store, keyring, time.time).revoke_key(second[3:13])
    found = migrate(settings)
    assert found is not None and found.state(time.time()) == "revoked"


@pytest.mark.parametrize("content", [b"", b"sk-admin", b"sk-ABCDEFGHIJ-" + b"a" * 43, b"\xff\xfe"])
def test_a_first_key_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """The sentence names the file and what a key looks like; nothing is registered."""
    place = SqlitePlace(tmp_path)
    settings = given(place, pepper_file=bytes(32), first_key_file=content)

    with pytest.raises(Refusal, match="given-first_key_file"):
        migrate(settings)
    assert keys_of(settings) == []


def test_another_secret_under_a_known_id_is_refused(place: Place) -> None:
    """A forged file does not replace a key."""
    key = mint()
    migrate(given(place, pepper_file=bytes(32), first_key_file=key))

    with pytest.raises(Refusal, match="is not the one that the database has under its id"):
        migrate(given(place, pepper_file=bytes(32), first_key_file=key[:14] + mint()[14:]))


def test_a_gateway_alone_registers_the_given_key_itself(place: Place) -> None:
    """With SQLite no Job runs before it; with PostgreSQL the Job did, and a gateway makes neither keys nor files."""
    key = mint()
    settings = given(place, pepper_file=bytes(32), first_key_file=key)

    first_start(settings)
    known = [found.id for found in keys_of(settings)]
    assert known == ([] if isinstance(place, PostgresPlace) else [key[3:13]])
    assert not (place.home / "admin.key").exists()


def test_first_starts_at_once_agree(unmigrated: PostgresPlace) -> None:
    """Jobs that start together on an empty database all succeed, and make each table, tenant, key and check once."""
    settings = given(unmigrated, pepper_file=secrets.token_bytes(32), first_key_file=mint())
    first, *others = at_once(3, migrate, settings)
    assert first is not None and first.tenant == "default" and others == [first, first]
    assert len(keys_of(settings)) == 1
    counts = "select (select count(*) from tenants), (select count(*) from meta where pepper_check is not null)"
    assert unmigrated.execute(counts) == [(1, 1)]
