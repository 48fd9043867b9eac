"""Storing: `serving stored` and `serving vault`: what is stored of responses and conversations, and the keys that seal it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
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
    from serving.gateway.stored.files.presence import Lack, Presence

stored = typer.Typer(help="Stored responses and conversations; files and batches.", no_args_is_help=True)
vault = typer.Typer(help="The keys that seal what is stored.", no_args_is_help=True)

#: Column of `vault show` → whose sealed parts it counts.
_SHOWN = {
    "RESPONSES": ("responses", "response_events"),
    "CONVERSATIONS": ("conversations", "conversation_items"),
    "FILES": ("files",),
    "BATCHES": ("batches", "batch_lines"),
}

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


@stored.command("check")
def check_stored(context: typer.Context) -> None:
    """Read all files, and list those whose bytes are missing or do not open. Exits with 1 where there are any.

    After a restore, and after a loss of the folder or object store that keeps them: backups have no bytes.
    """
    from serving.gateway.cli import opening
    from serving.gateway.stored.files.pieces import Pieces
    from serving.gateway.stored.files.presence import Presence

    settings = settings_of(context)
    with opening.opened_store(settings) as store:
        shelf = Pieces.open(settings.gateway.files, store.home)
        presence = Presence(store, opening.vault(settings, store), shelf)
        lacking, astray = asyncio.run(_looked(presence))
    if lacking:
        rows = [(it.file_id, it.tenant_id, it.purpose, it.why) for it in lacking]
        print_table(("FILE", "TENANT", "PURPOSE", "WHAT"), rows)
    typer.echo(f"{presence.count - len(lacking)} of {presence.count} files are whole.")
    if astray:
        typer.echo(
            f"Bytes of {len(astray)} more belong to no file in this database, as those of {astray[0]}: nothing removes them."
        )
    if lacking:
        raise typer.Exit(1)


async def _looked(presence: Presence) -> tuple[list[Lack], list[str]]:
    return [it async for it in presence.lacking()], await presence.astray()


@vault.command("key")
def make_key() -> None:
    """Print a new key, as a line of the key file."""
    from serving.gateway.stored.vault import fresh_key

    typer.echo(fresh_key())


@vault.command("show")
def show_keys(context: typer.Context) -> None:
    """List the keys of this installation by id, and how much each still seals; the first seals what comes.

    One that seals nothing can be taken out of the key file.
    """
    from serving.gateway.cli import opening
    from serving.gateway.stored import estate

    settings = settings_of(context)
    with opening.opened_store(settings) as store:
        ids = opening.vault(settings, store).key_ids
        counts = estate.sealed_by(store)
    does = (
        dict.fromkeys(counts, "is not in the key file") | dict.fromkeys(ids, "opens") | dict.fromkeys(ids[:1], "seals")
    )
    rows = []
    for key_id in sorted(does, key=lambda it: (does[it] != "seals", it)):
        seals = counts.get(key_id, Counter())
        sums = (sum(seals[name] for name in tables) for tables in _SHOWN.values())
        rows.append((key_id, does[key_id], *map(str, sums)))
    print_table(("KEY", "DOES", *_SHOWN), rows)


@vault.command("rewrap")
def rewrap_stored(context: typer.Context) -> None:
    """Have all that is stored sealed by the first key, files included, while gateways run.

    Keys of what is stored are wrapped anew; what they seal, files' bytes among it, is not touched. `serving vault show` says when another key
    seals nothing any more and can go.
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
    typer.echo(f"{sum(counts.values())} things were sealed by another key than {found.key_ids[0]}; none is now.")


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
