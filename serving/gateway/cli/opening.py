"""Opening: from the settings to a database in order and the keyring that belongs to it, for gateways and commands alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving.config import Settings
from serving.errors import Refusal, StoreUnavailable
from serving.gateway.audit import actors, checkpoints
from serving.gateway.audit.checkpoints import Signer
from serving.gateway.audit.journal import Journal, Origin
from serving.gateway.identity.acts import Act, Witness
from serving.gateway.identity.keyring import PEPPER_NAME, Keyring
from serving.gateway.identity.records import Key
from serving.gateway.identity.registry import Registry
from serving.gateway.store.store import Store
from serving.gateway.stored import belonging
from serving.gateway.stored.vault import Vault


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


def vault(settings: Settings, store: Store) -> Vault:
    """The vault of this installation, its keys made at first use. Raises Refusal where they are not those of what is stored."""
    may_make = not store.is_shared and not belonging.key_ids_used(store)
    found = Vault.at(settings.home, settings.store.vault_file, may_make=may_make)
    belonging.require(store, found)
    return found


def signer(keyring: Keyring) -> Signer:
    """What signs the checkpoints of this installation's audit."""
    return Signer(keyring.derived(checkpoints.PURPOSE))


@contextmanager
def journal(store: Store, keyring: Keyring | None) -> Iterator[Journal]:
    """This command's chain in the audit; without a keyring the gateways alone sign it."""
    with Journal(store, None if keyring is None else signer(keyring), time.time, Origin.COMMAND) as own:
        yield own


@contextmanager
def journalled(settings: Settings) -> Iterator[tuple[Store, Journal]]:
    """The store and this command's chain, signed where the pepper is at hand: a command makes none for this alone."""
    path = settings.store.pepper_file or settings.home / PEPPER_NAME
    with opened_store(settings) as store:
        keyring = Keyring.open(store, settings.store.pepper_file) if path.exists() else None
        with journal(store, keyring) as own:
            yield store, own


@contextmanager
def audited(settings: Settings) -> Iterator[tuple[Store, Witness]]:
    """The store, and who tells the audit of what the user of this command does to it."""
    with journalled(settings) as (store, own):
        yield store, own.witness(actors.at_command_line())


def tell(settings: Settings, act: Act) -> None:
    """Tell the audit of an act that is done elsewhere."""
    with journalled(settings) as (_, own):
        own.record(actors.at_command_line(), act)


@contextmanager
def registered(settings: Settings) -> Iterator[Registry]:
    """Tenants and keys, for the user of this command."""
    with opened(settings) as (store, keyring), journal(store, keyring) as own:
        yield Registry(store, keyring, time.time, own.witness(actors.at_command_line()))


def migrate(settings: Settings) -> Key | None:
    """Bring the database to this version's tables and register the first key; does nothing where that is done.

    Safe when several do it at once, and while gateways of the version before run. Returns the key of `first_key_file`.
    """
    with opened_store(settings, may_migrate=True):
        pass
    path = settings.store.first_key_file
    if path is None:
        return None
    with registered(settings) as registry:
        return registry.admit_first_key(path)


def first_start(settings: Settings) -> None:
    """Prepare the store of a gateway that has it to itself; for a shared one `serving store migrate` does this."""
    if settings.store.url_file is not None:
        return
    if settings.store.first_key_file is not None:
        migrate(settings)
        return
    with registered(settings) as registry:
        registry.first_key()
