"""Belonging: are the vault's keys those of what is stored? A lost or wrong key file is noticed when a gateway starts."""

from __future__ import annotations

from sqlalchemy import select

from serving.errors import Refusal
from serving.gateway.identity.holdings import IS_NAMED
from serving.gateway.store.store import Store
from serving.gateway.store.tables import batches, conversations, files, responses
from serving.gateway.stored.vault import Vault, key_id_of

#: What is sealed, and by what its newest is found.
_NEWEST = (
    select(responses.c.sealed_input).order_by(responses.c.expires_at.desc()).limit(1),
    select(conversations.c.sealed_metadata).order_by(conversations.c.expires_at.desc()).limit(1),
    select(files.c.sealed).where(IS_NAMED).order_by(files.c.expires_at.desc()).limit(1),
    select(batches.c.sealed).order_by(batches.c.created_at.desc()).limit(1),
)


def key_ids_used(store: Store) -> set[str]:
    """The keys that sealed what was stored last; none where nothing is."""
    with store.begin() as connection:
        found = [connection.scalar(query) for query in _NEWEST]
    return {key_id_of(sealed) for sealed in found if sealed is not None}


def require(store: Store, vault: Vault) -> None:
    """Raises Refusal where what is stored was sealed with a key that the vault has not."""
    for key_id in key_ids_used(store) - set(vault.key_ids):
        raise Refusal(
            f"What is stored in the database {store.name} is sealed with the key {key_id}, which is not in the vault's key file: "
            "restore that file (store.vault_file; else vault.keys in the home folder), or delete what is stored with "
            "`serving stored erase --everything`."
        )
