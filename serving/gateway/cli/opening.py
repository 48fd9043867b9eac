"""Opening: from the settings to a database in order and the keyring that belongs to it, for gateways and commands alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving.config import Settings
from serving.errors import Refusal, StoreUnavailable
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Key, Registry
from serving.gateway.store.store import Store


@contextmanager
def opened_store(settings: Settings, *, may_migrate: bool = False) -> Iterator[Store]:
    """The store of these settings; an outage inside the block is a Refusal."""
    with Store.open(settings.home, settings.store, may_migrate=may_migrate) as store:
        try:
            yield store
        except StoreUnavailable as error:
            raise Refusal(f"The database {store.name} is unavailable: {error.reason}.") from None


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Store, Keyring]]:
    """The store and its keyring."""
    with opened_store(settings) as store:
        yield store, Keyring.open(store, settings.store.pepper_file)


@contextmanager
def registered(settings: Settings) -> Iterator[Registry]:
    """Tenants and keys, for the user of this command."""
    with opened(settings) as (store, keyring):
        yield Registry(store, keyring, time.time)


def migrate(settings: Settings) -> Key | None:
    """Bring the database to this version's tables and register the first key; does nothing where that is done.

    Safe when several do it at once, and while gateways of the version before run. Returns the key of `first_key_file`.
    """
    with opened_store(settings, may_migrate=True):
        pass
    path = settings.store.first_key_file
    if path is None:
        return None
    with opened(settings) as (store, keyring):
        return Registry(store, keyring, time.time).admit_first_key(path)


def first_start(settings: Settings) -> None:
    """Prepare the store of a gateway that has it to itself; for a shared one `serving store migrate` does this."""
    if settings.store.url_file is not None:
        return
    if settings.store.first_key_file is not None:
        migrate(settings)
        return
    with opened(settings) as (store, keyring):
        Registry(store, keyring, time.time).first_key()
