"""Storing: `serving stored` and `serving vault`: what is stored of responses and conversations, and the keys that seal it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from serving.errors import Refusal, VaultFailed
from serving.gateway.cli.printing import print_table, settings_of

if TYPE_CHECKING:
    from serving.gateway.store.store import Store
    from serving.gateway.stored.estate import Whose

stored = typer.Typer(help="Stored responses and conversations; files and batches.", no_args_is_help=True)
vault = typer.Typer(help="The keys that seal what is stored.", no_args_is_help=True)

OfTenant = Annotated[str | None, typer.Option("--tenant", help="One tenant's.")]
OfUser = Annotated[
    str | None, typer.Option("--user", help="One end user's alone, by reference (`serving users list`).")
]


@stored.command("export")
def export_stored(context: typer.Context, tenant: OfTenant = None, user: OfUser = None) -> None:
    """Write what is stored to standard output, a JSON object a line, opened: it says what people asked and were answered.

    Files and batches are not in it: with a key of their tenant they are listed by /v1/files and /v1/batches, and downloaded by
    /v1/files/ID/content.
    """
    from serving.gateway.audit import actors
    from serving.gateway.cli import opening
    from serving.gateway.identity.acts import Act, ActKind
    from serving.gateway.stored import estate

    settings = settings_of(context)
    with opening.journalled(settings) as (store, journal), _told():
        whose = _whose(store, tenant, user)
        about = whose.tenant_id or ""
        # First: what cannot be told is not shown.
        journal.record(actors.at_command_line(), Act(ActKind.STORED_READ, "stored", about, {"user": user}))
        for thing in estate.each(store, opening.vault(settings, store), whose):
            sys.stdout.write(msgspec.json.encode(thing).decode() + "\n")


@stored.command("erase")
def erase_stored(
    context: typer.Context,
    tenant: OfTenant = None,
    user: OfUser = None,
    everything: Annotated[bool, typer.Option("--everything", help="Every tenant's.")] = False,
) -> None:
    """Delete what is stored of a tenant, or of one end user; `serving users erase` does so too. Backups made before still have it.

    Files and batches are deleted too; batches that run, or read such a file, are stopped. The sealed bytes of files are removed by a
    running gateway, which begins about ten minutes later at most.
    """
    from serving.gateway.cli.opening import audited
    from serving.gateway.stored import estate

    if (tenant is None and user is None) is not everything:
        raise Refusal("Say whose: --tenant NAME, --user REFERENCE, or --everything.")
    with audited(settings_of(context)) as (store, witness):
        count = estate.erase(store, _whose(store, tenant, user), witness)
    typer.echo(f"{count} responses, conversations, files and batches were deleted.")


@stored.command("expire")
def expire_stored(context: typer.Context) -> None:
    """Delete now what is past its time; gateways do so by themselves every ten minutes."""
    from serving.gateway.cli.opening import opened_store
    from serving.gateway.stored import sweeping

    with opened_store(settings_of(context)) as store:
        while sweeping.expire(store, time.time()) == sweeping.BATCH_ROWS:
            pass
    typer.echo("Nothing is stored past its time.")


@vault.command("key")
def make_key() -> None:
    """Print a new key, as a line of the key file."""
    from serving.gateway.stored.vault import fresh_key

    typer.echo(fresh_key())


@vault.command("show")
def show_keys(context: typer.Context) -> None:
    """List the keys of this installation by id; the first seals."""
    from serving.gateway.cli import opening

    settings = settings_of(context)
    with opening.opened_store(settings) as store:
        ids = opening.vault(settings, store).key_ids
    print_table(("KEY", "DOES"), [(it, "opens" if place else "seals and opens") for place, it in enumerate(ids)])


@vault.command("rewrap")
def rewrap_stored(context: typer.Context) -> None:
    """Have stored responses, conversations and batches sealed by the first key, while gateways run.

    The bytes of files keep the key that sealed them: it can be taken out of the key file when those have expired.
    """
    from serving.gateway.audit import actors
    from serving.gateway.cli import opening
    from serving.gateway.identity.acts import Act, ActKind
    from serving.gateway.stored import estate

    settings = settings_of(context)
    with opening.journalled(settings) as (store, journal), _told():
        found = opening.vault(settings, store)
        journal.record(actors.at_command_line(), Act(ActKind.VAULT_REWRAP, found.key_ids[0] if found.key_ids else ""))
        counts = estate.rewrap(store, found)
    typer.echo(
        f"{sum(counts.values())} things were sealed by another key than {found.key_ids[0]}; none is now, but older files."
    )


def _whose(store: Store, tenant: str | None, user: str | None) -> Whose:
    from sqlalchemy import select

    from serving.gateway.store.tables import tenants
    from serving.gateway.stored.estate import Whose

    if tenant is None:
        return Whose(None, user)
    with store.begin() as connection:
        tenant_id = connection.scalar(select(tenants.c.id).where(tenants.c.name == tenant))
    if tenant_id is None:
        raise Refusal(f"There is no tenant '{tenant}'; `serving tenants list` shows those there are.")
    return Whose(tenant_id, user)


@contextmanager
def _told() -> Iterator[None]:
    """What the vault says for operators, as a command's sentence."""
    try:
        yield
    except VaultFailed as failed:
        raise Refusal(f"What is stored cannot be opened: {failed.reason}.") from None
